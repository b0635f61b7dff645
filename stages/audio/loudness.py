"""How loud music is to the ear: integrated loudness of mono sound by ITU-R BS.1770-4."""

import math

import numpy as np
from numpy.typing import NDArray

BLOCK_SECONDS, STEP_SECONDS = 0.4, 0.1
ABSOLUTE_GATE_LUFS, RELATIVE_GATE_LU = -70.0, -10.0
OFFSET_DB = -0.691  # makes a sine of 997 Hz at full scale -3.01 LUFS
# The standard prints its two filters for 48 kHz only; these analogue ones give the same there, and hold at any rate
SHELF_HZ, SHELF_Q, SHELF_DB, SHELF_SLOPE = 1681.974450955533, 0.7071752369554196, 3.999843853973347, 0.4996667741545416
HIGH_PASS_HZ, HIGH_PASS_Q = 38.13547087602444, 0.5003270373238773


def lufs(samples: NDArray[np.float32], sample_rate: int) -> float:
    """Loudness of (L,) in LUFS; NaN where no block of it is above the absolute gate."""
    from scipy.signal import sosfilt

    heard = np.asarray(sosfilt(k_weighting(sample_rate), samples.astype(np.float64)))
    size, step = round(BLOCK_SECONDS * sample_rate), round(STEP_SECONDS * sample_rate)
    starts = range(0, max(len(heard) - size, 0) + 1, step)
    power = np.array([np.mean(heard[start : start + size] ** 2) for start in starts])
    power = power[power > _power(ABSOLUTE_GATE_LUFS)]
    if not len(power):
        return math.nan
    return _level(power[power > _power(_level(power.mean()) + RELATIVE_GATE_LU)].mean())


def k_weighting(sample_rate: int) -> NDArray[np.float64]:
    """The shelf for the head's effect, then the high-pass: second-order sections (2, 6)."""
    k, gain = math.tan(math.pi * SHELF_HZ / sample_rate), 10 ** (SHELF_DB / 20)
    slope = gain**SHELF_SLOPE * k / SHELF_Q
    shelf = [gain + slope + k * k, 2 * (k * k - gain), gain - slope + k * k]
    norm, poles = _poles(k, SHELF_Q)
    _, low = _poles(math.tan(math.pi * HIGH_PASS_HZ / sample_rate), HIGH_PASS_Q)
    return np.array([[*(b / norm for b in shelf), *poles], [1, -2, 1, *low]])


def _poles(k: float, q: float) -> tuple[float, list[float]]:
    norm = 1 + k / q + k * k
    return norm, [1.0, 2 * (k * k - 1) / norm, (1 - k / q + k * k) / norm]


def _level(power: float) -> float:
    return OFFSET_DB + 10 * math.log10(power)


def _power(level: float) -> float:
    return float(10 ** ((level - OFFSET_DB) / 10))
