"""Accompaniments by MMA, the Musical MIDI Accompaniment generator: drums, bass, keys and guitars on an exact grid.

Its library holds some two thousand grooves of every dance and rock style; a tune gives the chords, and perhaps
the melody.
"""

import dataclasses
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.data.score_beats.arrange import LEADS, crashes, draw_harmony
from stages.data.score_beats.score import DRUMS, Score, notes
from stages.errors import DataError

LICENCE = "grooves GPL-2+ (MMA), tune public domain"
DRUM_CHANNEL = 9
NAMES = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
_TIMES = {("4", "4 4"): 4, ("3", "3 4"): 3}
_PARTIAL = re.compile(r"(intro|end|ending|fill|break|count)[a-z]{0,3}\d*$", re.IGNORECASE)  # no music when repeated


@dataclass(frozen=True)
class Groove:
    """One groove: the file it is in below MMA's lib, its name, and its beats a bar."""

    file: str
    name: str
    metre: int


def library(home: Path) -> list[Groove]:
    """The grooves below `home`/lib in three or four whose metre their file states plainly, in order of file and name.

    Fills, introductions and endings are left out.
    """
    found = []
    for path in sorted((home / "lib").rglob("*.mma")):
        text = path.read_text(encoding="utf-8", errors="replace")
        times = set(re.findall(r"^\s*time\s+(\d+)", text, re.IGNORECASE | re.MULTILINE)) or {"4"}
        signatures = {
            f"{beats} {unit}" for beats, unit in re.findall(r"^\s*timesig\s+(\d+)[ /]+(\d+)", text, re.I | re.M)
        } or {"3 4" if times == {"3"} else "4 4"}
        metre = _TIMES.get((times.pop(), signatures.pop())) if len(times) == len(signatures) == 1 else None
        if metre is not None:
            file = str(path.relative_to(home / "lib").with_suffix(""))
            names = dict.fromkeys(re.findall(r"^\s*defgroove\s+(\S+)", text, re.I | re.M))
            found += [Groove(file, name, metre) for name in names if not _PARTIAL.search(name)]
    return found


def play(groove: Groove, tune: Score, home: Path, bars: int, generator: np.random.Generator) -> Score:
    """The groove over the tune's chords, transposed, in `bars` bars; most often under its melody where that fits.

    A melody of another metre, or of triplets, would say that the bars and beats are elsewhere. Half of the grooves
    with drums have a cymbal at every eighth bar or so. Raises DataError when MMA fails on the groove.
    """
    transposed = int(generator.integers(-5, 6))
    chords = draw_harmony(tune, generator)
    names = [_name(tuple((pitch + transposed) % 12 for pitch in triad)) for triad in chords.triads]
    with tempfile.TemporaryDirectory(prefix="musicldm-") as folder:
        chart = _chart(groove, names, tune.metre / chords.length, bars)
        rows, programs = _accompany(groove, chart, home, Path(folder))
    if (tune.metre, tune.compound) == (groove.metre, False) and generator.random() < 0.7:
        lead = int(generator.choice(LEADS))
        programs.append(lead)
        body = tune.notes[tune.notes["start"] >= tune.first].tolist()
        period = -(-(tune.beats - tune.first) // tune.metre) * tune.metre
        for again in range(-(-bars * groove.metre // period)):
            rows += [
                (start - tune.first + again * period, length, pitch + transposed, velocity + 8, len(programs) - 1)
                for start, length, pitch, velocity, part in body
                if part == 0 and start - tune.first + again * period < bars * groove.metre
            ]
    made = Score(
        id=f"mma-{groove.file.replace('/', '-')}-{groove.name}",
        title=f"{groove.name} under {tune.title}",
        source=f"MMA {groove.file}",
        licence=LICENCE,
        metre=groove.metre,
        first=0,
        beats=bars * groove.metre,
        notes=notes(rows),
        programs=tuple(programs),
        swings=False,
    )
    if DRUMS in programs and generator.random() < 0.5:
        rows += crashes(made, programs.index(DRUMS), int(generator.choice([4, 8, 16])), generator)
    return dataclasses.replace(made, notes=notes(rows))


def _chart(groove: Groove, names: list[str], chords_a_bar: float, bars: int) -> str:
    """MMA's input: a numbered line a bar, with the chord of its beginning and of its middle, if the metre is even."""
    halves = 2 if groove.metre % 2 == 0 else 1
    rest = groove.metre // halves - 1
    lines = ["Tempo 120", f"Groove {groove.file}:{groove.name}"]
    for bar in range(bars):
        places = [int((bar + half / halves) * chords_a_bar) % len(names) for half in range(halves)]
        lines.append(f"{bar + 1} " + " ".join(names[place] + " /" * rest for place in places))
    return "\n".join(lines) + "\n"


def _name(triad: tuple[int, ...]) -> str:
    return NAMES[triad[0]] + ("" if (triad[1] - triad[0]) % 12 == 4 else "m")


def _accompany(
    groove: Groove, chart: str, home: Path, folder: Path
) -> tuple[list[tuple[float, float, int, int, int]], list[int]]:
    """Note rows in beats, and the programs of their parts."""
    source, midi = folder / "chart.mma", folder / "chart.mid"
    source.write_text(chart)
    command = [sys.executable, str(home.parents[1] / "bin" / "mma"), "-f", str(midi), str(source)]
    done = subprocess.run(command, env={**os.environ, "MMA_HOME": str(home), "HOME": str(folder)},
                          cwd=folder, capture_output=True, text=True, errors="replace", check=False)  # fmt: skip
    if done.returncode != 0 or not midi.is_file():
        lines = done.stdout.strip().splitlines() or ["no reason given"]
        raise DataError(f"MMA could not play {groove.file}:{groove.name}: {lines[-1]}")
    return _read_midi(midi)


def _read_midi(path: Path) -> tuple[list[tuple[float, float, int, int, int]], list[int]]:
    import mido

    file = mido.MidiFile(path)
    rows: list[tuple[float, float, int, int, int]] = []
    programs: list[int] = []
    for track in file.tracks:
        part, tick, held = None, 0, {}
        for message in track:
            tick += message.time
            if message.type == "program_change" and part is None:
                part = len(programs)
                programs.append(DRUMS if message.channel == DRUM_CHANNEL else message.program)
            elif message.type == "note_on" and message.velocity and part is not None:
                held[message.note] = (tick, message.velocity)
            elif message.type in ("note_on", "note_off") and message.note in held:
                start, velocity = held.pop(message.note)
                beat = file.ticks_per_beat
                rows.append((start / beat, max(tick - start, 1) / beat, message.note, velocity, part or 0))
    return rows, programs
