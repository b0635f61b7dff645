"""1,000 clips against up to a million stored 512-d embeddings: `eval novelty`'s search beside NumPy and FAISS.

    python benchmarks/novelty.py [--json FILE] [--rows N] [--repeats N] [--folder DIR] [--only SIZE]

Each search runs in a process of its own, in alternation, with the files in the page cache. Seconds are medians;
the memory is what the search added to the process at its highest, without the index's own files (RssAnon). The
vectors are made once, in DIR where it is given, and found there again; smaller sizes are their first rows.
All searches find equally near neighbours, or the benchmark fails. FAISS takes part where it is installed. The OpenBLAS
in its wheel (0.3.15) takes processors younger than itself for a Prescott; `faiss` is told which it is
(OPENBLAS_CORETYPE), `faiss-as-is` not.

Then the spectrogram search: 100 clips of 10.2 s against synthetic training tracks of 30 s.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

QUERIES, DIMENSIONS, CLUSTERS = 1000, 512, 2000
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
NAMES = {"single": "float32", "half": "float16"}
CHUNK = 16_384
FAISS_AS_IS_ROWS = 100_000  # more takes minutes
FAISS_CANDIDATES = 4
TARGET_SECONDS, TARGET_BYTES = 5.0, 1e9
TRACKS, CLIPS = (1_000, 10_000, 100_000), 100  # of the spectrogram search
TRACK_FRAMES, CLIP_FRAMES, BANDS = 300, 102, 80


def vectors(rows: int, seed: int) -> np.ndarray:
    """Unit vectors in clusters, as embeddings of music are: any two of a cluster have a cosine of about 0.8."""
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, DIMENSIONS)).astype(np.float32)
    generator = np.random.default_rng(seed)
    found = centres[generator.integers(CLUSTERS, size=rows)]
    found += 0.5 * generator.standard_normal((rows, DIMENSIONS), dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def build(folder: Path, rows: int) -> None:
    """Two index folders of the same vectors, `single` and `half`; what is there is kept."""
    files = [folder / name / "vectors.bin" for name in NAMES]
    if all(
        file.exists() and file.stat().st_size == rows * DIMENSIONS * size
        for file, size in zip(files, (4, 2), strict=True)
    ):
        return
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "frames.bin").write_bytes(bytes(160))
    with files[0].open("wb") as single, files[1].open("wb") as half:
        for start in range(0, rows, CHUNK):
            block = vectors(min(CHUNK, rows - start), start + 1)
            single.write(block.tobytes())
            half.write(block.astype(np.float16).tobytes())


def write_headers(folder: Path, rows: int) -> None:
    """Say that the index holds the first `rows` vectors."""
    from stages.evaluate.index import FORMAT, INDEX, SCHEMA

    for name, kept in NAMES.items():
        header = {
            "schema": SCHEMA, "format": FORMAT, "backbone": "benchmark", "preprocessing": "none", "sketch": "none",
            "data": "none", "clip_seconds": 10.24, "dtype": kept, "dimensions": DIMENSIONS,
            "tracks": [["all", rows, 1]],
        }  # fmt: skip
        (folder / name / INDEX).write_text(json.dumps(header))


class Memory(threading.Thread):
    """The highest anonymous memory of this process, sampled; memory-mapped files do not count."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes = self.highest = self.now()
        self.start()

    @staticmethod
    def now() -> int:
        with Path("/proc/self/status").open() as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

    def run(self) -> None:
        while True:
            self.highest = max(self.highest, self.now())
            time.sleep(0.005)


def search(who: str, folder: Path) -> dict[str, float]:
    """One timed search in this process."""
    from stages.evaluate.index import TrainingIndex

    index = TrainingIndex(folder / ("half" if who == "ours-half" else "single"))
    queries = vectors(QUERIES, 12_345)
    CONTESTANTS[who](queries[:2], index)  # the library loaded, the file in the page cache
    memory, started, worked = Memory(), time.perf_counter(), time.process_time()
    found = CONTESTANTS[who](queries, index)
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    grown = memory.highest - memory.start_bytes
    return {"seconds": seconds, "cpu_seconds": cpu, "bytes": grown, "similarity": float(found.mean())}


def by_numpy(queries: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """The best similarity of each query, as one would write it: products with a block, their maximum, the best yet."""
    best, rows = np.full(len(queries), -np.inf, np.float32), np.zeros(len(queries), np.int64)
    for start in range(0, len(stored), CHUNK):
        products = queries @ np.asarray(stored[start : start + CHUNK]).T
        at = products.argmax(1)
        value = products[np.arange(len(queries)), at]
        rows, best = np.where(value > best, at + start, rows), np.maximum(value, best)
    return best


def by_faiss(queries: np.ndarray, stored: np.ndarray) -> np.ndarray:
    import faiss

    return faiss.knn(queries, stored, FAISS_CANDIDATES, faiss.METRIC_INNER_PRODUCT)[0][:, 0]


CONTESTANTS = {
    "ours": lambda queries, index: index.search(queries)[0],
    "ours-half": lambda queries, index: index.search(queries)[0],
    "numpy": lambda queries, index: by_numpy(queries, index.vectors),
}
if find_spec("faiss") is not None:
    CONTESTANTS |= dict.fromkeys(("faiss", "faiss-as-is"), lambda queries, index: by_faiss(queries, index.vectors))


def spectrograms(sizes: tuple[int, ...]) -> dict[str, float]:
    """Seconds and memory of the spectrogram search against so many tracks, each of which is one of 1,000."""
    from stages.evaluate import spectral

    generator = np.random.default_rng(0)
    pool = (0.7 * generator.standard_normal((1000, TRACK_FRAMES, BANDS))).astype(np.float16)
    clips = [pool[7 * i, 50 : 50 + CLIP_FRAMES] for i in range(CLIPS)]
    spectral.search(clips, [(0, pool[0])])
    figures = {}
    for size in sizes:
        memory, started = Memory(), time.perf_counter()
        found = spectral.search(clips, [(i, pool[i % 1000]) for i in range(size)])
        seconds, grown = time.perf_counter() - started, (memory.highest - memory.start_bytes) / 1e6
        assert (found.track % 1000 == 7 * np.arange(CLIPS)).all(), "the planted clips are not found"
        figures |= {f"spectrograms_{size}_seconds": seconds, f"spectrograms_{size}_megabytes": grown}
        print(f"{size:9d} tracks, spectrograms of {CLIPS} clips: {seconds:7.1f} s, {grown:6.0f} MB", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, default=SIZES[-1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the vectors here")
    parser.add_argument("--only", type=int, help="this size alone")
    parser.add_argument("--spectrograms", action="store_true", help="the spectrogram search alone")
    parser.add_argument("--search", nargs=2, metavar=("WHO", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.search:
        print(json.dumps(search(arguments.search[0], Path(arguments.search[1]))))
        return
    if arguments.spectrograms:
        spectrograms(TRACKS)
        return
    figures: dict[str, float | str] = {"cpu": _cpu(), "threads": os.cpu_count() or 1}
    sizes = [arguments.only] if arguments.only else [n for n in SIZES if n < arguments.rows] + [arguments.rows]
    print(f"{figures['cpu']}, {figures['threads']} threads; {QUERIES} clips, {DIMENSIONS} dimensions; "
          f"medians of {arguments.repeats}")  # fmt: skip
    print(f"{'rows':>9} {'search':>12} {'seconds':>8} {'cpu s':>8} {'MB':>8} {'numpy / it':>10}")
    with tempfile.TemporaryDirectory(prefix="musicldm-bench-") as temporary:
        folder = arguments.folder or Path(temporary)
        build(folder, arguments.rows)
        for rows in sizes:
            write_headers(folder, rows)
            figures |= measure(folder, rows, arguments.repeats)
    held = all(
        figures[f"{who}_{sizes[-1]}_seconds"] < TARGET_SECONDS
        and figures[f"{who}_{sizes[-1]}_megabytes"] < TARGET_BYTES / 1e6
        for who in ("ours", "ours-half")
    )
    print(f"bar of {TARGET_SECONDS:g} s and {TARGET_BYTES / 1e9:g} GB: {'held' if held else 'NOT held'}")
    figures |= spectrograms(TRACKS)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(folder: Path, rows: int, repeats: int) -> dict[str, float]:
    """Medians of each search at one size, printed as a row of the growth curve."""
    found: dict[str, list[dict[str, float]]] = {
        who: [] for who in CONTESTANTS if who != "faiss-as-is" or rows <= FAISS_AS_IS_ROWS
    }
    for _ in range(repeats):
        for who, runs in found.items():
            runs.append(_run(who, folder))
    best = {who: [run["similarity"] for run in runs] for who, runs in found.items()}
    assert len(set(best["ours"])) == len(set(best["ours-half"])) == 1, "equal input, unequal similarity"
    others = [who for who in ("numpy", "faiss") if who in best]
    assert all(abs(best[who][0] - best["ours"][0]) < 1e-6 for who in others), "the neighbours differ"
    figures = {}
    for who, runs in found.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "cpu_seconds", "bytes")}
        figures |= {f"{who}_{rows}_{key}": middle[key] for key in ("seconds", "cpu_seconds")}
        figures[f"{who}_{rows}_megabytes"] = middle["bytes"] / 1e6
    for who in found:
        seconds, ratio = figures[f"{who}_{rows}_seconds"], figures[f"numpy_{rows}_seconds"]
        print(f"{rows:9d} {who:>12} {seconds:8.3f} {figures[f'{who}_{rows}_cpu_seconds']:8.3f} "
              f"{figures[f'{who}_{rows}_megabytes']:8.1f} {ratio / seconds:10.2f}", flush=True)  # fmt: skip
    return figures


def _run(who: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--search", who, str(folder)]
    told = {"OPENBLAS_CORETYPE": "SKYLAKEX"} if who == "faiss" and "avx512f" in _cpu("flags") else {}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | told)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


def _cpu(key: str = "model name") -> str:
    with Path("/proc/cpuinfo").open() as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith(key)), platform.machine())


if __name__ == "__main__":
    main()
