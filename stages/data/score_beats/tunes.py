"""Tunes and chorales of music21's corpus as scores: Ryan's, O'Neill's and Aird's collections, and Bach.

Bars come from the measures, not from note times: a pickup, and a bar that a repeat divides into two short
measures, keep their place. Pieces whose measures do not add up, or that change metre, are left out. Two written bars
of two beats are one of four here, as a band counts a reel or a jig, and as the decoder's metres are three and four.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.data.score_beats.score import Score, notes
from stages.errors import MissingDependencyError

COLLECTIONS = {  # folder of music21's corpus
    "ryansMammoth": "Ryan's Mammoth Collection (1883)",
    "oneills1850": "O'Neill's Music of Ireland (1903)",
    "airdsAirs": "Aird's Airs (1782-1801)",
    "bach": "J. S. Bach, chorales",
}
LICENCE = "public domain"
VELOCITY = 90
MIN_BARS = 8
EPSILON = 1e-4  # of a quarter note
METRES = {  # beats a written bar, and quarter notes a beat
    "2/4": (2, 1.0), "3/4": (3, 1.0), "4/4": (4, 1.0), "2/2": (2, 2.0), "6/8": (2, 1.5),
    "9/8": (3, 1.5), "12/8": (4, 1.5), "3/2": (3, 2.0),
}  # fmt: skip


def catalogue() -> list[tuple[str, str, int | None]]:
    """(collection, file, number in it) of every piece, in a fixed order. Raises MissingDependencyError."""
    try:
        import mido  # noqa: F401
        import tinysoundfont  # noqa: F401
        from music21 import corpus
    except ImportError:
        raise MissingDependencyError(
            "Rendering scores needs the packages music21, mido and tinysoundfont.",
            "pip install 'musicldm[beats-train]', then: pip install --no-deps tinysoundfont",
        ) from None
    found: list[tuple[str, str, int | None]] = []
    for path in sorted(Path(path) for path in corpus.corpora.CoreCorpus().getPaths()):
        collection = path.parent.name
        if collection in COLLECTIONS and (collection != "bach" or path.suffix == ".mxl"):
            found += [(collection, str(path), number) for number in _numbers(path)]
    return found


def read_tune(collection: str, file: str, number: int | None) -> Score | None:
    """One piece as a score, a part for each of its staves; None when its bars cannot be trusted."""
    from music21 import converter

    parsed = converter.parse(file) if number is None else converter.parse(file, number=number)
    staves = list(getattr(parsed, "parts", []))
    grids = {_grid(stave) for stave in staves}
    grid = grids.pop() if len(grids) == 1 else None
    if grid is None:
        return None
    first = math.ceil(grid.downbeat / grid.beat - EPSILON)
    rows = [
        ((start - grid.downbeat) / grid.beat + first, length / grid.beat, pitch, VELOCITY, part)
        for part, stave in enumerate(staves)
        for start, length, pitch in _sounding(stave)
    ]
    name = Path(file).stem + ("" if number is None else f"-{number}")
    title = str(parsed.metadata.title or name) if parsed.metadata else name
    return Score(
        id=f"{collection}-{name}",
        title=" ".join(title.split()),
        source=COLLECTIONS[collection],
        licence=LICENCE,
        metre=4 if grid.metre == 2 else grid.metre,
        first=first,
        beats=first + math.ceil((grid.end - grid.downbeat) / grid.beat - EPSILON),
        notes=notes(rows),
        programs=(0,) * len(staves),
        compound=grid.beat == 1.5,
        swings=grid.beat != 1.5 and collection != "bach",
    )


@dataclass(frozen=True)
class _Grid:
    """Beats a written bar, and in quarter notes: a beat's length, the first downbeat, the end."""

    metre: int
    beat: float
    downbeat: float
    end: float


def _grid(stave: Any) -> _Grid | None:
    signatures = {mark.ratioString for mark in stave.recurse().getElementsByClass("TimeSignature")}
    metre, beat = METRES.get(signatures.pop(), (0, 0.0)) if len(signatures) == 1 else (0, 0.0)
    measures = [(float(m.offset), float(m.duration.quarterLength)) for m in stave.getElementsByClass("Measure")]
    if not metre or len(measures) < MIN_BARS:
        return None
    bar = metre * beat
    downbeat = measures[0][1] if measures[0][1] < bar - EPSILON else 0.0
    for start, length in measures[1 if downbeat else 0 :]:
        begun = (start - downbeat + EPSILON) % bar  # nought, or what the measure before left of this bar
        if length > bar + EPSILON or (begun > 2 * EPSILON and abs(begun - EPSILON + length - bar) > EPSILON):
            return None
    end = sum(measures[-1])
    if metre == 2 and round((end - downbeat) / bar) % 2:
        return None  # an odd one somewhere: which bars are pairs is not known
    return _Grid(metre, beat, downbeat, end)


def _sounding(stave: Any) -> Iterator[tuple[float, float, int]]:
    """(start, length) in quarter notes and MIDI pitch of every note that has a length."""
    for element in stave.stripTies().flatten().notes:
        for pitch in element.pitches if element.duration.quarterLength else ():
            yield float(element.offset), float(element.duration.quarterLength), int(pitch.midi)


def _numbers(path: Path) -> list[int | None]:
    """The reference numbers in an ABC book; [None] for a file that is one piece."""
    if path.suffix != ".abc":
        return [None]
    numbers = [int(found) for found in re.findall(r"^X: *(\d+)", path.read_text(errors="replace"), re.MULTILINE)]
    return [None] if len(numbers) < 2 else list(numbers)
