"""The grid of tables 1 and 2, really run by `dvc repro`: two variants, the retrieval baseline, an outside system."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages import params as parameters
from tests import DEMO, ROOT
from tests.conftest import CLIP_SECONDS
from tests.data.conftest import _write_collection

TRAIN = ["flare_battle_theme", "flare_cave_theme", "singularity_nebula"]
TEST = [path.stem for path in sorted(DEMO.glob("hyperrogue_*.ogg"))[:7]]  # a paired test needs six prompts
VARIANTS = ["none", "none_finetuned"]
RAW = {
    "preset": "tiny", "audio": {"clip_seconds": CLIP_SECONDS}, "clap": {"window_seconds": CLIP_SECONDS},
    "generate": {"steps": 2}, "evaluate": {"bootstrap": 20},
    "ldm": {"train": {"steps": 2, "batch_size": 2, "warmup_steps": 1}},
}  # fmt: skip


@pytest.fixture(scope="module")
def project(toy_models, tmp_path_factory):
    """What the grid starts from: shards, captions, the three networks; latents are made by the command."""
    from stages.data.shards import write_shards

    folder = tmp_path_factory.mktemp("grid-project")
    work, params = folder / "work", parameters.resolve(RAW)
    (folder / "params.yaml").write_text(parameters.to_yaml(params), encoding="utf-8")
    for name in ("clap", "vae", "vocoder"):
        shutil.copytree(toy_models / name, work / "models" / name)
    _write_collection(work, [*TRAIN, *TEST], seconds=4.0, test=TEST)
    write_shards(work / "audio/manifest.csv", work / "beats/beats.jsonl", work / "captions/captions.jsonl",
                 work / "shards", params)  # fmt: skip
    prompts = [[name.replace("_", "-"), f"A piece called {name}."] for name in TEST]
    outside = work / "grid" / "clips" / "mubert-0"
    outside.mkdir(parents=True)
    for file in (work / "captions" / "prompts.csv", outside / "prompts.csv"):
        with file.open("w", newline="", encoding="utf-8") as table:
            csv.writer(table).writerows([["id", "prompt"], *prompts])
    for number, (name, _) in enumerate(prompts):
        shutil.copy(sorted(DEMO.glob("ufoai_*.ogg"))[number], outside / f"{name}.ogg")
    grid = yaml.safe_load((ROOT / "grid" / "dvc.yaml").read_text())
    (folder / "grid").mkdir()
    shutil.copy(ROOT / "versions.yaml", folder)
    (folder / "grid" / "dvc.yaml").write_text(yaml.safe_dump(smaller(grid)))
    return folder


def smaller(grid: dict) -> dict:
    """The grid itself with fewer variants, and an outside system."""
    grid["vars"] = [{"seeds": [0]}, {"outside": ["mubert-0"]}]
    for stage in grid["stages"].values():
        matrix = stage.get("matrix", {})
        if "mixup" in matrix:
            matrix["mixup"] = ["none"]
        if "variant" in matrix:
            matrix["variant"] = VARIANTS
    return grid


def run(folder: Path, *command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_grid_runs_to_its_tables_and_a_second_time_does_nothing(project):
    run(project, "musicldm", "prep", "latents")
    run(project, "dvc", "init", "-q", "--no-scm")
    run(project / "grid", "dvc", "repro", "table")
    work = project / "work/grid"
    rows = list(csv.reader((work / "table/table1.csv").open(encoding="utf-8")))
    assert [row[1] for row in rows if row[0] == "ours"] == ["mubert", *VARIANTS, "retrieval"]
    assert len([row for row in rows if row[0] == "paper"]) == 11
    text = (work / "table/table2.md").read_text(encoding="utf-8")
    assert "not comparable with ours" in text
    tests = list(csv.DictReader((work / "table/significance.csv").open(encoding="utf-8")))
    assert {(row["first"], row["second"]) for row in tests} >= {("none", "none_finetuned"), ("none", "retrieval")}
    assert {row["n"] for row in tests} == {"7"}
    assert all(0 <= float(row["p"]) <= float(row["p_holm"]) <= 1 for row in tests)
    novel = {name: json.loads((work / "metrics" / f"{name}-0" / "novelty" / "metrics.json").read_text())["generated"]
             for name in ("retrieval", "none", "mubert")}  # fmt: skip
    assert novel["retrieval"]["mean_mel_similarity"]["value"] > 0.9 > novel["mubert"]["mean_mel_similarity"]["value"]
    assert "Running" not in run(project / "grid", "dvc", "repro", "table")
