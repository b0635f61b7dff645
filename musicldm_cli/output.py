"""How results, progress and errors reach a person, a script or a pipe.

stdout is the result, stderr the talk. `--json` prints one object on stdout; `--quiet` prints only the
paths written, one a line.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from stages.errors import MusicldmError
from stages.progress import Progress, silent

Mode = Literal["human", "json", "quiet"]


class Output:
    """The one sink of a command."""

    def __init__(self, mode: Mode = "human") -> None:
        self.mode = mode

    def say(self, text: str) -> None:
        """A remark on the way, for people only."""
        if self.mode == "human":
            print(text, file=sys.stderr)

    def result(self, text: str, paths: list[Path], **figures: Any) -> None:
        """What the command made: `text` for people, `paths` and `figures` for scripts."""
        if self.mode == "json":
            shown = {"ok": True, "paths": [str(path) for path in paths], **figures}
            _print_json(shown)
        elif self.mode == "quiet":
            for path in paths:
                print(path)
        else:
            print(text)

    def error(self, error: MusicldmError, code: int) -> None:
        """One sentence of what is wrong, one of what mends it."""
        if self.mode == "json":
            shown = {"code": code, "message": error.message, "remedy": error.remedy}
            _print_json({"ok": False, "error": shown})
            return
        from rich.console import Console

        console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        console.print(f"Error: {error.message}", style="red")
        if error.remedy:
            console.print(error.remedy)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Bars with rate and time left on stderr; nothing where that is not a terminal."""
        if self.mode != "human" or not sys.stderr.isatty():
            yield silent
            return
        from rich import progress as rich_progress
        from rich.console import Console

        columns = (
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            _RateColumn(),
            rich_progress.TimeRemainingColumn(compact=True),
        )
        bars = rich_progress.Progress(*columns, console=Console(stderr=True))
        tasks: dict[str, rich_progress.TaskID] = {}

        def report(label: str, done: int, total: int) -> None:
            bars.start()  # only now: what is said before goes to a bare terminal
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total or None)
            bars.update(tasks[label], completed=done, total=total or None)

        try:
            yield report
        finally:
            if tasks:
                bars.stop()


def _print_json(data: dict[str, Any]) -> None:
    """Bytes of file names that are no text, which Python keeps as lone surrogates, as JSON's escapes of these."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, default=str)
    print(text.encode(errors="backslashreplace").decode())


def _RateColumn():  # type: ignore[no-untyped-def]  # noqa: N802  (made late: rich is imported on first use)
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")

    return RateColumn()
