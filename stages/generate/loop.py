"""Loops: so many bars at a tempo, to the sample, whose end goes over into their start; how stands in `ring`."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.errors import UsageError
from stages.params import Params

if TYPE_CHECKING:
    from stages.generate.canvas import Canvas
    from stages.generate.pipeline import Pipeline

SHORTEST_SECONDS, LONGEST_SECONDS = 0.5, 120.0


@dataclass(frozen=True)
class Loop:
    """`bars` bars of `metre` beats at `bpm` beats a minute. Raises UsageError for impossible ones."""

    bars: int
    bpm: float
    metre: int = 4
    strength: float = 1.0
    keeps_samples: bool = False

    def __post_init__(self) -> None:
        if self.bars < 1 or self.metre < 1 or not 0 < self.bpm < math.inf:
            raise UsageError("--bars, --metre and --bpm of a loop are above 0.")
        if not SHORTEST_SECONDS <= self.exact_seconds <= LONGEST_SECONDS:
            raise UsageError(
                f"{self.bars} bar(s) of {self.metre} beats at {self.bpm:g} BPM are {self.exact_seconds:g} s; "
                f"a loop has {SHORTEST_SECONDS:g} to {LONGEST_SECONDS:g} s."
            )

    @property
    def exact_seconds(self) -> float:
        return self.bars * self.metre * 60 / self.bpm

    def identity(self) -> dict[str, Any]:
        return {"loop": {"bars": self.bars, "bpm": self.bpm, "metre": self.metre}}

    def seconds(self, asked: float | None, clip_seconds: float) -> float:
        """Raises UsageError when another length was asked for."""
        if asked not in (None, self.exact_seconds):
            raise UsageError("--seconds does not go with --loop: --bars and --bpm say how long it is.")
        return self.exact_seconds

    def check(self, params: Params) -> None:
        """Any model can."""

    def canvas(self, pipeline: "Pipeline", seconds: float) -> "Canvas":
        from stages.generate.ring import of_loop

        return of_loop(self, pipeline, seconds)
