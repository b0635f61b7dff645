"""Zero-shot layouts, the retrieval baseline's figures, tables of several runs, and the grid's dvc file."""

import csv
import json
import shlex

import numpy as np
import pytest
import scipy.stats
import soundfile
import torch
import yaml

from stages import params as parameters
from stages.errors import DataError
from stages.evaluate import table, zeroshot
from stages.params import Evaluate
from stages.versions import VERSIONS
from tests import ROOT
from tests.test_dvc import stage_commands, tracked_params

RATE = 16_000
GRID = yaml.safe_load((ROOT / "grid" / "dvc.yaml").read_text())


class Oracle:
    """A CLAP that hears a clip's pitch and reads the class names low, mid, high in a prompt."""

    words = ("low", "mid", "high")

    def embed_text(self, prompts):
        return torch.tensor([[float(word in prompt) for word in self.words] for prompt in prompts])

    def embed_audio(self, waveform, rate):
        hertz = np.abs(np.fft.rfft(waveform[0].numpy())).argmax() * rate / waveform.shape[1]
        return torch.nn.functional.one_hot(torch.tensor(int(np.searchsorted([300, 1000], hertz))), 3).float()[None]


def tone(path, hertz):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE), RATE)


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


CLIPS = [("low", 200), ("mid", 500), ("high", 2000), ("high", 200)]  # the last one sounds like another class


def esc50(folder):
    for i, (_, hertz) in enumerate(CLIPS):
        tone(folder / "audio" / f"{i}.wav", hertz)
    rows = [[f"{i}.wav", 1 + i % 2, 0, label] for i, (label, _) in enumerate(CLIPS)]
    write_rows(folder / "meta" / "esc50.csv", [["filename", "fold", "target", "category"], *rows])


def urbansound8k(folder):
    for i, (_, hertz) in enumerate(CLIPS):
        tone(folder / "audio" / f"fold{1 + i % 2}" / f"{i}.wav", hertz)
    rows = [[f"{i}.wav", 1 + i % 2, label] for i, (label, _) in enumerate(CLIPS)]
    write_rows(folder / "metadata" / "UrbanSound8K.csv", [["slice_file_name", "fold", "class"], *rows])


def vggsound(folder):
    for i, (_, hertz) in enumerate(CLIPS):
        tone(folder / "video" / f"id{i}_{30 + i:06d}.wav", hertz)
    rows = [[f"id{i}", 30 + i, label, "test"] for i, (label, _) in enumerate(CLIPS)]
    write_rows(folder / "vggsound.csv", [*rows, ["gone", 1, "low", "test"], ["other", 2, "mid", "train"]])


def gtzan(folder):
    for i, (label, hertz) in enumerate(CLIPS):
        tone(folder / "genres" / label / f"{label}.{i:05d}.wav", hertz)


@pytest.mark.parametrize("make", [esc50, urbansound8k, vggsound, gtzan])
def test_every_layout_is_recognised_and_scored(make, tmp_path):
    make(tmp_path)
    assert zeroshot.detect(tmp_path) == make.__name__
    found, rows = zeroshot.evaluate_zeroshot(tmp_path, make.__name__, Oracle(), "oracle", Evaluate(bootstrap=20))
    assert found["accuracy"]["value"] == 0.75
    assert found["accuracy"]["n"] == len(rows) == 4
    assert found["class_accuracy"] == {"high": 0.5, "low": 1.0, "mid": 1.0}
    wrong = next(row for row in rows if row["label"] != row["predicted"])
    assert found["map@10"]["value"] == pytest.approx((3 + 1 / wrong["rank"]) / 4)
    folds = {"1": 1.0, "2": 0.5} if make in (esc50, urbansound8k) else None
    assert found.get("fold_accuracy") == folds
    assert len(found["warnings"]) == (make is vggsound)


def test_folders_of_no_layout_and_tables_without_clips_are_told(tmp_path):
    with pytest.raises(DataError, match="layout of none"):
        zeroshot.detect(tmp_path)
    write_rows(tmp_path / "meta" / "esc50.csv", [["filename", "fold", "category"], ["a.wav", 1, "low"]])
    with pytest.raises(DataError, match="None of the 1 clips"):
        zeroshot.evaluate_zeroshot(tmp_path, "esc50", Oracle(), "oracle", Evaluate())
    write_rows(tmp_path / "meta" / "esc50.csv", [["filename"], ["a.wav"]])
    with pytest.raises(DataError, match="needs the columns"):
        zeroshot.evaluate_zeroshot(tmp_path, "esc50", Oracle(), "oracle", Evaluate())


def run_folder(folder, shift, backbone="musicnn"):
    generator = np.random.default_rng(0)
    own = generator.normal(size=12) + shift * (1 + 0.1 * np.random.default_rng(int(10 * shift)).normal(size=12))
    common = {"backbone": backbone, "preprocessing": "none"}

    def figure(value):
        return {"value": value, "low": value - 1, "high": value + 1, "n": 12}

    metrics = {
        "quality": {"fd": figure(10 + shift), "kid": figure(0.1), "is_softmax": None, "kl_softmax": figure(2.0)},
        "relevance": {"text_audio_similarity": figure(float(own.mean())), "test_set_reference": figure(0.5)},
        "novelty": {"generated": {"sim_aa@0.9": figure(0.25)}},
    }
    for kind, found in metrics.items():
        (folder / kind).mkdir(parents=True)
        (folder / kind / "metrics.json").write_text(json.dumps(common | found))
    rows = [["generated", f"p{i}", value] for i, value in enumerate(own)] + [["test_set", "p0", 9.0]]
    write_rows(folder / "relevance" / "prompts.csv", [["set", "id", "similarity"], *rows])
    write_rows(folder / "novelty" / "nearest.csv", [["set", "id", "similarity"], *rows])
    return own


def test_tables_have_ours_means_over_seeds_and_theirs_marked(tmp_path):
    first = run_folder(tmp_path / "runs" / "plain-0", 0.0)
    run_folder(tmp_path / "runs" / "blm-0", 1.0)
    run_folder(tmp_path / "runs" / "blm-1", 2.0)
    result = table.write_tables(tmp_path / "runs", tmp_path / "out")
    assert (result["runs"], result["variants"], result["warnings"]) == (3, ["blm", "plain"], [])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"table{n}.{s}" for n in (1, 2) for s in ("md", "csv", "tex")} | {
        "significance.csv", "figure3-text.png", "figure3-audio.png"}  # fmt: skip
    text = (tmp_path / "out" / "table1.md").read_text()
    assert "| blm | 2 | 12 | 11.50 ± 0.71 |" in text
    assert "| plain | 1 | 12 | 10.0 [9.0, 11.0] |" in text
    assert text.index("Theirs") < text.index("| MusicLDM, BLM (paper) | 24.95 | 2.31 | 1.79 | 3.4 |")
    assert "not comparable with ours" in text
    assert "test set (reference)" in (tmp_path / "out" / "table2.md").read_text()
    assert r"SIM\_AA@0.9 $\downarrow$" in (tmp_path / "out" / "table2.tex").read_text()
    with (tmp_path / "out" / "table1.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0][:5] == ["source", "system", "seeds", "n", "FD"]  # without arrows, for programs
    assert {row[0].split(" (")[0] for row in rows} == {"source", "ours", "paper"}
    assert len([row for row in rows if row[0] == "paper"]) == 11
    test = result["significance"][0]
    seconds = [table.scores(run, "relevance/prompts.csv") for run in table.read_runs(tmp_path / "runs")[:2]]
    mean = np.array([np.mean([one[f"p{i}"] for one in seconds]) for i in range(12)])
    assert test["p"] == pytest.approx(scipy.stats.wilcoxon(first, mean).pvalue)
    assert (test["first"], test["second"], test["n"]) == ("blm", "plain", 12)


def test_runs_of_different_networks_are_warned_of_and_no_runs_refused(tmp_path):
    run_folder(tmp_path / "runs" / "a-0", 0.0)
    run_folder(tmp_path / "runs" / "b-0", 0.0, backbone="cnn14")
    result = table.write_tables(tmp_path / "runs", tmp_path / "out")
    assert len(result["warnings"]) == 3
    assert result["significance"][0]["p"] == 1.0  # equal runs
    with pytest.raises(DataError, match="no evaluated runs"):
        table.read_runs(tmp_path / "nothing")


def grid_commands():
    for name, stage in GRID["stages"].items():
        for line in stage_commands(stage):
            yield name, stage.get("do", stage), line


def test_the_grid_types_our_commands():
    from typer.main import get_command

    from musicldm_cli.app import app

    for _, _, line in grid_commands():
        program, *words = shlex.split(line)
        assert program == "musicldm"
        command = get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(command.name, list(words), resilient_parsing=True)
    assert len(GRID["stages"]) == 9
    for stage in GRID["stages"].values():
        assert stage.get("do", stage)["wdir"] == ".."


def test_the_grid_has_every_variant_of_the_tables_and_real_params():
    variants = GRID["stages"]["generate"]["matrix"]["variant"]
    mixups = GRID["stages"]["train"]["matrix"]["mixup"]
    assert set(variants) == {*mixups, *(f"{m}_finetuned" for m in mixups), "only_texts"}
    assert GRID["stages"]["evaluate"]["matrix"]["variant"] == variants
    everything = parameters.preset("tiny").model_dump()
    for _, body, _ in grid_commands():
        keys, versions = tracked_params(body)
        assert set(versions) <= VERSIONS.keys() and len(versions) == 1
        for key in keys:
            section, _, rest = key.partition(".")
            assert section in everything and (not rest or rest in everything[section])
    root = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert root.keys().isdisjoint({"table", "train"})
