"""Beat tracking against its peers: `python benchmarks/beats.py [--scores DIR] [--music DIR] [--json FILE]`.

Each tracker goes from audio files to bars, decoding and the DBN included, on one core; every file is given to all in
turn, and times are CPU seconds. `--scores` is a folder of `musicldm data fetch score-beats`, whose test pieces give
F-measures; `--music` is a folder of recordings, each with a `.beats` file beside it. On the demo music, which has no
known beats, it is told how far the trackers agree.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from stages import params
from stages.beats import backends
from stages.beats.annotations import read_beats
from stages.beats.decode import Bars
from stages.data.score_beats.collection import read_index
from stages.errors import MissingDependencyError
from stages.evaluate.beats import score

DEMO = Path(__file__).parents[1] / "data" / "demo"
BACKENDS = ("beat-transformer", "madmom", "beat-this")


def trackers() -> dict[str, tuple[backends.Backend, params.Beats]]:
    found = {}
    for name in BACKENDS:
        settings = params.Beats(backend=name)
        try:
            found[name] = (backends.load_backend(settings), settings)
        except (MissingDependencyError, OSError) as error:  # its weights are fetched when it is loaded
            print(f"{name} is left out: {error}")
    settings = params.Beats(decoder="peaks")
    return found | {"beat-transformer, peaks": (found["beat-transformer"][0], settings)}


def run(paths: list[Path], rounds: int) -> tuple[dict[str, float], dict[str, list[Bars]]]:
    """Seconds of audio in a CPU second, the median of rounds after one that warms up, and all bars."""
    contestants = trackers()
    bars: dict[str, list[Bars]] = {name: [] for name in contestants}
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    seconds = sum(soundfile.info(path).duration for path in paths)
    for number in range(rounds + 1):
        spent = dict.fromkeys(contestants, 0.0)
        for path in paths:
            for name, (backend, settings) in contestants.items():
                start = time.process_time()
                found = backends.track(backend, path, settings)
                spent[name] += time.process_time() - start
                if number == 0:
                    bars[name].append(found.bars)
        for name, value in spent.items() if number or not rounds else ():
            taken[name].append(value)
    return {name: seconds / statistics.median(found) for name, found in taken.items()}, bars


def f_measures(found: list[Bars], truth: list[tuple[np.ndarray, np.ndarray | None]]) -> Iterator[tuple[float, float]]:
    for bars, (beats, downbeats) in zip(found, truth, strict=True):
        down = bars[bars[:, 1] == 1, 0]
        yield score(bars[:, 0], beats)["f_measure"], score(down, downbeats)["f_measure"] if downbeats is not None else 0


def accuracy(title: str, paths: list[Path], references: list[Path]) -> dict[str, float]:
    _, found = run(paths, 0)
    truth = [read_beats(path) for path in references]
    figures = {}
    print(f"{title}: {len(paths)} pieces")
    for name, bars in found.items():
        beat, downbeat = np.mean(list(f_measures(bars, truth)), axis=0)
        print(f"  {name:26} beat F {beat:.3f}, downbeat F {downbeat:.3f}")
        figures |= {f"{title}, {name}, beat F": float(beat), f"{title}, {name}, downbeat F": float(downbeat)}
    return figures


def agreement(found: dict[str, list[Bars]]) -> dict[str, float]:
    figures = {}
    for name in found.keys() - {"madmom"}:
        sides = zip(found[name], found["madmom"], strict=True)
        pairs = [(score(ours[:, 0], theirs[:, 0])["f_measure"], score(ours[:, 0], theirs[:, 0])["amlt"])
                 for ours, theirs in sides]  # fmt: skip
        same, level = np.mean(pairs, axis=0)
        print(f"  {name:26} against madmom: beat F {same:.3f}, AMLt {level:.3f}, {len(pairs)} excerpts")
        figures |= {f"{name} against madmom, beat F": float(same), f"{name} against madmom, AMLt": float(level)}
    return figures


def memory(minutes: int) -> float:
    """Peak megabytes of a process that tracks noise of that length, its modules included."""
    code = (
        "import resource, sys; from pathlib import Path; from stages import params; from stages.beats import backends;"
        "s = params.Beats(); backends.track(backends.load_backend(s), Path(sys.argv[1]), s);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    path = Path("long.flac").absolute()
    with soundfile.SoundFile(path, "w", 44_100, 1, subtype="PCM_16") as file:
        for number in range(60 * minutes):
            file.write(0.1 * np.random.default_rng(number).standard_normal(44_100))
    try:
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    finally:
        path.unlink()
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--scores", type=Path, metavar="DIR")
    parser.add_argument("--music", type=Path, metavar="DIR")
    parser.add_argument("--tracks", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=int, default=10, help="of the track whose memory is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}")
    demo = sorted(DEMO.glob("*.ogg"))[:: max(108 // options.tracks, 1)][: options.tracks]
    speeds, found = run(demo, options.rounds)
    print(f"{len(demo)} demo excerpts, {options.rounds} rounds, audio files to bars")
    figures = {f"{name}, x real time": speed for name, speed in speeds.items()}
    for name, speed in speeds.items():
        ratio = speed / speeds["madmom"]
        print(f"  {name:26} {speed:6.1f} x real time, {ratio:.2f} of madmom")
        figures[f"{name} against madmom, speed"] = ratio
    figures |= agreement(found)
    if options.scores is not None:
        pieces = [piece for piece in read_index(options.scores) if piece.split == "test"]
        figures |= accuracy("scores", [options.scores / piece.audio for piece in pieces],
                            [options.scores / piece.beats for piece in pieces])  # fmt: skip
    if options.music is not None:
        paths = sorted(path for path in options.music.iterdir() if path.with_suffix(".beats").exists()
                       and path.suffix != ".beats")  # fmt: skip
        figures |= accuracy("music", paths, [path.with_suffix(".beats") for path in paths])
    figures[f"peak MB of {options.minutes} minutes"] = memory(options.minutes)
    print(f"  {options.minutes} minutes of sound take {figures[f'peak MB of {options.minutes} minutes']:.0f} MB")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
