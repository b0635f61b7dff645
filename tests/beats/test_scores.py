"""Scores of known mistakes, and every form of reference."""

import json

import numpy as np
import pytest

from stages.beats.annotations import read_beats
from stages.errors import DataError
from stages.evaluate.beats import METRICS, evaluate_beats, score

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


def lines(form, decimal="."):
    """The beats as a text table; `form` gets the time, the bar from 1, the place in it from 1."""
    rows = [form.format(t=f"{t:.3f}".replace(".", decimal), bar=i // 4 + 1, place=i % 4 + 1, ms=round(1000 * t),
                        cs=round(100 * t), end=f"{t + 0.5:.3f}", zero=i % 4, flag=int(i % 4 == 0),
                        code=384 if i % 4 == 0 else 48 * (i % 4)) for i, t in enumerate(TIMES)]  # fmt: skip
    return "".join(row + "\n" for row in rows)


FORMS = {
    "ours.beats": lines("{t}\t{place}"),
    "BALLROOM.BEATS": lines("{t} {place}"),
    "by-hand.txt": "# made by hand\n" + lines("{t} {place}"),
    "header.csv": "time,position\n" + lines("{t},{place}"),
    "blanks.csv": lines("{t}, {place}"),
    "quoted.csv": '"time","position"\n' + lines('"{t}","{place}"'),
    "bom.csv": "\ufeff" + lines("{t},{place}"),
    "floats.txt": lines("{t} {place}.000"),
    "isophonics.txt": lines("{t}  {place}"),
    "harmonix.txt": lines("{t}\t{place}\t{bar}"),
    "position-first.csv": "beat,time\n" + lines("{place},{t}"),
    "pandas.csv": "bar;beat;onset\n" + lines("{bar};{place};{t}"),
    "zero-based.txt": lines("{t} {zero}"),
    "marks.txt": lines("{t},{flag}"),
    "sonic-visualiser.csv": lines("{t},{bar}.{place}"),
    "two-places.txt": lines("{t}\t{bar}.{place}0"),
    "bar-from-zero.txt": lines("{t}\t{bar}.{zero}"),
    "colon.txt": lines("{t}\t{bar}:{place}"),
    "audacity.txt": lines("{t}\t{t}\t{place}"),
    "regions.txt": lines("{t}\t{end}\t{bar}.{place}"),
    "decimal-comma.txt": lines("{t}\t{place}", ","),
    "decimal-comma-blank.txt": lines("{t} {place}", ","),
    "semicolons.csv": "time;position\n" + lines("{t};{place}", ","),
    "rwc.txt": lines("{cs}\t{cs}\t{code}"),
    "rwc-ends.tsv": "".join(f"{round(100 * t)}\t{round(100 * t) + 50}\t{384 if i % 4 == 0 else 48 * (i % 4)}\n"
                            for i, t in enumerate(TIMES)),
    "rwc-seconds.txt": lines("{t}\t{code}"),
    "new.jams": json.dumps({"annotations": [{"namespace": "beat_position", "data": JAMS_ROWS}]}),
    "old.json": json.dumps({"annotations": [{"namespace": "beat", "data": COLUMNS}]}),
    "empty-first.jams": json.dumps({"annotations": [{"namespace": "beat_position", "data": []},
                                                    {"namespace": "beat", "data": COLUMNS}]}),
    "decimals.jams": json.dumps({"annotations": [{"namespace": "beat", "data": {
        "time": COLUMNS["time"], "value": [i // 4 + 1 + (i % 4 + 1) / 10 for i in range(len(TIMES))]}}]}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_reference_reads_the_same(tmp_path, name):
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    beats, downbeats = read_beats(tmp_path / name)
    assert np.allclose(beats, TIMES)
    assert np.allclose(downbeats, TIMES[::4])


def of_values(values):
    data = [{"time": t, "duration": 0, "value": value} for t, value in zip(TIMES, values, strict=False)]
    return json.dumps({"annotations": [{"namespace": "beat", "data": data}]})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("smc.txt", lines("{t}")),
        ("mirex.txt", lines("{t}").replace("\n", "\t")),
        ("decimal-comma.txt", lines("{t}", ",")),
        ("nothing.csv", lines("{t},")),
        ("nan.txt", lines("{t} NaN")),
        ("none.jams", of_values([None] * len(TIMES))),
        ("nan.jams", of_values([float("nan")] * len(TIMES))),
        ("dict.jams", of_values([{"position": None}] * len(TIMES))),
        ("some.jams", of_values([1, None] * 60)),
    ],
)
def test_positions_that_are_not_known_give_no_downbeats(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    beats, downbeats = read_beats(tmp_path / name)
    assert np.allclose(beats, TIMES)
    assert downbeats is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (lines("{ms}\t{place}"), "500 s apart"),
        (lines("{cs}\t{place}"), "50 s apart"),
        ("".join(f"{t / 60}\n" for t in TIMES), "s apart"),
        (lines("{place}\t{t}"), "do not rise at beat 5"),
        ("".join(f"{t} 1\n" for t in TIMES[::-1]), "do not rise at beat 2"),
        ("1.0 1\n1.0 2\n", "do not rise"),
        (lines("{t}\t5"), "no positions in bars"),
        ("".join(f"{t} {i + 1}\n" for i, t in enumerate(TIMES)), "no positions in bars"),
        (lines("{t}\t{t}"), "no positions in bars"),
        ("".join(f"{t} {i % 2}\n" for i, t in enumerate(TIMES)), "bars of two"),
        ("0.5 1.2\n1.0 2.1\n1.5 1.1\n", "its numbers of bars fall"),
        (lines("{t}\tNew Point"), "'New Point' is no position"),
        (lines("{t},New Point"), "'New Point' is no position"),
        (lines("{t}\t-1"), "'-1' is no position"),
        ("one,two\nthree,four\n", "could not convert"),
        ("nan\t1\n", "not finite, or below zero"),
        ("-1\t1\n0\t2\n", "not finite, or below zero"),
        ("inf\t1\n", "not finite, or below zero"),
    ],
)
def test_what_is_not_understood_is_refused_and_never_scored(tmp_path, text, why):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=why) as caught:
        read_beats(tmp_path / "a.txt")
    assert "a.txt" in caught.value.message


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"annotations": 3}', '{"annotations": []}', '{"annotations": [{"namespace": "chord"}]}',
     of_values(["x"] * 4), of_values([[1]] * 4), '{"annotations": [{"namespace": "beat", "data": [{"time": null}]}]}',
     "[" * 100_000],
)  # fmt: skip
def test_jams_without_beats_is_refused(tmp_path, text):
    (tmp_path / "a.jams").write_text(text)
    with pytest.raises(DataError, match=r"a\.jams"):
        read_beats(tmp_path / "a.jams")


def test_beats_without_positions_have_no_downbeat_score(tmp_path):
    for side in ("found", "true"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "a.beats").write_text("".join(f"{t}\n" for t in TIMES))
    (tmp_path / "found/b.beats").write_text("".join(f"{t}\t{p}\n" for t, p in BARS))
    (tmp_path / "true/b.csv").write_text("".join(f"{t},{p}\n" for t, p in BARS))
    scores = evaluate_beats(tmp_path / "found", tmp_path / "true")
    assert (scores["n"], scores["n_downbeats"]) == (2, 1)
    assert scores["beats"] == scores["downbeats"] == dict.fromkeys(METRICS, 1.0)


def test_a_reference_that_holds_nothing_to_score_is_left_out(tmp_path):
    """Short ones, empty ones, and those without a downbeat: none may pull a mean down."""
    (tmp_path / "found").mkdir()
    (tmp_path / "true").mkdir()
    ours = lines("{t}\t{place}")
    true = {"whole": ours, "short": "0.5\t1\n1.0\t2\n", "empty": "", "no-bars": lines("{t} 0"),
            "one-bar": "".join(f"{t}\t{min(i + 1, 32)}\n" for i, t in enumerate(TIMES[:32]))}  # fmt: skip
    for name, text in true.items():
        (tmp_path / f"found/{name}.beats").write_text(ours)
        (tmp_path / f"true/{name}.txt").write_text(text)
    scores = evaluate_beats(tmp_path / "found", tmp_path / "true")
    assert [one["id"] for one in scores["left_out"]] == ["empty", "short"]
    assert (scores["n"], scores["n_downbeats"]) == (3, 1)
    assert scores["downbeats"]["f_measure"] == 1
    (tmp_path / "found/whole.beats").write_text("")  # silence: an estimate without beats is wrong
    assert evaluate_beats(tmp_path / "found/whole.beats", tmp_path / "true/whole.txt")["beats"]["f_measure"] == 0
    with pytest.raises(DataError, match="has a beat after 5 s"):
        evaluate_beats(tmp_path / "found/short.beats", tmp_path / "true/short.txt")


def test_what_is_no_reference_is_passed_over(tmp_path):
    for side in ("found", "true"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "a.beats").write_text(lines("{t}\t{place}"))
    litter = {"README.txt": "Beats of a\nby hand\n", "LICENSE.txt": "MIT", "._a.beats": "\0\1", ".b.txt": "1",
              "package.json": "{}", "titles.csv": "id,title\na,Song 1\n", "notes.md": "x"}  # fmt: skip
    for name, text in litter.items():
        (tmp_path / "true" / name).write_text(text)
    (tmp_path / "true/__MACOSX").mkdir()
    (tmp_path / "true/__MACOSX/._a.beats").write_text("x")
    assert evaluate_beats(tmp_path / "found", tmp_path / "true")["n"] == 1


def test_a_reference_without_estimate_is_named(tmp_path):
    for side in ("found", "true"):
        (tmp_path / side).mkdir()
    (tmp_path / "true/b.beats").write_text("1\t1\n")
    with pytest.raises(DataError, match="the first is b"):
        evaluate_beats(tmp_path / "found", tmp_path / "true")
    with pytest.raises(DataError, match="two files or two folders"):
        evaluate_beats(tmp_path / "found", tmp_path / "true/b.beats")
