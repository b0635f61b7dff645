"""The level of finished sound, against sines and constants whose answer is known."""

import numpy as np
import pytest
import torch
from scipy.signal import freqz, windows

from stages.audio.level import PEAK, limited, limiter, without_offset

RATE = 16_000


def sine(hertz, seconds=1.0, rate=RATE):
    return torch.sin(2 * torch.pi * hertz * torch.arange(round(seconds * rate), dtype=torch.float64) / rate).float()


def test_headroom_is_a_decibel():
    assert -1.1 < 20 * np.log10(PEAK) < -1.0


@pytest.mark.parametrize("length", [1, 100, 1601, 16_000])
@pytest.mark.parametrize("rate", [8000, 44_100])
def test_nothing_is_left_of_a_constant(length, rate):
    assert without_offset(torch.full((2, length), -0.125), rate).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("hertz", "low", "high"), [(1, 0.0, 0.02), (10, 0.49, 0.51), (20, 0.97, 1.03), (50, 0.97, 1.03)]
)
def test_what_is_left_of_a_sine_by_its_frequency(hertz, low, high):
    kept = without_offset(0.3 + sine(hertz, 4.0)[None], RATE)[0, RATE:-RATE]
    gain = float(kept.square().mean().sqrt() / sine(hertz, 4.0)[RATE:-RATE].square().mean().sqrt())
    assert low <= gain <= high
    window = windows.hann(1601)
    wanted = 1 - np.abs(freqz(window / window.sum(), worN=[hertz], fs=RATE)[1][0])
    assert gain == pytest.approx(wanted, abs=0.06)


def test_the_inside_does_not_depend_on_what_is_far_away():
    audio = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0)) + 0.2
    whole, part = without_offset(audio, RATE), without_offset(audio[:, 2000:6000], RATE)
    torch.testing.assert_close(part[:, 800:-800], whole[:, 2800:5200], rtol=0, atol=1e-5)


def test_a_whole_clip_is_scaled_by_one_gain():
    loud, gain = limited(4 * sine(440))
    assert gain == pytest.approx(PEAK / 4, rel=1e-4)
    torch.testing.assert_close(loud, gain * 4 * sine(440))
    quiet = 0.5 * sine(440)
    assert torch.equal(limited(quiet)[0], quiet)
    assert limited(torch.zeros(3))[1] == 1.0


def test_the_limiter_lowers_what_is_around_a_peak_and_nothing_else():
    audio = 0.5 * sine(440)
    audio[8000:8010] = torch.tensor([3.0, -3.0]).repeat(5)
    found = limiter(audio, RATE)
    assert found.abs().max() <= PEAK
    far = 2 * round(0.01 * RATE) + 1
    assert torch.equal(found[: 8000 - far], audio[: 8000 - far])
    assert torch.equal(found[8010 + far :], audio[8010 + far :])
    gain = (found / audio)[audio.abs() > 0.05]
    assert gain.diff().abs().max() < 0.1  # no click
    part = limiter(audio[7000:9000], RATE)
    torch.testing.assert_close(part, found[7000:9000], rtol=0, atol=1e-6)
    assert torch.equal(limiter(0.5 * sine(440), RATE), 0.5 * sine(440))
