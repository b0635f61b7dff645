"""The real dvc.yaml, by the real commands, on real music, at toy size."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stages import params
from stages.versions import VERSIONS
from tests import DEMO, ROOT, results, test_dvc

SECONDS = 25
TOY = [
    "manifest.limit=10", "tempo.tolerance=0.4", "tempo.min_confidence=0.2",
    "clap.train.steps=4", "vae.train.steps=4", "vae.adversarial_start=2", "vocoder.train.steps=4",
    "vocoder.adversarial_start=2", "ldm.train.steps=4", "ldm.mixup_bank=4", "generate.steps=3",
    "generate.max_prompts=2", "evaluate.bootstrap=20",
    *(f"{n}.train.{k}" for n in ("clap", "vae", "vocoder", "ldm")
      for k in ("valid_every=2", "checkpoint_every=2", "warmup_steps=1", "workers=0")),
]  # fmt: skip


def repro(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run dvc with this interpreter's `musicldm` first on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["dvc", *arguments], cwd=project, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"dvc {' '.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A git and DVC project with our dvc.yaml, 25 s excerpts of the demo music, and toy numbers."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("dvc.yaml", "versions.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / "params.yaml").write_text(params.to_yaml(params.load(ROOT / "params.yaml", TOY)), encoding="utf-8")
    (folder / "data" / "demo").mkdir(parents=True)
    with (DEMO / "attribution.csv").open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    rows = rows[::9]
    assert len({row["artist"] for row in rows}) >= 5
    for row in rows:
        samples, rate = soundfile.read(DEMO / row["path"], frames=SECONDS * 16_000, dtype="int16")
        row["path"] = row["path"].replace(".ogg", ".flac")
        soundfile.write(folder / "data" / "demo" / row["path"], samples, rate)
    with (folder / "data" / "demo" / "attribution.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(table, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    repro(folder, "init", "-q")
    repro(folder, "repro")
    return folder


def test_every_stage_leaves_its_product(project):
    work = project / "work"
    with (work / "manifest" / "manifest.csv").open(encoding="utf-8") as table:
        splits = {row["id"]: row["split"] for row in csv.DictReader(table)}
    assert len(splits) == 10
    assert set(splits.values()) == {"train", "valid", "test"}
    index = json.loads((work / "shards" / "index.json").read_text())
    assert {t["id"] for shard in index["shards"] for t in shard["tracks"]} == splits.keys()
    for network in ("clap", "vae", "vocoder", "ldm"):
        card = json.loads((work / "models" / network / "musicldm.json").read_text())
        assert card["kind"] == network
        assert card["steps"] == 4
    assert (work / "models" / "ldm" / "model_index.json").exists()


def test_clips_are_whole_and_audible(project):
    lines = (project / "work" / "generated" / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == 2
    for line in map(json.loads, lines):
        samples, rate = soundfile.read(project / "work" / "generated" / line["file"])
        assert (rate, samples.shape) == (16_000, (163_840,))
        assert np.abs(samples).max() < 1.0
        assert samples.std() > 1e-4
        assert line["prompt"]


def test_figures_say_what_they_are(project):
    for name in ("quality", "relevance", "novelty"):
        metrics = json.loads((project / "work" / "metrics" / name / "metrics.json").read_text())
        text = json.dumps(metrics)
        assert '"n' in text.lower()
        assert "backbone" in text
    report = (project / "work" / "report" / "report.html").read_text(encoding="utf-8")
    assert report.count("<audio") >= 2
    for outside in ('src="http', 'href="http://', "@import", "cdn."):
        assert outside not in report


def test_a_second_repro_does_nothing(project):
    done = repro(project, "repro")
    assert "Running stage" not in done.stdout
    assert "up to date" in done.stdout


def test_results_that_moved_have_another_version(project):
    """Of the stages whose numbers are not the recorded ones, those with no such stage before them."""
    found = results.numbers(project / "work")
    if os.environ.get("WRITE_RESULTS"):  # make versions
        record = {name: {"version": VERSIONS[name], "numbers": found[name]} for name in found}
        results.RECORDED.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    recorded = json.loads(results.RECORDED.read_text(encoding="utf-8"))
    assert [*recorded] == test_dvc.NAMES
    moved = {name for name in found if results.differ(found[name], recorded[name]["numbers"])}
    first = {name for name in moved if not moved & test_dvc.upstream(name)}
    unsaid = {name for name in first if recorded[name]["version"] == VERSIONS[name]}
    silent = {name: (recorded[name]["numbers"], found[name]) for name in unsaid}
    assert not silent, "raise their numbers in stages/versions.py, then: make versions"
    assert not moved, "record them: make versions"


def test_a_raised_version_runs_its_stage_again(project):
    file = project / "versions.yaml"
    before = file.read_text()
    file.write_text(before.replace("latents: 1", "latents: 2"))
    try:
        status = json.loads(repro(project, "status", "--json").stdout)
    finally:
        file.write_text(before)
    assert set(status) == {"latents"}


def test_another_mixup_touches_only_the_diffusion(project):
    file = project / "params.yaml"
    before = file.read_text()
    file.write_text(before.replace("mixup: blm", "mixup: bam"))
    try:
        status = json.loads(repro(project, "status", "--json").stdout)
    finally:
        file.write_text(before)
    assert set(status) == {"ldm"}
