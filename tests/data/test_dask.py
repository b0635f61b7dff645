"""A real Dask cluster on this machine: the same bytes as a local run, also when a worker is killed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from stages import params
from stages.audio import io
from stages.data import parallel
from stages.data.collect import make_manifest
from stages.data.manifest import read_manifest
from stages.data.resample import resample_collection
from stages.errors import DataError, MissingDependencyError, UsageError

pytest.importorskip("distributed")
TRACKS = 16
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`dask ...` as a person types it, ended with the test."""
    program = str(Path(sys.executable).with_name("dask"))
    started = subprocess.Popen([program, *arguments], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """The address of a scheduler, and its two workers."""
    folder = str(tmp_path_factory.mktemp("dask"))
    with ExitStack() as stack:
        options = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        scheduler = stack.enter_context(process("scheduler", *options))
        assert scheduler.stderr is not None
        address = next(found[0] for line in scheduler.stderr if (found := re.search(r"tcp://127\.0\.0\.1:\d+", line)))
        worker = ("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", folder)
        yield address, [stack.enter_context(process(*worker)) for _ in range(2)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_worker_changes_nothing(cluster: tuple[str, list[subprocess.Popen[str]]], tmp_path: Path) -> None:
    address, workers = cluster
    draw = np.random.default_rng(0)
    for number in range(TRACKS):
        noise = (0.1 * draw.standard_normal(10 * 44_100)).clip(-1, 1).astype(np.float32)
        io.write(tmp_path / "music" / f"{number}.flac", noise, 44_100)
        (tmp_path / "music" / f"{number}.txt").write_text(f"noise {number}")
    settings = params.Manifest()
    make_manifest(tmp_path / "music", None, tmp_path / "manifest", settings, dask=address)
    make_manifest(tmp_path / "music", None, tmp_path / "local-manifest", settings)
    assert contents(tmp_path / "manifest") == contents(tmp_path / "local-manifest")

    collection = read_manifest(tmp_path / "manifest")
    steps: list[int] = []

    def kill_one(_: str, done: int, total: int) -> None:
        if 3 <= done < total and workers[0].poll() is None:
            workers[0].send_signal(signal.SIGKILL)
            workers[0].wait()
        steps.append(done)

    made = resample_collection(collection, tmp_path / "audio", params.Audio(), None, kill_one, dask=address)
    assert (made.written, steps) == (TRACKS, list(range(TRACKS + 1)))
    assert workers[0].returncode == -signal.SIGKILL
    assert workers[1].poll() is None
    resample_collection(collection, tmp_path / "local", params.Audio())
    assert contents(tmp_path / "audio") == contents(tmp_path / "local")

    (tmp_path / "music" / "0.flac").unlink()
    (tmp_path / "audio" / "tracks" / f"{collection.tracks[0].id}.wav").unlink()
    with pytest.raises(DataError, match=r"0\.flac cannot be opened"):  # errors come back whole
        resample_collection(collection, tmp_path / "audio", params.Audio(), dask=address)


def test_no_scheduler_and_no_dask_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "CONNECT_SECONDS", 0.5)
    with pytest.raises(UsageError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        list(parallel.run_each(time.sleep, [(0,)], dask="tcp://127.0.0.1:9"))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependencyError, match="distributed"):
        list(parallel.run_each(time.sleep, [(0,)], dask="tcp://127.0.0.1:9"))
