"""The figures of a run on its way: log.jsonl beside its checkpoints, and TensorBoard where it is installed."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
Write = Callable[[int, dict[str, float]], None]


@contextmanager
def writer(run: Path, step: int) -> Iterator[Write]:
    """A function that appends one step's figures; lines after `step`, which will come again, are forgotten."""
    _cut_log(run / LOG, step)
    with ExitStack() as stack:
        file = stack.enter_context((run / LOG).open("a", encoding="utf-8"))
        board = _tensorboard(run, step)
        if board is not None:
            stack.callback(board.close)

        def write(step: int, figures: dict[str, float]) -> None:
            shown = {name: value if math.isfinite(value) else None for name, value in figures.items()}
            file.write(json.dumps({"step": step, **shown}) + "\n")
            file.flush()
            for name, value in figures.items() if board is not None else ():
                board.add_scalar(name, value, step)

        yield write


def show(losses: dict[str, float]) -> str:
    """The figures in one line, for people."""
    return ", ".join(f"{name} {value:.4g}" for name, value in losses.items())


def _tensorboard(run: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=step)


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines behind `step`, and a last line that a kill left unfinished."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")
