"""FD, IS, KL, density and coverage against independent implementations, and their order on damaged music."""

import importlib.util

import numpy as np
import pytest
import scipy.linalg
import soundfile
import torch

from stages import params as parameters
from stages.evaluate.backbones import MusicnnBackbone
from stages.evaluate.embeddings import Embedded, Segment, embed
from stages.evaluate.quality import (
    density_coverage,
    fd_infinity,
    frechet_distance,
    inception_score,
    kernel,
    kernel_distance,
    kl_divergences,
    quality,
    sigmoid,
    softmax,
    subset_distance,
)
from stages.params import Evaluate
from tests import DEMO

RATE = 16_000


def logits(n, k, seed):
    return np.random.default_rng(seed).normal(0, 3, (n, k))


@pytest.mark.parametrize("n", [103, 40])
def test_is_is_audioldm_evals_over_ten_splits_with_its_seed(n):
    found = logits(n, 527, 0)
    features = torch.from_numpy(found)[np.random.RandomState(2020).permutation(n), :]
    p, log_p = features.softmax(dim=1), features.log_softmax(dim=1)
    scores = []
    for i in range(10):
        part = slice(i * n // 10, (i + 1) * n // 10)
        mean = p[part].mean(0, keepdim=True)
        scores.append((p[part] * (log_p[part] - mean.log())).sum(1).mean().exp().item())
    assert inception_score(softmax(found), 10) == pytest.approx(np.mean(scores), rel=1e-6)
    assert inception_score(softmax(found)) > inception_score(softmax(found), 10)


@pytest.mark.parametrize("activation", [(softmax, lambda x: x.softmax(1)), (sigmoid, torch.sigmoid)])
def test_kl_is_audioldm_evals(activation):
    ours, theirs = activation
    target, made = logits(20, 527, 1), logits(20, 527, 2)
    expected = torch.nn.functional.kl_div(
        (theirs(torch.from_numpy(made)) + 1e-6).log(), theirs(torch.from_numpy(target)), reduction="sum"
    ) / len(made)
    assert kl_divergences(ours(target), ours(made)).mean() == pytest.approx(expected.item(), rel=1e-6)


def test_fd_is_the_textbooks_at_the_size_of_vggish():
    generator = np.random.default_rng(3)
    x, y = (generator.normal(size=(400, 128)) @ generator.normal(size=(128, 128)) for _ in range(2))
    sx, sy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(sx + sy - 2 * scipy.linalg.sqrtm(sx @ sy).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_density_and_coverage_by_a_loop_and_by_their_authors():
    generator = np.random.default_rng(4)
    real, made = generator.normal(size=(60, 5)), generator.normal(0.5, 0.7, size=(45, 5))
    radius = [sorted(np.linalg.norm(real - row, axis=1))[5] for row in real]
    inside = np.array([[np.linalg.norm(row - m) < r for m in made] for row, r in zip(real, radius, strict=True)])
    assert density_coverage(made, real) == pytest.approx((inside.sum() / (5 * 45), inside.any(1).mean()))
    assert density_coverage(real, real)[1] == 1.0
    assert density_coverage(made + 100, real) == (0.0, 0.0)
    if importlib.util.find_spec("prdc"):
        from prdc import compute_prdc

        theirs = compute_prdc(real_features=real, fake_features=made, nearest_k=5)
        assert density_coverage(made, real) == pytest.approx((theirs["density"], theirs["coverage"]), rel=1e-6)


def test_fd_infinity_takes_off_most_of_the_bias_of_few_clips():
    generator = np.random.default_rng(5)
    real, made = generator.normal(size=(20_000, 16)), generator.normal(size=(200, 16)) + 0.25
    true = 16 * 0.25**2
    biased, (limit, fit) = frechet_distance(made, real), fd_infinity(made, real, 0)
    assert abs(limit - true) < 0.5 * abs(biased - true)
    assert fit > 0.95


def test_the_interval_of_fd_infinity_resamples_tracks():
    """The same tracks with four windows each that hardly differ are no more than the tracks."""
    generator = np.random.default_rng(8)
    real, tracks = generator.normal(size=(100, 4)), 1.5 * generator.normal(size=(40, 4)) + 0.5
    made = np.repeat(tracks, 4, axis=0) + 0.01 * generator.normal(size=(160, 4))

    def figures(x, names):
        sets = Embedded(names, np.zeros(len(x)), x, None, "test", "none", [RATE]), Embedded(
            [f"r{i}" for i in range(100)], np.zeros(100), real, None, "test", "none", [RATE])  # fmt: skip
        return quality(*sets, Evaluate(bootstrap=60))["fd_infinity"]

    by_track = figures(made, [f"t{i // 4}" for i in range(160)])
    by_window = figures(made, [f"w{i}" for i in range(160)])
    spread = [fd_infinity(1.5 * generator.normal(size=(40, 4)) + 0.5, real, 0)[0] for _ in range(30)]
    half = (by_track["high"] - by_track["low"]) / 2
    assert half > 1.4 * (by_window["high"] - by_window["low"]) / 2
    assert 0.6 < half / (1.96 * np.std(spread)) < 2.2  # what new tracks would do
    assert (by_track["n"], by_track["trials"]) == (160, 40)


@pytest.mark.parametrize(("n", "m", "size"), [(60, 45, 20), (30, 40, 1000)])
def test_kid_of_subsets_is_audioldm_evals(n, m, size):
    """Their `calculate_kid` written down again: float32 features, subsets of at most the smaller set, seed 2020."""
    generator = np.random.default_rng(9)
    x, y = generator.normal(size=(n, 32)).astype(np.float32), generator.normal(0.3, 1, (m, 32)).astype(np.float32)
    draw, taken, found = np.random.RandomState(2020), min(size, n, m), []
    for _ in range(100):
        a, b = x[draw.choice(n, taken, replace=False)], y[draw.choice(m, taken, replace=False)]
        within = sum(
            (float(left @ right) / 32 + 1) ** 3 / (taken * (taken - 1))
            for one in (a, b)
            for i, left in enumerate(one)
            for j, right in enumerate(one)
            if i != j
        )
        across = sum((float(left @ right) / 32 + 1) ** 3 for left in a for right in b) / taken**2
        found.append(within - 2 * across)
    x, y = x.astype(float), y.astype(float)
    kernels = kernel(x, x), kernel(y, y), kernel(x, y)
    mean, deviation = subset_distance(*kernels, size=size)
    assert (mean, deviation) == pytest.approx((np.mean(found), np.std(found)), abs=1e-6)
    assert abs(mean - kernel_distance(*kernels)) > 1e-5  # another number than over all pairs


def test_one_file_and_equal_files_are_said():
    def segments(names, seed):
        for name in names:
            yield Segment(name, 0, np.random.default_rng(seed[name]).normal(size=RATE).astype(np.float32), RATE)

    audio, network = parameters.preset("tiny").audio, MusicnnBackbone(RATE)
    found = embed(segments("abc", {"a": 1, "b": 2, "c": 1}), network, audio, "generated")
    assert found.warnings == ["1 of 3 in the set `generated` sound exactly like another one: c like a. They count as "
                              "different clips."]  # fmt: skip
    one = Embedded(["a", "a", "a"], np.arange(3.0), found.vectors, found.logits, "test", "none", [RATE])
    said = " ".join(quality(one, found, Evaluate(bootstrap=5))["warnings"])
    assert "The generated set is one file, 3 windows of one track: its own spread is in no interval." in said


def test_few_clips_are_said_to_be_few():
    few = Embedded(list("abcd"), np.zeros(4), logits(4, 30, 6), logits(4, 50, 7), "test", "none", [RATE])
    found = quality(few, few, Evaluate(bootstrap=10))
    assert [found[key] for key in ("is_softmax", "density", "coverage", "fd_infinity")] == [None] * 4
    said = " ".join(found["warnings"])
    assert "IS over 10 splits needs 20 clips" in said
    assert "Density and coverage need more than 5" in said
    assert "FD-infinity needs 24" in said
    assert "biased upwards" in said


DAMAGE = {
    "noise": lambda x, amount, g: x + amount * x.std() * g.standard_normal(len(x)).astype(np.float32),
    "low-pass": lambda x, amount, g: _lowpass(x, 8000 * (1 - amount)),
    "shuffled": lambda x, amount, g: _shuffled(x, amount, g),
}


def _lowpass(samples, hertz):
    spectrum = np.fft.rfft(samples)
    spectrum[int(hertz * len(samples) / RATE) :] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def _shuffled(samples, amount, generator):
    """Grains of 50 ms; `amount` of them change places."""
    grains = samples[: len(samples) // 800 * 800].reshape(-1, 800).copy()
    moved = np.flatnonzero(generator.random(len(grains)) < amount)
    grains[moved] = grains[generator.permutation(moved)]
    return grains.ravel()


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_fd_of_real_music_rises_with_damage_and_is_zero_without(damage):
    audio = parameters.preset("tiny").audio
    files = sorted(DEMO.glob("*.ogg"))[::4]
    clips = [soundfile.read(file, frames=audio.clip_samples, dtype="float32")[0] for file in files]
    network, found = MusicnnBackbone(RATE), []
    for amount in (0.0, 0.1, 0.3, 0.6, 0.9):
        generator = np.random.default_rng(0)
        changed = clips if amount == 0 else [DAMAGE[damage](clip, amount, generator) for clip in clips]
        found.append(
            embed([Segment(f.stem, 0, c, RATE) for f, c in zip(files, changed, strict=True)], network, audio, "x")
        )
    distances = [frechet_distance(one.vectors, found[0].vectors) for one in found]
    print(damage, len(clips), [round(x, 3) for x in distances])
    assert len(clips) == 27
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances == sorted(distances)
    assert len(set(distances)) == 5
