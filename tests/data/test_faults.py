"""Killed, without space, without permission, or run twice: nothing half-made under a final name, nothing lost."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from stages import params
from stages.audio import io
from stages.data import resample, shard_writer
from stages.data.collect import make_manifest
from stages.data.manifest import read_manifest
from stages.data.resample import resample_collection
from stages.data.shards import ShardReader, verify, write_shards
from stages.errors import DataError, DiskFullError
from stages.params import resolve

PARAMS = resolve({"preset": "tiny", "shards": {"target_megabytes": 1}})
TRACKS, SECONDS = 8, 12.0
KILLS = 20
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__])


def make_audio(work: Path) -> None:
    collection = read_manifest(work / "manifest")
    resample_collection(collection, work / "audio", PARAMS.audio, jobs=1)  # several at once: the command's test


def make_shards(work: Path) -> None:
    write_shards(work / "audio" / "manifest.csv", work / "beats" / "beats.jsonl", work / "captions" / "captions.jsonl",
                 work / "shards", PARAMS, jobs=1)  # fmt: skip


STAGES: dict[str, Callable[[Path], None]] = {"audio": make_audio, "shards": make_shards}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with manifest, audio, beats, captions and shards of noise at 44.1 kHz."""
    work = tmp_path_factory.mktemp("whole")
    draw = np.random.default_rng(0)
    for number in range(TRACKS):
        noise = (0.1 * draw.standard_normal(round(SECONDS * 44_100))).clip(-1, 1).astype(np.float32)
        io.write(work / "music" / f"{number}.flac", noise, 44_100)
        (work / "music" / f"{number}.txt").write_text(f"noise {number}")
    make_manifest(work / "music", None, work / "manifest", params.Manifest())
    make_audio(work)
    nothing = {"beats": [], "downbeats": [], "metre": None, "tempo_bpm": None, "mean_bpm": None,
               "tempo_confidence": 0.0, "caption": "noise"}  # fmt: skip
    rows = "".join(json.dumps({"id": track.id, **nothing}) + "\n" for track in read_manifest(work / "audio").tracks)
    for name in ("beats", "captions"):
        (work / name).mkdir()
        (work / name / f"{name}.jsonl").write_text(rows)
    make_shards(work)
    assert len(list((work / "shards").glob("*.h5"))) >= 4
    return work


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def beginning(work: Path, target: Path, stage: str) -> Path:
    """A copy of all that `stage` starts from."""
    names = ["music", "manifest", *(["audio", "beats", "captions"] if stage == "shards" else [])]
    for name in names:
        shutil.copytree(work / name, target / name, copy_function=os.link)
    return target


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_moment_a_second_run_makes_the_same(work: Path, tmp_path: Path, stage: str) -> None:
    run, whole, draw = STAGES[stage], contents(work / stage), random.Random(stage)
    started = time.monotonic()
    run(beginning(work, tmp_path / "timed", stage))
    duration = time.monotonic() - started
    amid = 0
    for number in range(KILLS):
        mine = beginning(work, tmp_path / str(number), stage)
        victim = processes.Process(target=run, args=(mine,))
        victim.start()
        while not (mine / f".{stage}.lock").exists() and victim.is_alive():
            time.sleep(0.001)
        time.sleep(draw.uniform(0, duration))
        victim.kill()
        victim.join()
        left = contents(mine / stage) if (mine / stage).exists() else {}
        assert all(whole[name] == data for name, data in left.items() if ".tmp-" not in name), "half under its name"
        amid += victim.exitcode == -signal.SIGKILL and 0 < len(left) < len(whole)
        run(mine)
        assert contents(mine / stage) == whole
        shutil.rmtree(mine)
    assert amid >= KILLS // 4, "too few were killed in the middle of their work"


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_killed_run_left_is_removed(work: Path, tmp_path: Path, stage: str) -> None:
    """Also beside the manifest or index, whose writing takes too short a time for a kill to meet it."""
    mine = beginning(work, tmp_path, stage)
    run, parts = STAGES[stage], [mine / stage, *([mine / stage / "tracks"] if stage == "audio" else [])]
    for part in parts:
        part.mkdir()
        (part / ".tmp-left.csv").write_text("id,path")
    run(mine)
    assert contents(mine / stage) == contents(work / stage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_command_killed_at_any_moment_and_run_again(work: Path, tmp_path: Path, stage: str) -> None:
    """The whole process group, or its parent alone, whose workers then live a little longer."""
    command = [sys.executable, "-m", "musicldm_cli", "--work", ".", "prep", {"audio": "resample"}.get(stage, stage)]
    command += ["-S", "preset=tiny", "-S", "shards.target_megabytes=1"]
    whole, draw = contents(work / stage), random.Random(stage)
    started = time.monotonic()
    subprocess.run(command, cwd=beginning(work, tmp_path / "timed", stage), check=True, capture_output=True)
    duration = time.monotonic() - started
    assert contents(tmp_path / "timed" / stage) == whole
    for number in range(KILLS):
        mine = beginning(work, tmp_path / str(number), stage)
        victim = subprocess.Popen(command, cwd=mine, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                  start_new_session=True)  # fmt: skip
        time.sleep(draw.uniform(0.3, 1) * duration)
        if number % 2:
            os.killpg(victim.pid, signal.SIGKILL)
        victim.kill()
        victim.wait()
        again = subprocess.run(command, cwd=mine, check=False, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert contents(mine / stage) == whole
        shutil.rmtree(mine)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a tmpfs of so many bytes, or gives the mounted one that size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: int) -> Path:
        options = f"size={size}" if not folder.is_mount() else f"remount,size={size}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a small disk needs root")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def test_too_small_a_disk_is_told_before_and_while_resampling(
    work: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(1_500_000)
    out, collection = disk / "audio", read_manifest(work / "manifest")
    command = [sys.executable, "-m", "musicldm_cli", "--json", "prep", "resample", str(work / "manifest")]
    done = subprocess.run([*command, "--out", str(out)], cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    needed = resample.BYTES_PER_SAMPLE * 16_000 * SECONDS * TRACKS / 1e6
    assert f"needs about {needed:.1f} MB, and its disk has 1.5 MB left" in json.loads(done.stdout)["error"]["message"]
    assert list((out / "tracks").iterdir()) == []

    monkeypatch.setattr(resample, "require_space", lambda *_: None)  # as if others took the space in the meantime
    with pytest.raises(DiskFullError, match=r"is full .*What is left needs about \d\.\d MB"):
        resample_collection(collection, out, PARAMS.audio, jobs=2)
    whole = contents(work / "audio")
    left = {name: data for name, data in contents(out).items() if ".tmp-" not in name}  # of the other process
    assert 0 < len(left) < TRACKS
    assert all(whole[name] == data for name, data in left.items())
    small_disk(10_000_000)
    resample_collection(collection, out, PARAMS.audio)
    assert contents(out) == whole


def test_too_small_a_disk_is_told_before_and_while_writing_shards(
    work: Path, small_disk: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = small_disk(1_500_000) / "shards"
    mine = beginning(work, tmp_path / "mine", "shards")
    (mine / "shards").symlink_to(out)
    out.mkdir()
    with pytest.raises(DiskFullError, match=r"needs about 3\.1 MB, and its disk has 1\.5 MB left"):
        make_shards(mine)
    assert list(out.iterdir()) == []
    monkeypatch.setattr(shard_writer, "require_space", lambda *_: None)
    with pytest.raises(DiskFullError, match=r"is full .*What is left needs about \d\.\d MB"):
        make_shards(mine)
    whole, left = contents(work / "shards"), contents(out)
    assert 0 < len(left) < len(whole)
    assert all(whole[name] == data for name, data in left.items())
    small_disk(10_000_000)
    make_shards(mine)
    assert contents(out) == whole


@pytest.mark.parametrize("stage", STAGES)
def test_two_runs_on_one_folder_exclude_each_other(work: Path, tmp_path: Path, stage: str) -> None:
    mine = beginning(work, tmp_path / "mine", stage)
    with FileLock(mine / f".{stage}.lock"), pytest.raises(DataError, match="Another process is at work in"):
        STAGES[stage](mine)
    assert not (mine / stage).exists()
    STAGES[stage](mine)
    assert contents(mine / stage) == contents(work / stage)


def catalogue_as_nobody(folder: Path) -> None:
    """In a process of its own: root may read everything."""
    make_manifest(folder / "music", None, folder / "warm", params.Manifest(), jobs=1)  # imports all that is needed
    os.setegid(65534)
    os.seteuid(65534)
    make_manifest(folder / "music", None, folder / "out", params.Manifest(), jobs=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_read_is_listed(work: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        shutil.copytree(work / "music", folder / "music")
        for closed in ("closed", "listed"):
            (folder / "music" / closed).mkdir()
            shutil.copy(work / "music" / "0.flac", folder / "music" / closed / "in.flac")
        (folder / "music" / "captions.json").write_text('{"listed/in.flac": "noise"}')
        (folder / "music" / "0.flac").chmod(0)
        (folder / "music" / "1.txt").chmod(0)
        (folder / "music" / "closed").chmod(0)
        (folder / "music" / "listed").chmod(0o444)
        folder.chmod(0o777)
        child = processes.Process(target=catalogue_as_nobody, args=(folder,))
        child.start()
        child.join()
        assert child.exitcode == 0
        rejected = (folder / "out" / "rejected.csv").read_text()
        assert len(read_manifest(folder / "out").tracks) == TRACKS - 2
        for path in ("0.flac", "1.flac", "closed", "listed/in.flac"):
            assert any(line.startswith(path) and "Permission denied" in line for line in rejected.splitlines()), path
        (folder / "music" / "closed").chmod(0o755)


def test_names_that_differ_in_case_alone_or_are_of_another_script_come_through_to_the_shards(
    work: Path, tmp_path: Path
) -> None:
    names = ["a.flac", "A.flac", "Песня.flac", "音楽.flac", "🎵.flac"]
    draw = np.random.default_rng(0)
    for name in names:
        noise = (0.1 * draw.standard_normal(24_000)).clip(-1, 1).astype(np.float32)
        io.write(tmp_path / "music" / name, noise, 16_000)
        (tmp_path / "music" / name).with_suffix(".txt").write_text(name, encoding="utf-8")
    make_manifest(tmp_path / "music", None, tmp_path / "manifest", params.Manifest(), jobs=1)
    make_audio(tmp_path)
    ids = [track.id for track in read_manifest(tmp_path / "audio").tracks]
    for name in ("beats", "captions"):
        row = json.loads((work / name / f"{name}.jsonl").read_text().splitlines()[0])
        text = "".join(json.dumps(row | {"id": id_, "caption": id_}) + "\n" for id_ in ids)
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jsonl").write_text(text)
    make_shards(tmp_path)
    assert verify(tmp_path / "shards", jobs=1)["tracks"] == len(names)
    reader = ShardReader(tmp_path / "shards")
    assert {track.caption for track in reader.tracks} == {track.id for track in reader.tracks}
    assert len({track.id.casefold() for track in reader.tracks}) == len(names)
    assert {track.id.rpartition("-")[0] for track in reader.tracks} == {"a", "песня", "音楽", ""}
    resampled = {path.stem for path in (tmp_path / "audio" / "tracks").iterdir()}
    assert resampled == {track.id for track in reader.tracks}
    make_audio(tmp_path)
    assert {path.stem for path in (tmp_path / "audio" / "tracks").iterdir()} == resampled
