"""How a score is played: tempo and its drift, swing, touch, and the second at which every beat falls."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.data.score_beats.score import Notes, Score

MIN_BPM, MAX_BPM = 55.0, 215.0
MAX_SECONDS = 60.0
TYPICAL_BPM, CHORALE_BPM, SPREAD_OCTAVES = 112.0, 84.0, 0.38  # tempos are drawn log-normally around these
# Notes a beat, and between which tempos one would count such beats and not every second one, or twice as many
DENSITIES = (1.0, 1.3, 2.0, 2.5, 3.0, 3.5, 4.0)
SLOWEST_BPM = (55.0, 68.0, 72.0, 72.0, 68.0, 66.0, 66.0)
FASTEST_BPM = (150.0, 175.0, 205.0, 185.0, 160.0, 140.0, 125.0)
FASTEST_TO_TYPICAL = 1.75  # a chorale at 180 is counted in two, a reel is not
STEPS = 8  # points of the tempo curve in each beat
FAST_BPM, FAST_SHARE, LOUD_FAST_SHARE, LOUD_SLOWEST_BPM = 130.0, 0.2, 0.5, 80.0
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Performance:
    """Notes whose start and length are seconds, and the time and position in the bar of every beat."""

    notes: Notes
    beats: Seconds
    positions: NDArray[np.int64]
    bpm: float
    seconds: float


def draw_bpm(score: Score, typical: float, generator: np.random.Generator) -> float:
    """A tempo around `typical` at which the score's beats are those one would count; a fifth of them are fast.

    A tempo drawn without regard to the notes makes beats that nobody could find: a ballad at 200 BPM is heard at 100.
    Of a rock band half are fast, its kick's sixteenths as well: their rate and the snare tell that from half of it.
    """
    density = len(np.unique(np.rint(score.notes["start"] * 6))) / score.beats
    slowest, fastest = (float(np.interp(density, DENSITIES, limit)) for limit in (SLOWEST_BPM, FASTEST_BPM))
    fastest = min(fastest, FASTEST_TO_TYPICAL * typical)
    share = FAST_SHARE
    if score.loud:
        slowest, fastest, share = LOUD_SLOWEST_BPM, MAX_BPM, LOUD_FAST_SHARE
    fast = generator.random() < share and fastest > FAST_BPM
    while True:
        bpm = typical * 2 ** generator.normal(0, SPREAD_OCTAVES)
        if fast:
            bpm = np.exp(generator.uniform(np.log(FAST_BPM), np.log(fastest)))
        if slowest <= bpm <= fastest:
            return float(bpm)


def perform(score: Score, bpm: float, generator: np.random.Generator, lead_in: float = 0.3) -> Performance:
    """Play `score` at `bpm`: six in ten with a steady clock, the others drifting, a few with rubato.

    The first beat falls `lead_in` seconds after the start.
    """
    clock = lead_in + _clock(score.beats, bpm, generator)
    swing = _swing(score, generator)
    played = score.notes.copy()
    start = _warp(score.notes["start"], swing)
    end = _warp(score.notes["start"] + score.notes["length"], swing)
    grid = np.arange(len(clock)) / STEPS
    played["start"], end = np.interp(start, grid, clock), np.interp(end, grid, clock)
    touch = generator.choice([0.0, 0.004, 0.008, 0.014], p=[0.3, 0.3, 0.25, 0.15])
    played["start"] += generator.normal(0, touch, len(played)) if touch else 0.0
    played["start"] = played["start"].clip(0)
    played["length"] = ((end - played["start"]) * generator.uniform(0.7, 1.0)).clip(0.03)
    accent = np.where(np.mod(score.notes["start"] - score.first, score.metre) < 1e-6, generator.uniform(0, 14), 0)
    velocity = played["velocity"] + accent + generator.normal(0, generator.uniform(2, 9), len(played))
    played["velocity"] = velocity.round().clip(12, 127)
    played = played[np.argsort(played["start"], kind="stable")]
    seconds = min(float(clock[-1]), MAX_SECONDS)
    beats = clock[::STEPS][: score.beats]
    heard = beats < seconds
    return Performance(played[played["start"] < seconds], beats[heard], score.positions[heard], bpm, seconds)


def _clock(beats: int, bpm: float, generator: np.random.Generator) -> Seconds:
    """Seconds (STEPS * beats + 1,) at every step from the first beat on."""
    steps = STEPS * beats
    style = generator.choice(["steady", "drift", "rubato", "ramp"], p=[0.6, 0.25, 0.1, 0.05])
    logs = np.zeros(steps)
    if style in ("drift", "rubato"):
        knots = np.arange(0, steps + 1, STEPS * (8 if style == "drift" else 3))
        size = 0.02 if style == "drift" else 0.08
        logs = np.interp(np.arange(steps), knots, generator.normal(0, size, len(knots)))
    elif style == "ramp":
        logs = np.linspace(0, generator.uniform(-0.12, 0.12), steps)
    seconds = 60 / bpm / STEPS * np.exp(logs)
    return np.concatenate([[0.0], np.cumsum(seconds)])


def _swing(score: Score, generator: np.random.Generator) -> float:
    """Where the middle of a beat is played, as a share of the beat: 0.5 is straight, 2/3 a triplet's."""
    if not score.swings or generator.random() < 0.75:
        return 0.5
    return float(generator.uniform(0.54, 0.68))


def _warp(times: Seconds, middle: float) -> Seconds:
    whole = np.floor(times)
    part = times - whole
    late = middle + (part - 0.5) * (1 - middle) / 0.5
    return whole + np.where(part < 0.5, part * middle / 0.5, late)
