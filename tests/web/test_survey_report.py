"""`eval listen report` and `export` against what listeners did, worked out anew: the model behind each clip is told by
its sound alone, and every statistic by loops over its definition."""

import csv
import itertools
import json
import sys

import numpy as np
import pytest
import soundfile
from scipy.stats import bootstrap

pytest.importorskip("fastapi", reason="pip install 'musicldm[web]'")

from musicldm_cli import app
from stages.web import survey_store
from stages.web.survey import open_survey
from tests.web.conftest import MODELS, SECONDS, Clock

RATERS, GROUPS = 6, 3
SCALES = ("quality", "relevance", "musicality")
PAIRS = list(itertools.combinations(MODELS, 2))


@pytest.fixture(scope="module")
def originals(folders):
    """Samples by (caption, model), as `generate` left them."""
    found = {}
    for folder in folders:
        for line in (folder / "manifest.jsonl").read_text().splitlines():
            row = json.loads(line)
            found[row["prompt"], folder.name] = soundfile.read(folder / row["file"])[0][: int(SECONDS * 16_000)]
    return found


@pytest.fixture(scope="module")
def survey(folders, originals, tmp_path_factory):
    """A folder with answers of RATERS (the last one only finished one group), and each answer as its listener knows
    it: (rater, caption, model by ear, scale, value, finished)."""
    work = tmp_path_factory.mktemp("report")
    clock, patch, given = Clock(), pytest.MonkeyPatch(), []
    patch.setattr(survey_store, "time", clock)
    store, _ = open_survey(folders, GROUPS, 10, 0, work / "work" / "listening")
    draw = np.random.default_rng(5)
    for rater in range(RATERS):
        participant = store.participant(store.enter(f"{rater:032d}", "25-34", "I listen to music only"))
        for place in range(1, GROUPS + 1):
            finished = rater < RATERS - 1 or place == 1
            caption, slots = store.group(participant, place)
            for slot in slots:
                heard = soundfile.read(store.fetched(participant, place, slot.position))[0]
                model = max(MODELS, key=lambda m: likeness(heard, originals[caption, m]))
                assert likeness(heard, originals[caption, model]) > 0.8
                clock.sleep(SECONDS)
                store.heard(participant, place, slot.position)
                for k, scale in enumerate(SCALES):
                    value = int(np.clip(round(draw.normal(2.5 + 0.8 * MODELS.index(model) - 0.4 * k, 1)), 1, 5))
                    store.rate(participant, place, slot.position, scale, value)
                    given.append((rater, caption, model, scale, value, finished))
            if finished:
                store.finish(participant, place)
    store.close()
    patch.undo()
    return work, given


def likeness(heard, original):
    return abs(np.corrcoef(heard, original)[0, 1])


@pytest.fixture
def call(survey, monkeypatch, capsys):
    def run(*arguments, mode=("--json",)):
        monkeypatch.chdir(survey[0])
        monkeypatch.setattr(sys, "argv", ["musicldm", *mode, "eval", "listen", *arguments])
        with pytest.raises(SystemExit) as caught:
            app.main()
        assert caught.value.code == 0
        out = capsys.readouterr().out
        return json.loads(out) if mode else out

    return run


def values(given, scale, model):
    """{(rater, caption): value} of finished groups."""
    return {row[:2]: row[4] for row in given if row[2:4] == (model, scale) and row[5]}


def test_export_is_what_listeners_said(survey, call):
    work, given = survey
    found = call("export")
    assert found["answers"] == len(given) == RATERS * GROUPS * len(MODELS) * len(SCALES)
    rows = json.loads((work / "work/metrics/listening/answers.json").read_text())
    keys = ("participant", "caption", "model", "scale", "value", "group_finished")
    assert sorted(tuple(row[key] for key in keys) for row in rows) == sorted(given)
    with (work / "work/metrics/listening/answers.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert table == [{key: str(value) for key, value in row.items()} for row in rows]


def test_report_is_what_the_definitions_give(survey, call):
    work, given = survey
    result = call("report", "-S", "evaluate.bootstrap=4000")
    assert (result["n_raters"], result["survey"]) == (RATERS, {"began": 6, "finished": 5, "answers": len(given)})
    for scale, model in itertools.product(SCALES, MODELS):
        check_mean(result["means"][scale][model], values(given, scale, model))
    tests = [(scale, *pair) for scale in SCALES for pair in PAIRS]
    assert [(p["scale"], p["first"], p["second"]) for p in result["pairs"]] == tests
    expected = [flips(values(given, s, a), values(given, s, b)) for s, a, b in tests]
    assert [(p["difference"], p["p"]) for p in result["pairs"]] == [pytest.approx(pair) for pair in expected]
    assert [p["p_holm"] for p in result["pairs"]] == pytest.approx(step_down([p for _, p in expected]))
    assert 0 < min(p["p_holm"] for p in result["pairs"]) < 1
    for scale in SCALES:
        alpha = result["agreement"][scale]["krippendorff_alpha_ordinal"]
        assert alpha == pytest.approx(ordinal_alpha([values(given, scale, m) for m in MODELS]))
    check_table(work, given)
    text = call("report", "-S", "evaluate.bootstrap=4000", mode=())
    figure = result["means"]["quality"][MODELS[0]]
    row = next(line for line in text.splitlines() if line.strip().startswith(f"{MODELS[0]} "))
    assert row.split()[:4] == [MODELS[0], f"{figure['value']:.1f}", f"[{figure['low']:.1f},", f"{figure['high']:.1f}]"]
    assert row.endswith(f"n = {figure['n']} ratings of {RATERS} raters")
    assert "6 participants began, 5 finished." in text


def check_mean(figure, found):
    """The mean of all ratings; its interval is scipy's for a ratio of sums over raters, within its own noise."""
    assert figure["n"] == len(found)
    assert figure["value"] == pytest.approx(sum(found.values()) / len(found))
    sums = [sum(v for (r, _), v in found.items() if r == rater) for rater in range(RATERS)]
    counts = [sum(r == rater for r, _ in found) for rater in range(RATERS)]
    interval = bootstrap(
        (sums, counts), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True, method="percentile",
        n_resamples=4000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert (figure["low"], figure["high"]) == pytest.approx(tuple(interval), abs=0.06)


def flips(first, second):
    """Mean of the raters' mean differences, and the share of all sign patterns that are as extreme."""
    means = []
    for rater in range(RATERS):
        own = [first[key] - second[key] for key in first if key[0] == rater]
        means.append(sum(own) / len(own))
    patterns = [abs(sum(s * m for s, m in zip(signs, means, strict=True)))
                for signs in itertools.product((1, -1), repeat=RATERS)]  # fmt: skip
    extreme = sum(value >= abs(sum(means)) - 1e-9 for value in patterns)
    return sum(means) / RATERS, extreme / len(patterns)


def step_down(p):
    """Holm: the i-th smallest of m times m - i, never less than one before it."""
    corrected, highest = {}, 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = corrected[i] = min(1.0, max(highest, p[i] * (len(p) - rank)))
    return [corrected[i] for i in range(len(p))]


def ordinal_alpha(by_model):
    """1 - observed / expected disagreement over all pairs of ratings of one clip, and of all clips (Krippendorff)."""
    units = {}
    for model, found in enumerate(by_model):
        for (_, caption), value in found.items():
            units.setdefault((caption, model), []).append(value)
    units = [u for u in units.values() if len(u) > 1]
    everything = [v for u in units for v in u]
    counts = {v: everything.count(v) for v in range(1, 6)}

    def distance(a, b):
        low, high = sorted((a, b))
        return (sum(counts[v] for v in range(low, high + 1)) - (counts[a] + counts[b]) / 2) ** 2

    observed = sum(sum(distance(a, b) for a, b in itertools.permutations(u, 2)) / (len(u) - 1) for u in units)
    expected = sum(distance(a, b) for a, b in itertools.permutations(everything, 2)) / (len(everything) - 1)
    return 1 - observed / expected


def check_table(work, given):
    """The paper's columns, in its order, and two digits; the CSV has the intervals too."""
    folder = work / "work/metrics/listening"
    lines = (folder / "table.md").read_text().splitlines()
    assert lines[0] == "| Model | Quality ↑ | Relevance ↑ | Musicality ↑ |"
    for model, line in zip(MODELS, lines[2:], strict=True):
        means = [np.mean(list(values(given, scale, model).values())) for scale in SCALES]
        assert line == f"| {model} | {' | '.join(f'{mean:.2f}' for mean in means)} |"
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == list(MODELS)
    for row, scale in itertools.product(rows, SCALES):
        found = list(values(given, scale, row["model"]).values())
        assert float(row[scale]) == pytest.approx(np.mean(found))
        assert float(row[f"{scale}_low"]) < np.mean(found) < float(row[f"{scale}_high"])
        assert int(row[f"{scale}_n"]) == len(found)
    assert r"MusicLDM & " in (folder / "table.tex").read_text()
