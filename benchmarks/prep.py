"""Data preparation against its limits and peers, side by side: `python benchmarks/prep.py [--json FILE]`.

The demo music is brought to 44.1 kHz stereo in three formats first, as collections come; every figure is the
median of rounds that take all contestants in turn, one core each. Times are CPU seconds of the process and its
children, so that what else runs on the machine counts less; throughput is seconds of music in one of them. Reading
shards is timed by the clock. At the end, how pairing for mixup and the list of latents' windows grow with the
collection, on synthetic records (`--only growth` for these alone). What share of a training step reading takes tells
`benchmarks/train.py`.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

from stages import params
from stages.audio import io
from stages.data.collect import make_manifest
from stages.data.manifest import read_manifest
from stages.data.resample import resample_collection
from stages.store import sha256

DEMO = Path(__file__).parents[1] / "data" / "demo"
FORMATS = (".ogg", ".mp3", ".flac")
RATE = 16_000
CLIP_SAMPLES = 163_840


def collection(folder: Path, tracks: int) -> list[Path]:
    paths = []
    for number, source in enumerate(sorted(DEMO.glob("*.ogg"))[:: 108 // tracks][:tracks]):
        samples, rate = soundfile.read(source, dtype="float32")
        wide = soxr.resample(samples, rate, 44_100, "HQ").clip(-1, 1)
        paths.append(folder / f"{number}{FORMATS[number % 3]}")
        with soundfile.SoundFile(paths[-1], "w", 44_100, 2) as file:
            for block in np.array_split(np.stack([wide, 0.9 * wide], axis=1), 60):
                file.write(block)
        paths[-1].with_suffix(".txt").write_text(f"music {number}")
    return paths


def decode(path: Path) -> None:
    with soundfile.SoundFile(path) as file:
        while len(file.read(io.BLOCK_SAMPLES, dtype="float32")):
            pass


def decode_and_soxr(path: Path) -> None:
    with soundfile.SoundFile(path) as file:
        stream = soxr.ResampleStream(file.samplerate, RATE, 1, dtype="float32", quality="VHQ")
        while len(block := file.read(io.BLOCK_SAMPLES, dtype="float32", always_2d=True)):
            stream.resample_chunk((block[:, 0] + block[:, 1]) * np.float32(0.5))
        stream.resample_chunk(np.zeros(0, np.float32), last=True)


def by_librosa(path: Path) -> None:
    import librosa

    samples, _ = librosa.load(path, sr=RATE, mono=True, res_type="soxr_vhq")
    soundfile.write(path.with_name("librosa.wav"), samples.clip(-1, 1), RATE)


def by_ffmpeg(path: Path) -> None:
    """Debian's ffmpeg has soxr; its precision 28 is our quality."""
    filters = f"aresample={RATE}:resampler=soxr:precision=28"
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-threads", "1", "-i", path, "-ac", "1", "-af", filters]
    subprocess.run([*command, "-c:a", "pcm_s16le", path.with_name("ffmpeg.wav")], check=True)


def by_sox(path: Path) -> None:
    command = ["sox", "--single-threaded", "-V1", path, "-b", "16", path.with_name("sox.wav"), "remix", "-"]
    subprocess.run([*command, "rate", "-v", str(RATE)], check=True)


def rounds(contestants: dict[str, Callable[[], None]], count: int) -> dict[str, float]:
    """Median CPU seconds of each, its child processes included, taken in turn; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(count + 1):
        for name, run in contestants.items():
            start = sum(os.times()[:4])
            run()
            if number:
                times[name].append(sum(os.times()[:4]) - start)
    return {name: statistics.median(found) for name, found in times.items()}


def resampling(folder: Path, tracks: int, count: int) -> dict[str, float]:
    paths = collection(folder / "music", tracks)
    seconds = sum(soundfile.info(path).duration for path in paths)
    make_manifest(folder / "music", None, folder / "manifest", params.Manifest())
    listed = read_manifest(folder / "manifest")

    def each(function: Callable[[Path], None]) -> Callable[[], None]:
        return lambda: [function(path) for path in paths] and None

    def ours() -> None:
        shutil.rmtree(folder / "audio", ignore_errors=True)
        resample_collection(listed, folder / "audio", params.Audio(sample_rate=RATE), jobs=1)

    peers = {"librosa": by_librosa, "ffmpeg": by_ffmpeg, "sox": by_sox}
    for program in ("ffmpeg", "sox"):
        if shutil.which(program) is None:
            print(f"{program} is not installed: apt-get install {program}")
            del peers[program]
    scan = {
        "prep manifest": lambda: make_manifest(folder / "music", None, folder / "m", params.Manifest(), jobs=1) and None
    }
    contestants = {"decode alone": each(decode), "decode + soxr alone": each(decode_and_soxr), "prep resample": ours}
    found = rounds(contestants | {name: each(peer) for name, peer in peers.items()} | scan, count)
    print(f"{tracks} tracks, {seconds:.0f} s of 44.1 kHz stereo in {', '.join(FORMATS)}; {count} rounds")
    for name, taken in found.items():
        print(f"  {name:22} {seconds / taken:8.0f} x real time, one core")
    figures = {f"{name}, x real time": seconds / taken for name, taken in found.items()}
    for name in ("decode + soxr alone", *peers):
        figures[f"prep resample against {name}"] = found[name] / found["prep resample"]
        print(f"  prep resample runs at {figures[f'prep resample against {name}']:.2f} of {name}")
    return figures


def memory(folder: Path, minutes: int) -> float:
    """Peak megabytes of a process that resamples one file of that length, its modules included."""
    code = (
        "import resource, sys; from pathlib import Path; from stages import params;"
        "from stages.audio import io; from stages.data.manifest import Track; from stages.data.resample import *;"
        "path = Path(sys.argv[1]); digest = sys.argv[2];"
        "track = Track('a', path.name, 'c', '', '', '', '', 'train', 1.0, 44100, digest);"
        "resample_track(path, path.parent / 'out.wav', track, params.Audio());"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    path, block = folder / "long.wav", (0.1 * np.random.default_rng(0).standard_normal(44_100)).astype(np.float32)
    digest = io.SampleHash(44_100)
    with soundfile.SoundFile(path, "w", 44_100, 1, subtype="PCM_16") as file:
        for _ in range(60 * minutes):
            file.write(io.quantise(block))
            digest.update(block)
    done = subprocess.run(
        [sys.executable, "-c", code, path, digest.hexdigest()], capture_output=True, text=True, check=True
    )
    path.unlink()
    return float(done.stdout)


def shards(folder: Path) -> Path:
    """Shards of what `resampling` made, without beats."""
    from stages.data.shards import write_shards

    audio, rows = read_manifest(folder / "audio"), folder / "rows.jsonl"
    nothing = {"beats": [], "downbeats": [], "metre": None, "tempo_bpm": None, "mean_bpm": None,
               "tempo_confidence": 0.0, "caption": "music"}  # fmt: skip
    rows.write_text("".join(json.dumps({"id": track.id, **nothing}) + "\n" for track in audio.tracks))
    write_shards(folder / "audio" / "manifest.csv", rows, rows, folder / "shards", params.Params(), jobs=1)
    return folder / "shards"


def reading(folder: Path, count: int, cores: set[int]) -> dict[str, float]:
    """Clips a second of a DataLoader over shards in the page cache: by this process, and by a worker on each core."""
    from torch.utils.data import DataLoader

    from stages.data.dataset import ClipDataset, StepBatches, collate
    from stages.data.shards import ShardReader

    dataset, batches = ClipDataset(ShardReader(folder), "train", CLIP_SAMPLES, 0.5), 250
    draws = StepBatches(len(dataset), 16, batches)
    os.sched_setaffinity(0, cores)
    found: dict[str, list[float]] = {"one process": [], f"{len(cores)} workers": []}
    for _ in range(count):
        for name, workers in zip(found, (0, len(cores)), strict=True):
            waiting = iter(DataLoader(dataset, batch_sampler=draws, collate_fn=collate, num_workers=workers))
            next(waiting)  # the workers have started
            start = time.perf_counter()
            clips = 16 * sum(1 for _ in waiting)
            found[name].append(clips / (time.perf_counter() - start))
    for name, rates in found.items():
        print(f"  a DataLoader reads {statistics.median(rates):5.0f} clips of 10.24 s a second, {name}")
    return {f"clips a second, {name}": statistics.median(rates) for name, rates in found.items()}


def growth(folder: Path) -> dict[str, float]:
    """How pairing and the list of windows grow with the number of tracks; CPU seconds, and peak megabytes."""
    figures: dict[str, float] = {}
    for tracks in (1000, 10_000, 100_000):
        found = pairing(tracks) | window_list(folder / str(tracks), tracks)
        for name, figure in found.items():
            print(f"  {tracks:7} tracks, {name:30} {figure:9.4f}")
        figures |= {f"{tracks} tracks, {name}": figure for name, figure in found.items()}
    return figures


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def pairing(tracks: int) -> dict[str, float]:
    """Finding all partners, and drawing some, of synthetic tracks, two to a recording."""
    from stages.beats.align import Candidate, Partners, others, partners

    draw = np.random.default_rng(0)
    listed = [Candidate(bpm, float(round(bpm)), 0.9, 4, 90, 64, recording=str(number // 2))
              for number, bpm in enumerate(draw.uniform(60, 200, tracks).tolist())]  # fmt: skip

    def drawing(found: Partners) -> float:
        firsts = draw.choice(np.flatnonzero(found.counts), 1000).tolist()
        return cpu_seconds(lambda: [found.draw(first, draw) for first in firsts])

    return {
        "pairing for bam and blm, s": cpu_seconds(lambda: partners(listed, params.Tempo())),
        "1000 draws of bam and blm, s": drawing(partners(listed, params.Tempo())),
        "pairing for simple, s": cpu_seconds(lambda: others(listed)),
        "1000 draws of simple, s": drawing(others(listed)),
    }


def window_list(folder: Path, tracks: int) -> dict[str, float]:
    """Reading the list of latents' windows, of tracks of three minutes: 34 on the grid and 64 on downbeats each."""
    from stages.ldm.latents import LatentReader

    write_window_list(folder, tracks)
    taken = cpu_seconds(lambda: LatentReader(folder))
    tracemalloc.start()
    len(LatentReader(folder))
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return {"latent index, s": taken, "latent index, peak MB": peak}


def write_window_list(folder: Path, tracks: int, grid: int = 34, downbeats: int = 64, tracks_a_shard: int = 44) -> None:
    """What `prep latents` leaves, its parts empty."""
    from stages.ldm.latents import INDEX, SCHEMA, WINDOW, WINDOWS

    folder.mkdir()
    windows = np.zeros(tracks * (grid + downbeats), WINDOW)
    windows["track"] = np.repeat(np.arange(tracks), grid + downbeats)
    windows["on_grid"] = np.tile(np.arange(grid + downbeats) < grid, tracks)
    np.save(folder / WINDOWS, windows)
    parts = []
    for number, first in enumerate(range(0, tracks, tracks_a_shard)):
        name = f"latents-{number:05d}.h5"
        (folder / name).touch()
        own = min(tracks_a_shard, tracks - first) * (grid + downbeats)
        parts.append({"file": name, "bytes": 0, "key": "", "windows": own})
    head = {"schema": SCHEMA, "scale": 1.0, "windows_sha256": sha256(folder / WINDOWS)}
    (folder / INDEX).write_text(json.dumps(head | {"parts": parts}))


def sound(folder: Path, tracks: int, count: int, cores: set[int]) -> dict[str, float]:
    (folder / "music").mkdir()
    figures = resampling(folder, tracks, count)
    for minutes in (10, 60, 180):
        figures[f"peak MB, {minutes} min"] = memory(folder, minutes)
        print(f"  resampling a file of {minutes:3} min takes {figures[f'peak MB, {minutes} min']:.0f} MB at most")
    return figures | reading(shards(folder), count, cores)


def near_duplicates(sizes: Sequence[int] = (1_000, 10_000, 100_000)) -> dict[str, float]:
    """Seconds, on all cores, to find the copies among so many synthetic sketches of a minute; every tenth is one."""
    from stages.data.near_duplicates import BANDS, RATE, SECONDS, find_pairs

    draw, figures = np.random.default_rng(0), {}
    steps = draw.normal(0, 6, (max(sizes), 3, BANDS)).astype(np.float32)
    wave = np.sin(np.arange(SECONDS * RATE)[:, None] * np.array([0.05, 0.11, 0.31]))
    for size in sizes:
        noisy = (3 * wave @ steps[i] + draw.normal(0, 12, (len(wave), BANDS)) for i in range(size))
        sketches = [np.clip(levels, -128, 127).astype(np.int8) for levels in noisy]
        for i in range(9, size, 10):
            sketches[i] = sketches[i - 5][8:]  # two seconds later
        start = time.perf_counter()
        found = find_pairs(sketches, 0.75)
        figures[f"near duplicates of {size} tracks, seconds"] = time.perf_counter() - start
        hit = len({(i - 5, i) for i in range(9, size, 10)} & {(pair.first, pair.second) for pair in found})
        print(f"  near duplicates of {size:7} tracks: {time.perf_counter() - start:6.1f} s; "
              f"{hit} of {size // 10} copies found")  # fmt: skip
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--tracks", type=int, default=18)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["growth"])
    options = parser.parse_args()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # one core for everybody, children included
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    print(f"{model or platform.processor()}, one core; load {os.getloadavg()[0]:.1f} before")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {} if options.only else sound(folder, options.tracks, options.rounds, cores)
        figures |= growth(folder)
    figures |= near_duplicates()
    print(f"load {os.getloadavg()[0]:.1f} after")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
