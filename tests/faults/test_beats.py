"""Annotations of beats in other conventions, files that are no music or no beats, and tracks too short to mix."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soxr

from stages import params as parameters
from stages.audio import io
from stages.data.manifest import Track, write_manifest
from stages.data.shards import ShardReader, write_shards
from stages.ldm.latents import LatentReader, prepare
from stages.ldm.mixup import Pairs
from stages.store import write_json
from tests.beats.conftest import SAMPLE_RATE, click_track
from tests.ldm.toy import save_untrained

RATE = 16_000
TOO_SHORT = "5 too short for a clip (audio.clip_seconds) after a downbeat"


def scores(output: str) -> list[tuple[list[float], int]]:
    """(F, CMLt, AMLt, Cemgil; N) of each line on beats or downbeats."""
    rows = [line.split()[1:] for line in output.splitlines() if re.match(r"(down)?beats ", line)]
    return [([float(value) for value in row[:-1]], int(row[-1])) for row in rows]


def test_positions_of_other_conventions_are_read_or_not_scored(fault):
    done = fault("beat-annotations").cmd()
    assert done.returncode == 0, done.stderr
    perfect = ([1.0] * 4, 1)
    barbeat, jnan, rwc = ([perfect, perfect], [perfect, ([], 0)], [perfect, perfect])
    assert scores(done.stdout) == [*barbeat, *jnan, *rwc]


def test_litter_is_passed_over_and_bad_files_are_named_at_the_end(fault):
    done = fault("litter").cmd()
    assert re.findall(r"rc=(\d)", done.stdout) == ["0", "4"]
    assert [n for _, n in scores(done.stdout)] == [1, 1]
    assert done.stdout.split()[-1] == "good.beats"
    assert "1 of 2 files could not be tracked" in done.stderr
    assert "broken.wav" in done.stderr
    assert "._good" not in done.stderr


def write_music(folder: Path, seconds: float) -> None:
    """Five tracks of drums at 120 BPM in bars of four, as `prep manifest`, `resample` and `captions` leave them."""
    work, tracks = folder / "work", []
    for number in range(5):
        drums, _ = click_track(120, seconds, start=0.25 + 0.03 * number)
        samples = (0.5 * soxr.resample(drums, SAMPLE_RATE, RATE)).astype(np.float32).clip(-1, 1)
        io.write(folder / f"music/{number}.wav", samples, RATE)
        digest = io.scan(folder / f"music/{number}.wav")[2]
        tracks.append(Track(f"{number}", f"{number}.wav", "drums", f"{number}", "", "", "", "train",
                            len(samples) / RATE, RATE, digest))  # fmt: skip
    for name in ("manifest", "audio"):
        write_manifest(work / name / "manifest.csv", tracks)
        write_json(work / name / "manifest.json", {"schema": 1, "root": str(folder / "music")})
    (work / "captions.jsonl").write_text(
        "".join(json.dumps({"id": track.id, "caption": "drums"}) + "\n" for track in tracks)
    )


def settings(clip_seconds: float) -> parameters.Params:
    raw = {"preset": "tiny", "audio": {"clip_seconds": clip_seconds}, "clap": {"window_seconds": clip_seconds}}
    return parameters.resolve(raw | {"ldm": {"train": {"steps": 1, "warmup_steps": 0, "workers": 0}}})


def write_latents(folder: Path, params: parameters.Params) -> None:
    """What `train clap`, `vae`, `vocoder` and `prep shards`, `latents` leave; the networks are untrained."""
    work = folder / "work"
    write_shards(work / "audio/manifest.csv", work / "beats/beats.jsonl", work / "captions.jsonl", work / "shards",
                 params, jobs=1)  # fmt: skip
    save_untrained(work / "models", params)
    models = work / "models"
    prepare(params, work / "shards", models / "vae", models / "clap", work / "latents")
    (folder / "params.yaml").write_text(json.dumps(params.model_dump(mode="json")))


@pytest.fixture
def short(fault, typed):
    """The work folder of the case."""
    case = fault("short-tracks")
    write_music(case.folder, 10.0)
    (case.folder / "params.yaml").write_text(json.dumps(settings(10.24).model_dump(mode="json")))
    assert typed(case.folder, "prep", "beats", "-j", "1")[0] == 0
    write_latents(case.folder, settings(10.24))
    return case


def test_tracks_too_short_for_a_clip_are_told_as_that(short, typed):
    done = short.cmd()
    assert re.findall(r"rc=(\d)", done.stdout) == ["0", "4"]
    assert "5 of 5 tracks have a tempo that can be trusted" in done.stdout
    assert "0.0% of the 5 training tracks have a partner" in done.stdout
    assert f"Without: {TOO_SHORT}." in done.stdout
    assert f"No two of the 5 training tracks may be mixed by ldm.mixup blm: {TOO_SHORT}." in done.stderr
    for remedy in ("a smaller audio.clip_seconds", "--mixup simple", "--mixup none"):
        assert remedy in done.stderr
    assert "tempo." not in done.stderr
    for scheme in ("simple", "none"):
        assert typed(short.folder, "train", "ldm", "--mixup", scheme, "--out", scheme)[0] == 0
    smaller = settings(5.12)
    _, out, _ = typed(short.folder, "prep", "beats", "-S", "audio.clip_seconds=5.12")
    assert "100.0% of the 5 training tracks" in out
    write_latents(short.folder, smaller)
    work = short.folder / "work"
    assert Pairs(LatentReader(work / "latents"), ShardReader(work / "shards"), smaller).draw([0])


def test_one_downbeat_with_a_clip_after_it_is_enough(typed, tmp_path):
    write_music(tmp_path, 12.0)
    (tmp_path / "params.yaml").write_text("preset: tiny\n")
    code, out, _ = typed(tmp_path, "prep", "beats", "--report", "-j", "1")
    assert code == 0
    assert "100.0% of the 5 training tracks have a partner" in out
    assert "Without" not in out
    assert "work/beats/report.html" in out  # says where the page is
