"""A tune becomes a band: instruments, chords found from the melody, bass, and a drum pattern drawn for the piece."""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from stages.data.score_beats.score import DRUMS, NOTE, Notes, Score

LEADS = (0, 4, 6, 11, 21, 22, 24, 25, 26, 27, 29, 30, 40, 41, 42, 56, 57, 60, 64, 65, 66, 68, 71, 73, 74, 75, 78, 80,
         81, 82, 84, 87, 105, 110)  # fmt: skip
CHORDAL = (0, 1, 2, 4, 5, 6, 7, 16, 18, 19, 21, 24, 25, 26, 27, 28, 29, 30, 46, 48, 50, 51, 61, 62, 63, 81, 88, 90)
GUITARS = (27, 28, 29, 30, 30, 81)
BASSES = (32, 33, 34, 35, 36, 38, 39, 43, 58)
CHOIR = (0, 6, 19, 20, 40, 42, 48, 49, 52, 57, 60, 61, 68, 71, 73)
KICK, SNARE, RIM, CLAP, CLOSED, OPEN, RIDE, CRASH, CHINA = 36, 38, 37, 39, 42, 46, 51, 49, 52
TOMS = (50, 48, 47, 45, 43)
PERCUSSION = (54, 56, 60, 61, 62, 63, 64, 69, 70, 75, 76)
TRIADS = {"major": (0, 4, 7), "minor": (0, 3, 7)}
CHORD_BARS, CHORD_SHARES = (
    ((1, 2, 0.5), (1, 2, 1)),
    (0.6, 0.2, 0.2),
)  # bars a chord lasts, of an even metre and of three
# Kick and snare by turns on the beats; a kick on each; a snare at mid bar; kicks on the beats, snares between, as in
# punk and polka; few; anywhere
FEELS = ("back", "four", "half", "skank", "sparse", "free")
FEEL_SHARES, LOUD_FEEL_SHARES = (0.47, 0.17, 0.1, 0.05, 0.12, 0.09), (0.42, 0.08, 0.15, 0.25, 0.04, 0.06)
Rows = list[tuple[float, float, int, int, int]]


def lengthen(score: Score, beats: float) -> Score:
    """The score played again, bar to bar, until it has at least `beats`."""
    bars = math.ceil(score.beats / score.metre)
    period = bars * score.metre  # a pickup fits before the next first bar
    times = max(1, math.ceil(beats / period))
    parts = []
    for again in range(times):
        copy = score.notes.copy()
        copy["start"] += again * period
        parts.append(copy)
    made = np.concatenate(parts)
    return dataclasses.replace(
        score, notes=made[np.argsort(made["start"], kind="stable")], beats=score.beats + (times - 1) * period
    )


def arrange(score: Score, generator: np.random.Generator) -> Score:
    """The score with instruments drawn for its parts and, for a tune of one part, perhaps a band around it."""
    if len(set(score.programs)) > 1 or DRUMS in score.programs:
        return score
    parts = len(score.programs)
    if parts > 1:
        same = generator.random() < 0.6
        programs = [int(generator.choice(CHOIR))] * parts if same else [int(p) for p in generator.choice(CHOIR, parts)]
        return dataclasses.replace(score, programs=tuple(programs))
    style = generator.choice(["alone", "chords", "band", "drums", "rock"], p=[0.12, 0.13, 0.27, 0.08, 0.4])
    programs, rows = [int(generator.choice(LEADS))], []
    amplified: tuple[int, ...] = ()
    if style in ("chords", "band"):
        chords = draw_harmony(score, generator)
        rows += accompaniment(score, chords, len(programs), generator)
        programs.append(int(generator.choice(CHORDAL)))
        rows += bass(score, chords, len(programs), generator)
        programs.append(int(generator.choice(BASSES)))
    if style == "rock":
        chords, pattern = draw_harmony(score, generator), _riff_pattern(score, generator)
        for program in (int(generator.choice(GUITARS)), int(generator.choice(GUITARS)), int(generator.choice(BASSES))):
            rows += riff(score, chords, pattern, len(programs), 24 if program in BASSES else 36, generator)
            programs.append(program)
        amplified = (1, 2)
    if style in ("band", "drums", "rock"):
        rows += drums(score, len(programs), generator, loud=style == "rock")
        programs.append(DRUMS)
    made = np.concatenate([score.notes, np.array(rows, dtype=NOTE)]) if rows else score.notes
    made = made[np.argsort(made["start"], kind="stable")]
    if style == "rock" and generator.random() < 0.5:
        made = made[made["part"] != 0]
    elif style != "alone" and generator.random() < 0.3:
        made = _without(made, 0, score, generator)
    return dataclasses.replace(score, notes=made, programs=tuple(programs), amplified=amplified)


@dataclasses.dataclass(frozen=True)
class Harmony:
    """A triad's pitch classes, the root first, for every `length` beats from the first downbeat on."""

    first: int
    length: float
    triads: list[tuple[int, ...]]

    def at(self, beat: float) -> tuple[int, ...]:
        """The triad under a beat; the first one's before the first downbeat."""
        return self.triads[min(max(int((beat - self.first) // self.length), 0), len(self.triads) - 1)]


def draw_harmony(score: Score, generator: np.random.Generator) -> Harmony:
    """The score's harmony, most often of a chord a bar: chords that change anywhere would not tell where bars begin."""
    return harmony(score, score.metre * float(generator.choice(CHORD_BARS[score.metre % 2], p=CHORD_SHARES)))


def harmony(score: Score, length: float) -> Harmony:
    """For every `length` beats the triad that holds most of the melody, leaning to those of the notes of the whole."""
    count = math.ceil((score.beats - score.first) / length) + 1
    weights = np.zeros((count, 12))
    for start, held, pitch, _, _ in score.notes.tolist():
        weights[min(max(int((start - score.first) // length), 0), count - 1), pitch % 12] += held
    key = weights.sum(0)
    triads = [tuple((root + step) % 12 for step in kind) for root in range(12) for kind in TRIADS.values()]
    scale = np.array([sum(key[pitch] for pitch in triad) for triad in triads]) / max(key.sum(), 1e-9)
    fit = np.array([[sum(row[pitch] for pitch in triad) for triad in triads] for row in weights])
    return Harmony(score.first, length, [triads[int(best)] for best in np.argmax(fit + 0.4 * scale, axis=1)])


def accompaniment(score: Score, chords: Harmony, part: int, generator: np.random.Generator) -> Rows:
    """Chords in one of five ways: held, on the beats, off the beats, strummed, broken."""
    way = generator.choice(["held", "on", "off", "strum", "broken"])
    subdivision = 3 if score.compound else 2
    low, velocity = int(generator.integers(50, 58)), int(generator.integers(55, 90))
    held = 2 if score.metre % 2 == 0 and generator.random() < 0.5 else score.metre
    accents = generator.random(score.metre * subdivision) < 0.55
    rows: Rows = []
    for beat in range(score.beats):
        place = (beat - score.first) % score.metre
        pitches = sorted(low + (pitch - low) % 12 for pitch in chords.at(beat))
        if way == "held" and place % held == 0:
            rows += [(beat, held, pitch, velocity, part) for pitch in pitches]
        elif way == "on" or (way == "off" and place % 2 == 1):
            rows += [(beat, 0.6, pitch, velocity, part) for pitch in pitches]
        elif way == "strum":
            for sub in range(subdivision):
                if accents[place * subdivision + sub]:
                    start = beat + sub / subdivision
                    rows += [(start + 0.01 * n, 0.4, pitch, velocity, part) for n, pitch in enumerate(pitches)]
        elif way == "broken":
            for sub in range(subdivision):
                rows.append((beat + sub / subdivision, 1.0, pitches[(2 * place + sub) % 3], velocity, part))
    return rows


def bass(score: Score, chords: Harmony, part: int, generator: np.random.Generator) -> Rows:
    """Roots and fifths on a rhythm of the bar that stays the piece's own."""
    subdivision = 3 if score.compound else 2
    chance = generator.choice([0.15, 0.5, 0.9])
    pattern = generator.random(score.metre * subdivision) < chance * np.tile(
        [1.0] + [0.5] * (subdivision - 1), score.metre
    )
    pattern[0] = True
    if generator.random() < 0.1:
        pattern = np.arange(len(pattern)) % subdivision == subdivision - 1  # off the beats only, as in trance
    velocity = int(generator.integers(75, 110))
    rows: Rows = []
    for slot in range(-score.first * subdivision, (score.beats - score.first) * subdivision):
        place = slot % len(pattern)
        if pattern[place]:
            start = slot / subdivision + score.first
            chord = chords.at(start)
            tone = chord[0] if place == 0 or generator.random() < 0.6 else chord[2]
            gap = next((n for n in range(1, len(pattern) + 1) if pattern[(place + n) % len(pattern)]), 1)
            rows.append((start, 0.9 * gap / subdivision, 36 + tone, velocity, part))
    return rows


def _riff_pattern(score: Score, generator: np.random.Generator) -> NDArray[np.int64]:
    """What a guitar plays at each place of two bars: 0 nothing, 1 a muted note, 2 a chord."""
    steps = 3 if score.compound else int(generator.choice([2, 4]))
    busy = generator.choice([0.35, 0.6, 0.95])
    pattern = np.where(generator.random(2 * score.metre * steps) < busy, 1, 0)
    pattern[generator.random(len(pattern)) < generator.choice([0.1, 0.3])] = 2
    pattern[0] = 2
    return pattern


def riff(
    score: Score,
    chords: Harmony,
    pattern: NDArray[np.int64],
    part: int,
    low: int,
    generator: np.random.Generator,
) -> Rows:
    """The pattern over the chords' roots: fifths where it has a chord, the root, cut short, where it is muted."""
    steps = len(pattern) // (2 * score.metre)
    velocity = int(generator.integers(80, 115))
    rows: Rows = []
    for slot in range((score.beats - score.first) * steps):
        kind = pattern[slot % len(pattern)]
        start = score.first + slot / steps
        root = low + chords.at(start)[0]
        if kind == 1:
            rows.append((start, 0.7 / steps, root, velocity - 12, part))
        elif kind == 2:
            rows += [(start, 1.2 / steps, pitch, velocity, part) for pitch in (root, root + 7, root + 12)]
    return rows


def drums(score: Score, part: int, generator: np.random.Generator, loud: bool = False) -> Rows:
    """Two sections by turns, each of two bars drawn by the probability of each place, with fills, crashes and breaks.

    `loud`: sometimes a kick on every place, and a cymbal on the beats alone.
    """
    steps = 3 if score.compound else int(generator.choice([2, 4], p=[0.4, 0.6]))
    bar = score.metre * steps
    feels = generator.choice(FEELS, 2, p=LOUD_FEEL_SHARES if loud else FEEL_SHARES)
    patterns = [[_pattern(score, steps, generator, loud, feel) for _ in range(2)] for feel in feels]
    fill_every = int(generator.choice([4, 8, 16]))
    breaks = generator.random() < 0.25
    rows: Rows = []
    bars = math.ceil((score.beats - score.first) / score.metre)
    for number in range(bars):
        if breaks and (number // 8) % 4 == 3:
            continue
        fill = number % fill_every == fill_every - 1 and generator.random() < 0.7
        start_fill = bar // 2 if fill else bar
        for slot in range(bar):
            start = score.first + number * score.metre + slot / steps
            if slot >= start_fill:
                if generator.random() < 0.7:
                    pitch = SNARE if generator.random() < 0.4 else TOMS[min((slot - start_fill) * 5 // (bar // 2), 4)]
                    rows.append((start, 0.2, int(pitch), 95, part))
                continue
            for pitch, hits in patterns[number // (2 * fill_every) % 2][number % 2].items():
                if hits[slot]:
                    rows.append((start, 0.2, pitch, int(hits[slot]), part))
    return rows + crashes(score, part, fill_every, generator)


def crashes(score: Score, part: int, every: int, generator: np.random.Generator) -> Rows:
    """A cymbal where most of the sections of `every` bars begin, but for the first."""
    starts = range(score.first + every * score.metre, score.beats, every * score.metre)
    return [(start, 1.0, CRASH, 100, part) for start in starts if generator.random() < 0.6]


def _pattern(
    score: Score, steps: int, generator: np.random.Generator, loud: bool, feel: str
) -> dict[int, NDArray[np.int64]]:
    """For each instrument of the kit its velocity (0: silent) at each of a bar's places."""
    places = score.metre * steps
    beat, sub = np.divmod(np.arange(places), steps)
    on = sub == 0
    third = generator.choice([0.3, 0.6, 0.95])  # as sure as the first it leaves the bar's halves alike
    kick = np.where(on, np.where(beat % 2 == 0, third, 0.15), 0.12)
    snare = np.where(on, np.where(beat % 2 == 1, 0.95, 0.02), 0.04)
    if score.metre == 3:
        kick, snare = np.where(on & (beat == 0), 1.0, 0.08), np.where(on & (beat > 0), 0.7, 0.04)
    if feel == "four":
        kick = np.where(on, 0.98, 0.05)
    elif feel == "half":
        kick, snare = np.where(on & (beat == 0), 1.0, 0.12), np.where(on & (beat == score.metre // 2), 0.97, 0.03)
    elif feel == "skank":
        kick, snare = np.where(on, 0.9, 0.04), np.where(sub == steps - steps // 2, 0.95, 0.03)
    elif feel == "sparse":
        kick, snare = kick * 0.7, snare * 0.3
    elif feel == "free":
        kick, snare = np.where(on, 0.45, 0.2), np.where(on, 0.3, 0.15)
    kick[0] = max(kick[0], 0.92)
    hat = np.where(on, 0.97, 0.9 if generator.random() < 0.55 else 0.25)
    tops: tuple[int, ...] = (CLOSED, CLOSED, RIDE, OPEN)
    if loud:
        tops = (CLOSED, OPEN, RIDE, CRASH, CHINA)
        if generator.random() < 0.35:
            kick = np.full(places, 0.95)
        if generator.random() < 0.5:
            hat = np.where(on, 0.97, 0.05)
    elif generator.random() < 0.25:
        hat = np.where(on, 0.1, 0.9 * (sub == steps // 2))  # off the beat only, as in disco
    top, back = int(generator.choice(tops)), int(generator.choice([SNARE, SNARE, RIM, CLAP]))
    level = generator.integers(70, 115, 3)
    made = {KICK: kick, back: snare, top: hat}
    hits = {
        pitch: np.where(generator.random(places) < chance, loud - np.where(on, 0, 15), 0).astype(np.int64)
        for (pitch, chance), loud in zip(made.items(), level, strict=True)
    }
    if generator.random() < 0.3:
        chosen = int(generator.choice(PERCUSSION))
        hits[chosen] = np.where(generator.random(places) < 0.35, 70, 0).astype(np.int64)
    return hits


def _without(made: Notes, part: int, score: Score, generator: np.random.Generator) -> Notes:
    """The notes with a part silent for a stretch of bars, as when the melody rests."""
    length = float(generator.integers(4, 13) * score.metre)
    start = generator.uniform(0, max(score.beats - length, 1))
    silent = (made["part"] == part) & (made["start"] >= start) & (made["start"] < start + length)
    return made[~silent]
