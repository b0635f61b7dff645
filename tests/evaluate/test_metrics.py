"""Metrics against independent implementations and cases with known answers."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from stages.errors import DataError, GateError, UsageError
from stages.evaluate import intervals
from stages.evaluate.embeddings import Embedded
from stages.evaluate.novelty import Gate, check_gate, novelty, parse_gate
from stages.evaluate.quality import (
    frechet_distance,
    inception_score,
    kernel,
    kernel_distance,
    kl_divergences,
    quality,
    softmax,
)  # fmt: skip
from stages.evaluate.relevance import Texts, relevance
from stages.params import Evaluate

SETTINGS = Evaluate(bootstrap=50)


def gaussian(n, d, seed, shift=0.0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)) @ generator.normal(size=(d, d)) + shift


def embedded(vectors, names=None, logits=None, rates=(16_000,)):
    names = names or [f"clip{i}" for i in range(len(vectors))]
    return Embedded(names, np.zeros(len(names)), np.asarray(vectors, float), logits, "test", "none", list(rates))


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 20), (40, 500, 20), (60, 50, 40)])
def test_fd_agrees_with_the_matrix_square_root(n, m, d):
    x, y = gaussian(n, d, 0), gaussian(m, d, 1, shift=0.5)
    sx, sy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(sx @ sy).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(sx + sy - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(500, 20), (30, 200)])  # fewer clips than dimensions too
def test_fd_of_a_set_to_itself_is_zero(n, d):
    x = gaussian(n, d, 2)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-8 * np.square(x).sum())
    assert frechet_distance(x, x + 3) == pytest.approx(9 * d, rel=1e-9)  # moved by 3 in every dimension


def test_kid_agrees_with_a_loop_over_pairs():
    x, y = gaussian(7, 3, 3), gaussian(5, 3, 4)

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    xx = np.mean([k(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(kernel(x, x), kernel(y, y), kernel(x, y)) == pytest.approx(xx + yy - 2 * xy, rel=1e-9)


def test_kl_has_the_target_first_and_is_scipys_entropy():
    target, made = (softmax(0.3 * gaussian(9, 6, seed)) for seed in (5, 6))
    assert kl_divergences(target, made) == pytest.approx(scipy.stats.entropy(target, made, axis=1), abs=1e-4)
    assert kl_divergences(made, target) != pytest.approx(kl_divergences(target, made), rel=0.05)
    assert kl_divergences(target, target) == pytest.approx(np.zeros(9), abs=1e-5)


def test_inception_score_is_one_for_equal_clips_and_k_for_k_certain_classes():
    assert inception_score(softmax(np.tile([1.0, 2.0, 3.0], (8, 1)))) == pytest.approx(1)
    assert inception_score(softmax(50.0 * np.tile(np.eye(4), (3, 1)))) == pytest.approx(4, rel=1e-6)


def test_wilson_interval_is_scipys():
    for hits, n in ((0, 20), (3, 20), (20, 20)):
        expected = scipy.stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
        found = intervals.share_figure(hits, n)
        assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-6)
    four_windows_each = intervals.share_figure(12, 80, trials=20)
    expected = scipy.stats.binomtest(3, 20).proportion_ci(0.95, method="wilson")
    assert (four_windows_each["value"], four_windows_each["n"]) == (0.15, 80)
    assert (four_windows_each["low"], four_windows_each["high"]) == pytest.approx(
        (expected.low, expected.high), abs=1e-6
    )


def test_mean_interval_is_near_the_normal_one_and_wider_by_group():
    values = np.random.default_rng(0).normal(size=400)
    found = intervals.mean_figure(values, [str(i) for i in range(400)], 2000, 0)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    repeated, names = np.repeat(values[:100], 4), np.repeat(np.arange(100).astype(str), 4).tolist()
    grouped = intervals.mean_figure(repeated, names, 1000, 0)
    naive = intervals.mean_figure(repeated, [str(i) for i in range(400)], 1000, 0)
    assert grouped["high"] - grouped["low"] > 1.6 * (naive["high"] - naive["low"])


def test_holm_is_the_textbooks():
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([0.9, 0.8]) == [1, 1]
    assert intervals.holm([]) == []


def test_quality_intervals_hold_the_value_and_warnings_name_what_limits_it():
    logits = gaussian(30, 5, 8)
    generated = embedded(gaussian(30, 40, 0), logits=logits)
    reference = embedded(gaussian(35, 40, 1), logits=gaussian(35, 5, 9), rates=(44_100,))
    result = quality(generated, reference, SETTINGS)
    for key in ("fd", "kid", "is_softmax", "kl_softmax", "kl_sigmoid"):
        assert result[key]["low"] < result[key]["value"] < result[key]["high"]
    assert (result["n_generated"], result["n_reference"], result["kl_softmax"]["n"]) == (30, 35, 30)
    assert [word in " ".join(result["warnings"]) for word in ("biased", "sample rates")] == [True, True]
    assert quality(generated, reference, SETTINGS) == result  # seeded


def test_kl_pairs_by_name_and_is_missing_without_pairs():
    logits = gaussian(6, 5, 8)
    names = list("abcdef")
    clips, turned = embedded(gaussian(6, 3, 0), names, logits), [x[::-1] for x in (gaussian(6, 3, 0), names, logits)]
    same = quality(clips, embedded(*turned), SETTINGS)
    assert same["kl_softmax"]["value"] == pytest.approx(0, abs=1e-4)
    assert same["fd"]["value"] == pytest.approx(0, abs=1e-9)
    other = quality(clips, embedded(gaussian(6, 3, 0), list("uvwxyz"), logits), SETTINGS)
    assert other["kl_softmax"] is None
    assert "over the 0 clips" in " ".join(other["warnings"])


def test_one_clip_has_no_distance():
    with pytest.raises(DataError, match="needs two"):
        quality(embedded(gaussian(1, 3, 0)), embedded(gaussian(5, 3, 0)), SETTINGS)


def unit(rows):
    rows = np.asarray(rows, float)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_relevance_and_its_references_by_hand():
    texts = Texts(["a", "b"], ["one", "two"], unit([[1, 0], [0, 1]]))
    generated = embedded(unit([[1, 0], [1, 1]]), ["a", "b"])
    training = embedded(unit([[3, 4], [-1, 0]]), ["s", "t"])
    result, rows = relevance(texts, generated, texts, embedded(unit([[0, 1], [0, 1]]), ["a", "b"]), training, SETTINGS)
    assert result["text_audio_similarity"]["value"] == pytest.approx((1 + 0.5**0.5) / 2)
    assert result["test_set_reference"]["value"] == pytest.approx(0.5)
    assert result["retrieval_max_reference"]["value"] == pytest.approx((0.6 + 0.8) / 2)
    assert [row["best_training_track"] for row in rows[:2]] == ["s", "s"]
    with pytest.raises(DataError, match="no audio: b"):
        relevance(texts, embedded(unit([[1, 0]]), ["a"]), None, None, None, SETTINGS)


def test_novelty_finds_the_nearest_window_and_counts_thresholds():
    training = embedded(unit([[1, 0, 0], [0, 1, 0], [0, 0, 1]]), ["s", "t", "t"])
    training.starts[:] = [0, 0, 10.24]
    generated = embedded(unit([[1, 0, 0], [0, 0.1, 1], [1, 1, 0]]))
    result, rows = novelty(generated, embedded(unit([[1, 1, 1]])), training, SETTINGS)
    assert result["generated"]["sim_aa@0.9"]["value"] == pytest.approx(2 / 3)
    assert result["generated"]["sim_aa@0.95"]["value"] == pytest.approx(2 / 3)
    assert result["held_out"]["mean_similarity"]["value"] == pytest.approx(3**-0.5)
    assert [(r["id"], r["training_track"], r["training_start_seconds"]) for r in rows[:2]] == [
        ("clip0", "s", 0.0), ("clip1", "t", 10.24),
    ]  # fmt: skip
    gated, _ = novelty(generated, None, training, SETTINGS, [Gate(0.5, 0.999)])
    check_gate(gated, Gate(0.5, 0.999))  # one of three
    with pytest.raises(GateError, match=r"33\.3% of 3 clips"):
        check_gate(gated, Gate(0.2, 0.999))


def test_gates_are_written_share_at_similarity():
    assert parse_gate("0.05@0.95") == Gate(0.05, 0.95)
    for text in ("0.05", "5%@0.9", "-0.1@0.9", "2@0.9", "0.1@", "nan@0.5"):
        with pytest.raises(UsageError):
            parse_gate(text)
