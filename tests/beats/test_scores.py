"""Scores of known mistakes, and every form of reference."""

import json

import numpy as np
import pytest

from stages.errors import DataError
from stages.evaluate.beats import METRICS, evaluate_beats, read_beats, score

TIMES = np.arange(0.5, 60, 0.5)
BARS = [(float(time), i % 4 + 1) for i, time in enumerate(TIMES)]


def test_perfect_beats_score_one():
    assert score(TIMES, TIMES) == dict.fromkeys(METRICS, 1.0)


def test_double_tempo_is_forgiven_by_amlt_alone():
    found = score(np.arange(0.5, 60, 0.25), TIMES)
    assert found["amlt"] > 0.98
    assert found["cmlt"] == 0
    assert found["f_measure"] == pytest.approx(2 / 3, abs=0.01)


def test_the_start_is_dropped_and_70_ms_are_allowed():
    assert score(TIMES[TIMES >= 5], TIMES)["f_measure"] == 1
    assert score(TIMES + 0.065, TIMES)["f_measure"] > 0.98
    assert score(TIMES + 0.08, TIMES)["f_measure"] == 0
    assert score(np.empty(0), TIMES) == dict.fromkeys(METRICS, 0.0)


JAMS_ROWS = [{"time": t, "duration": 0, "value": {"position": p, "measure": 1}, "confidence": None} for t, p in BARS]
COLUMNS = {"time": [t for t, _ in BARS], "value": [p for _, p in BARS]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.beats", "".join(f"{t}\t{p}\n" for t, p in BARS)),
        ("a.txt", "# made by hand\n" + "".join(f"{t} {p}\n" for t, p in BARS)),
        ("a.csv", "time,position\n" + "".join(f"{t},{p}\n" for t, p in BARS)),
        ("a.jams", json.dumps({"annotations": [{"namespace": "beat_position", "data": JAMS_ROWS}]})),
        ("a.json", json.dumps({"annotations": [{"namespace": "beat", "data": COLUMNS}]})),
    ],
)  # fmt: skip
def test_every_form_of_reference_reads_the_same(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    beats, downbeats = read_beats(tmp_path / name)
    assert np.allclose(beats, TIMES)
    assert np.allclose(downbeats, TIMES[::4])


def test_beats_without_positions_have_no_downbeat_score(tmp_path):
    for side in ("found", "true"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "a.beats").write_text("".join(f"{t}\n" for t in TIMES))
    (tmp_path / "found/b.beats").write_text("".join(f"{t}\t{p}\n" for t, p in BARS))
    (tmp_path / "true/b.csv").write_text("".join(f"{t},{p}\n" for t, p in BARS))
    scores = evaluate_beats(tmp_path / "found", tmp_path / "true")
    assert (scores["n"], scores["n_downbeats"]) == (2, 1)
    assert scores["beats"] == scores["downbeats"] == dict.fromkeys(METRICS, 1.0)


@pytest.mark.parametrize("text", ["one,two\nthree,four\n", '{"annotations": []}', "nan\t1\n", "-1\t1\n"])
def test_what_holds_no_beats_is_refused(tmp_path, text):
    file = tmp_path / ("a.json" if text.startswith("{") else "a.csv")
    file.write_text(text)
    with pytest.raises(DataError, match=r"a\.(csv|json)"):
        read_beats(file)


def test_a_reference_without_estimate_is_named(tmp_path):
    for side in ("found", "true"):
        (tmp_path / side).mkdir()
    (tmp_path / "true/b.beats").write_text("1\t1\n")
    with pytest.raises(DataError, match="the first is b"):
        evaluate_beats(tmp_path / "found", tmp_path / "true")
    with pytest.raises(DataError, match="two files or two folders"):
        evaluate_beats(tmp_path / "found", tmp_path / "true/b.beats")
