"""Loudness against what ITU-R BS.1770-4 prints and EBU Tech 3341 asks of a meter."""

import math

import numpy as np
import pytest

from stages.audio.loudness import k_weighting, lufs


def tone(hertz, dbfs, seconds, rate):
    return (10 ** (dbfs / 20) * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_the_filters_are_those_printed_for_48_khz():
    printed = [[1.53512485958697, -2.69169618940638, 1.19839281085285, 1, -1.69065929318241, 0.73248077421585],
               [1, -2, 1, 1, -1.99004745483398, 0.99007225036621]]  # fmt: skip
    assert np.allclose(k_weighting(48_000), printed, rtol=0, atol=1e-8)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_full_scale_at_997_hertz_is_the_calibration(rate):
    """0.04 dB off at 16 kHz, for digital filters bend towards half the rate; a meter may be off by 0.1."""
    assert lufs(tone(997, 0, 2, rate), rate) == pytest.approx(-3.01, abs=0.05)
    assert lufs(tone(997, -20, 0.5, rate), rate) == pytest.approx(-23.01, abs=0.05)


def test_gates_leave_out_what_is_quiet():
    """Cases 3 and 4 of EBU Tech 3341, in one channel, so 3.01 dB below what two have."""
    parts = [(-36, 10), (-23, 60), (-36, 10)]
    case_3 = np.concatenate([tone(1000, level, seconds, 48_000) for level, seconds in parts])
    case_4 = np.concatenate([tone(1000, -72, 10, 48_000), case_3, tone(1000, -72, 10, 48_000)])
    for case in (case_3, case_4):
        assert lufs(case, 48_000) == pytest.approx(-23 - 3.01, abs=0.1)


def test_silence_has_no_loudness():
    assert math.isnan(lufs(np.zeros(16_000, np.float32), 16_000))
    assert math.isnan(lufs(tone(997, -80, 1, 16_000), 16_000))
