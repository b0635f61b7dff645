"""1,000 clips against up to a million stored 512-d embeddings: our index beside NumPy and FAISS.

    python benchmarks/novelty.py [--json FILE] [--rows N] [--repeats N]

Each search runs in a process of its own, in alternation; the memory stated is the growth of what is resident
beyond the index's own files (RssAnon), at its highest. All three return the same neighbours, or it fails.
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
from pathlib import Path

import numpy as np

QUERIES, DIMENSIONS, CLUSTERS = 1000, 512, 2000
SIZES = (10_000, 100_000, 1_000_000)
CHUNK = 16_384
FAISS_ROWS = 100_000
TARGET_SECONDS, TARGET_BYTES = 5.0, 1e9


def vectors(rows: int, seed: int) -> np.ndarray:
    """Unit vectors in clusters, as embeddings of music are: any two of a cluster have a cosine of about 0.8."""
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, DIMENSIONS)).astype(np.float32)
    generator = np.random.default_rng(seed)
    found = centres[generator.integers(CLUSTERS, size=rows)]
    found += 0.5 * generator.standard_normal((rows, DIMENSIONS), dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def build(folder: Path, rows: int) -> None:
    from stages.evaluate.index import FORMAT, INDEX, SCHEMA, _Vectors

    folder.mkdir()
    with (folder / "vectors.bin").open("wb") as file, (folder / "codes.bin").open("wb") as codes:
        writer = _Vectors(file, codes, "float32")
        for start in range(0, rows, CHUNK):
            writer.add(vectors(min(CHUNK, rows - start), start + 1))
        writer.flush()
    (folder / "frames.bin").write_bytes(b"\0\0" * 32)
    header = {
        "schema": SCHEMA, "format": FORMAT, "backbone": "benchmark", "preprocessing": "none", "sketch": "none",
        "data": "none", "clip_seconds": 10.24, "dtype": "float32", "dimensions": DIMENSIONS, "blocks": writer.blocks,
        "tracks": [["all", rows, 1]],
    }  # fmt: skip
    (folder / INDEX).write_text(json.dumps(header))


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

    index, queries = TrainingIndex(folder), vectors(QUERIES, 12_345)
    index.search(queries[:2])  # the files in the page cache, the libraries warm
    int(np.asarray(index.vectors[::8]).view(np.int32)[0, 0])
    import faiss

    memory, started, worked = Memory(), time.perf_counter(), time.process_time()
    if who == "ours":
        _, rows = index.search(queries)
    elif who == "numpy":
        best, rows = np.full(QUERIES, -np.inf, np.float32), np.zeros(QUERIES, np.int64)
        for start in range(0, len(index), CHUNK):
            scores = queries @ np.asarray(index.vectors[start : start + CHUNK]).T
            at = scores.argmax(1)
            value = scores[np.arange(QUERIES), at]
            rows, best = np.where(value > best, at + start, rows), np.maximum(value, best)
    else:
        best, rows = np.full(QUERIES, -np.inf, np.float32), np.zeros(QUERIES, np.int64)
        for start in range(0, len(index), CHUNK):
            value, at = faiss.knn(
                queries, np.asarray(index.vectors[start : start + CHUNK]), 1, metric=faiss.METRIC_INNER_PRODUCT
            )
            rows = np.where(value[:, 0] > best, at[:, 0] + start, rows)
            best = np.maximum(value[:, 0], best)
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "bytes": memory.highest - memory.start_bytes,
        "rows": int(np.asarray(rows).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, default=SIZES[-1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--search", nargs=2, metavar=("WHO", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.search:
        print(json.dumps(search(arguments.search[0], Path(arguments.search[1]))))
        return
    figures: dict[str, float | str] = {"cpu": _cpu(), "threads": os.cpu_count() or 1}
    with tempfile.TemporaryDirectory(prefix="musicldm-bench-") as folder:
        for rows in [size for size in SIZES if size < arguments.rows] + [arguments.rows]:
            path = Path(folder) / str(rows)
            build(path, rows)
            found: dict[str, list[dict[str, float]]] = {"ours": [], "numpy": [], "faiss": []}
            if rows > FAISS_ROWS:
                print(f"faiss is left out above {FAISS_ROWS} rows: it takes minutes")
                del found["faiss"]
            for _ in range(arguments.repeats):
                for who, runs in found.items():
                    runs.append(_run(who, path))
            assert len({run["rows"] for runs in found.values() for run in runs}) == 1, "the neighbours differ"
            for who, runs in found.items():
                figures[f"{who}_{rows}_seconds"] = statistics.median(run["seconds"] for run in runs)
                figures[f"{who}_{rows}_cpu_seconds"] = statistics.median(run["cpu_seconds"] for run in runs)
                figures[f"{who}_{rows}_megabytes"] = statistics.median(run["bytes"] for run in runs) / 1e6
    for name, value in figures.items():
        print(f"{name:28} {value if isinstance(value, str) else f'{value:.3f}'}")
    last = arguments.rows
    held = figures[f"ours_{last}_seconds"] < TARGET_SECONDS and figures[f"ours_{last}_megabytes"] < TARGET_BYTES / 1e6
    print(f"bar of {TARGET_SECONDS:g} s and {TARGET_BYTES / 1e9:g} GB: {'held' if held else 'NOT held'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _run(who: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--search", who, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def _cpu() -> str:
    with Path("/proc/cpuinfo").open() as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
