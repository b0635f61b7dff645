"""What a score is here: notes on a grid of beats, with the bar every beat belongs to."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRUMS = -1  # the program of a drum kit
NOTE = np.dtype([("start", "f8"), ("length", "f8"), ("pitch", "i4"), ("velocity", "i4"), ("part", "i4")])
Notes = NDArray[np.void]  # of NOTE; start and length in beats from the first beat on


@dataclass(frozen=True)
class Score:
    """One piece. Beat n, n = 0 .. beats - 1, lies at time n of the notes; beat `first` is its first downbeat."""

    id: str
    title: str
    source: str
    licence: str
    metre: int  # beats a bar
    first: int
    beats: int
    notes: Notes
    programs: tuple[int, ...]  # General MIDI (0..127) or DRUMS, one a part
    compound: bool = False  # a beat falls into three, as in 6/8
    swings: bool = True  # its eighths may be played unevenly
    amplified: tuple[int, ...] = ()  # a rock band's parts that are distorted

    @property
    def loud(self) -> bool:
        """Whether this is a rock band, whose sixteenths may be as fast as another's eighths."""
        return bool(self.amplified)

    @property
    def positions(self) -> NDArray[np.int64]:
        """(beats,) the position of every beat in its bar, from 1."""
        return (np.arange(self.beats) - self.first) % self.metre + 1


def notes(rows: list[tuple[float, float, int, int, int]]) -> Notes:
    """Rows of (start, length, pitch, velocity, part) as notes, in order of time."""
    made = np.array(rows, dtype=NOTE)
    return made[np.argsort(made["start"], kind="stable")]
