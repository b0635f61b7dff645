"""From a performance to sound: a General MIDI soundfont, then a room, a band limit, noise, compression."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.data.score_beats.perform import Performance
from stages.data.score_beats.score import DRUMS

SAMPLE_RATE = 16_000
RENDER_RATE = 32_000  # the synthesiser interpolates linearly: an octave more keeps its images out
TAIL_SECONDS = 0.6
BLOCK_SAMPLES = 64
Sound = NDArray[np.float32]


def render(
    performance: Performance,
    programs: Sequence[int],
    soundfonts: Mapping[str, Path],
    chosen: tuple[str, str],
    generator: np.random.Generator,
    amplified: Sequence[int] = (),
) -> Sound:
    """Mono (n,) float32 at 16 kHz, peak 0.9 or less, by two of `soundfonts`: the instruments' and the drums'.

    The parts `amplified` are distorted together before they join the others.
    """
    import soxr

    def played(of_these: NDArray[np.bool_]) -> Sound:
        notes = performance.notes[of_these]
        return _synthesise(dataclasses.replace(performance, notes=notes), programs, soundfonts, chosen, generator)

    guitars = np.isin(performance.notes["part"], amplified)
    wide = played(~guitars)
    if guitars.any():
        wide = wide + _amplified(played(guitars), generator) * (_rms(wide) * generator.uniform(0.5, 1.5))
    return effects(soxr.resample(wide, RENDER_RATE, SAMPLE_RATE, "HQ"), generator)


def _synthesise(
    performance: Performance,
    programs: Sequence[int],
    soundfonts: Mapping[str, Path],
    chosen: tuple[str, str],
    generator: np.random.Generator,
) -> Sound:
    synth, numbers = _synth(tuple(soundfonts.items()))
    font, kit = (numbers[name] for name in chosen)
    synth.notes_off()
    synth.sounds_off()
    channels = _channels(programs)
    for channel, program in zip(channels, programs, strict=True):
        if program == DRUMS:
            synth.program_select(channel, kit, 128 if kit == font else 0, 0, True)  # a kit alone has but one program
        else:
            synth.program_select(channel, font, 0, program, False)
        synth.control_change(channel, 7, int(generator.integers(64, 120)))
    samples = round((performance.seconds + TAIL_SECONDS) * RENDER_RATE)
    made = np.zeros(samples, dtype=np.float32)
    at = 0
    for time, _, channel, pitch, velocity in _events(performance, channels):
        until = min(int(time * RENDER_RATE) // BLOCK_SAMPLES * BLOCK_SAMPLES, samples)
        if until > at:
            made[at:until] = _generate(synth, until - at)
            at = until
        if velocity:
            synth.noteon(channel, pitch, velocity)
        else:
            synth.noteoff(channel, pitch)
    made[at:] = _generate(synth, samples - at)
    return made


def _events(performance: Performance, channels: Sequence[int]) -> list[tuple[float, int, int, int, int]]:
    """(seconds, 0 for an end or 1 for a start, channel, pitch, velocity), ends before starts."""
    events = []
    for start, length, pitch, velocity, part in performance.notes.tolist():
        events.append((start, 1, channels[part], pitch, velocity))
        events.append((start + length, 0, channels[part], pitch, 0))
    return sorted(events)


def _channels(programs: Sequence[int]) -> list[int]:
    """A MIDI channel for every part; drums share the tenth."""
    free = iter([channel for channel in range(64) if channel != 9])
    return [9 if program == DRUMS else next(free) for program in programs]


def _generate(synth: Any, samples: int) -> Sound:
    stereo = np.frombuffer(bytes(synth.generate(samples)), dtype=np.float32).reshape(-1, 2)
    return stereo.mean(axis=1)


@lru_cache(maxsize=1)
def _synth(soundfonts: tuple[tuple[str, Path], ...]) -> tuple[Any, dict[str, int]]:
    """A synthesiser with all soundfonts, and each one's number in it.

    They take seconds to load. One at a time would be worse: joblib ends a process that has grown since its first task.
    """
    import tinysoundfont

    synth = tinysoundfont.Synth(gain=-6, samplerate=RENDER_RATE)
    return synth, {name: synth.sfload(str(path)) for name, path in soundfonts}


def effects(sound: Sound, generator: np.random.Generator) -> Sound:
    """A recording's faults, each with its own probability: room, compression, band limits, noise; then the level."""
    sound = _normalised(sound)
    if generator.random() < 0.45:
        sound = _normalised(_reverb(sound, generator))
    if generator.random() < 0.35:
        sound = np.tanh(sound * np.float32(generator.uniform(1.5, 6)))
    if generator.random() < 0.3:
        sound = _filtered(sound, generator.uniform(2500, 7000), "low", 4)
    if generator.random() < 0.2:
        sound = _filtered(sound, generator.uniform(60, 250), "high", 2)
    if generator.random() < 0.35:
        sound = sound + _noise(len(sound), generator) * np.float32(np.sqrt(np.mean(sound**2)))
    return _normalised(sound) * np.float32(10 ** generator.uniform(-1.0, -0.05))


def _amplified(sound: Sound, generator: np.random.Generator) -> Sound:
    """Through an overdriven amplifier and its cabinet, at RENDER_RATE; RMS 1."""
    driven = np.tanh(_normalised(sound) * np.float32(10 ** generator.uniform(0.5, 1.7)))
    for hertz, kind in ((generator.uniform(70, 150), "high"), (generator.uniform(3000, 6000), "low")):
        driven = _filtered(driven, hertz, kind, 2, RENDER_RATE)
    return driven / np.float32(_rms(driven))


def _rms(sound: Sound) -> float:
    return float(np.sqrt(np.mean(sound**2))) or 1.0


def _normalised(sound: Sound) -> Sound:
    peak = float(np.abs(sound).max(initial=0))
    return (sound / np.float32(peak)) if peak > 0 else sound


def _reverb(sound: Sound, generator: np.random.Generator) -> Sound:
    """Mixed with itself through noise that decays by 60 dB in 0.2 to 2 seconds."""
    from scipy.signal import oaconvolve

    decay = generator.uniform(0.2, 2.0)
    time = np.arange(round(decay * SAMPLE_RATE)) / SAMPLE_RATE
    response = generator.normal(size=len(time)) * 10 ** (-3 * time / decay)
    response /= np.sqrt(np.sum(response**2))
    wet = oaconvolve(sound, response)[: len(sound)]
    return (sound + generator.uniform(0.05, 0.5) * wet).astype(np.float32)


def _filtered(sound: Sound, hertz: float, kind: str, order: int, rate: int = SAMPLE_RATE) -> Sound:
    from scipy.signal import butter, sosfilt

    return np.asarray(sosfilt(butter(order, hertz, kind, fs=rate, output="sos"), sound), dtype=np.float32)


def _noise(samples: int, generator: np.random.Generator) -> Sound:
    """White or brown-tinted noise of RMS -8 to -40 dB."""
    noise = generator.normal(size=samples).astype(np.float32)
    if generator.random() < 0.5:
        noise = _filtered(noise, 500, "low", 1)
    level = 10 ** (generator.uniform(-40, -8) / 20)
    return noise * np.float32(level / np.sqrt(np.mean(noise**2)))
