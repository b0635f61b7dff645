"""What can be measured of a track without listening to it: key, loudness, dynamics, brightness, music tags."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.audio import musicnn
from stages.errors import MissingDependencyError

SAMPLE_RATE = musicnn.SAMPLE_RATE
N_FFT = 4096  # a quarter of a second: resolves semitones from 70 Hz on
HOP_SAMPLES = 2048
SILENCE_DBFS = -70.0  # frames below say nothing
TAG_PATCHES = 10  # of 3 s, spread evenly over the track
TONICS = ["C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B"]

# How well each pitch class, from the tonic on, fits a key: Krumhansl and Kessler's probe tone ratings (1982).
PROFILES = {
    "major": [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],
    "minor": [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17],
}
VERSION = 1  # of the measurements; raise it when they change, so that none kept from before are used


@dataclass(frozen=True)
class Descriptors:
    """Measurements of one track. Silence has no loudness, no key, no brightness and no tags."""

    loudness_dbfs: float | None  # RMS over the track, full scale 1.0
    dynamics_db: float  # between the quiet tenth and the loud twentieth of the frames that sound
    brightness_hz: float | None  # spectral centroid, mean over the frames weighted by their magnitude
    key: str | None  # such as "E flat minor"
    key_correlation: float  # of the mean chroma with that key's profile, -1 .. 1
    key_margin: float  # how much less the second-best key correlates
    tags: dict[str, float]  # every label of MTT_musicnn and its mean probability; empty without a tagger


def describe(samples: NDArray[np.float32], tagger: musicnn.MusicNN | None) -> Descriptors:
    """Measure mono float32 samples (L,) at 16 kHz; `tagger` may be None where no tags are wanted."""
    import librosa

    magnitude = np.abs(librosa.stft(samples, n_fft=N_FFT, hop_length=HOP_SAMPLES, pad_mode="constant"))
    frames = decibels(librosa.feature.rms(y=samples, frame_length=N_FFT, hop_length=HOP_SAMPLES)[0])
    sounding = frames > SILENCE_DBFS
    if not sounding.any():
        return Descriptors(None, 0.0, None, None, 0.0, 0.0, {})
    quiet, loud = np.percentile(frames[sounding], [10, 95])
    centroid = librosa.feature.spectral_centroid(S=magnitude, sr=SAMPLE_RATE)[0]
    chroma = librosa.feature.chroma_stft(S=magnitude**2, sr=SAMPLE_RATE, n_fft=N_FFT)[:, sounding]
    key, correlation, margin = find_key(chroma.mean(axis=1))
    return Descriptors(
        loudness_dbfs=float(decibels(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))),
        dynamics_db=float(loud - quiet),
        brightness_hz=float(np.average(centroid, weights=magnitude.sum(axis=0))),
        key=key,
        key_correlation=correlation,
        key_margin=margin,
        tags={} if tagger is None else music_tags(samples, tagger),
    )


def compile_librosa() -> None:
    """Have librosa's functions compiled and cached by one process, before several begin.

    numba's cache, where it is empty, mixes up what two processes save at once, and whoever reads it then crashes.
    Raises MissingDependencyError where there is no place for it.
    """
    noise = 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    try:
        describe(noise.astype(np.float32), None)
    except RuntimeError as error:
        if "cannot cache function" not in str(error):
            raise
        raise MissingDependencyError(
            "numba has no folder to keep librosa's compiled functions in: neither home nor temporary folder can be "
            "written.", "Name one that can be: NUMBA_CACHE_DIR=DIR"
        ) from error  # fmt: skip


def find_key(chroma: NDArray[np.floating]) -> tuple[str, float, float]:
    """The key whose Krumhansl-Kessler profile correlates best with a chroma vector (12,), from C on.

    Returns its name, the correlation, and the distance to the second-best key's.
    """
    found = {
        f"{tonic} {mode}": float(np.corrcoef(np.roll(profile, shift), chroma)[0, 1])
        for mode, profile in PROFILES.items()
        for shift, tonic in enumerate(TONICS)
    }
    best, second = sorted(found, key=lambda name: -found[name])[:2]
    return best, found[best], found[best] - found[second]


def music_tags(samples: NDArray[np.float32], tagger: musicnn.MusicNN) -> dict[str, float]:
    """Probability of each of the tagger's labels, mean over TAG_PATCHES patches spread over the track."""
    import torch

    length = (musicnn.PATCH_FRAMES - 1) * musicnn.HOP_SAMPLES
    last = max(len(samples) - length, 0)
    starts = np.linspace(0, last, min(TAG_PATCHES, last // length + 1)).astype(int)
    patches = np.stack([samples[start : start + length] for start in starts])
    with torch.inference_mode():
        probabilities = tagger(torch.from_numpy(patches))[0].mean(dim=0)
    return dict(zip(tagger.labels, probabilities.tolist(), strict=True))


def decibels(amplitude: NDArray[np.floating]) -> NDArray[np.floating]:
    """20 log10 of amplitudes in full scales; -inf for zero."""
    with np.errstate(divide="ignore"):
        return 20 * np.log10(amplitude)
