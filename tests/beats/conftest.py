"""What the tests of this room share: hypothesis settings, and sounds with a known beat."""

import hypothesis
import numpy as np
import pytest

from stages import params
from stages.beats.backends import load_backend

SAMPLE_RATE = 44_100

# a machine that does other things too is no reason to fail an example
hypothesis.settings.register_profile("beats", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("beats")


def click_track(bpm: float, seconds: float, metre: int = 4, start: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """Drums at 44.1 kHz, a kick on the downbeat and a snare on the other beats; and the bars (N, 2) they play."""
    samples = np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)
    times = np.arange(start, seconds - 0.3, 60 / bpm)
    positions = np.arange(len(times)) % metre + 1
    clock = np.arange(round(0.2 * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(0).normal(size=len(clock))
    kick = np.sin(2 * np.pi * 60 * clock) * np.exp(-clock * 20) + 0.2 * noise * np.exp(-clock * 400)
    snare = 0.3 * noise * np.exp(-clock * 40)
    for time, position in zip(times, positions, strict=True):
        first = round(time * SAMPLE_RATE)
        samples[first : first + len(clock)] += kick if position == 1 else snare
    return samples / np.abs(samples).max(), np.stack([times, positions], axis=1)


@pytest.fixture(scope="session", params=["beat-transformer", "madmom"])
def backend(request):
    """Each network that comes with this package or its dependencies."""
    return load_backend(params.Beats(backend=request.param))
