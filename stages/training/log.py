"""What a run leaves to be read, seen and heard: log.jsonl and samples/ beside its checkpoints, and its trackers."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from stages.training.samples import Sample, write_sample
from stages.training.trackers import Tracker, open_tracker

LOG, SAMPLES = "log.jsonl", "samples"


class Journal:
    """One run's log; `run` None keeps nothing, for the processes that do not write."""

    def __init__(self, run: Path | None, trackers: Sequence[Tracker] = ()) -> None:
        self.run, self.trackers = run, trackers

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Append one step's figures; a figure that is not finite is null."""
        if self.run is None:
            return
        shown = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        with (self.run / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **shown}) + "\n")
        for tracker in self.trackers:
            tracker.figures(step, figures)

    def samples(self, step: int, samples: list[Sample]) -> None:
        """Write what the networks make of the valid split's clips, as pictures and sound."""
        if self.run is None:
            return
        for number, sample in enumerate(samples):
            write_sample(self.run / SAMPLES / f"step-{step:08d}-{number}", sample)
            for tracker in self.trackers:
                tracker.sample(step, str(number), sample)


@contextmanager
def journal(run: Path, step: int, trackers: Sequence[str] = ()) -> Iterator[Journal]:
    """The log of a run that stands at `step`; lines behind it, which will come again, are forgotten.

    Without `trackers` TensorBoard is told where it is installed.
    """
    _cut_log(run / LOG, step)
    names = trackers or (["tensorboard"] if find_spec("tensorboard") else [])
    with ExitStack() as stack:
        opened = []
        for name in names:
            opened.append(open_tracker(name, run, step))
            stack.callback(opened[-1].close)
        yield Journal(run, opened)


def show(losses: dict[str, float]) -> str:
    """The figures in one line, for people."""
    return ", ".join(f"{name} {value:.4g}" for name, value in losses.items())


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines behind `step`, and a last line that a kill left unfinished."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")
