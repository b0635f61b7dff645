"""The listening test's statistics against published values, brute force and scipy."""

import itertools

import numpy as np
import pytest
from scipy.stats import ttest_rel

from stages.errors import DataError
from stages.evaluate.listening import SCALES, Rating, analyse, krippendorff, sign_flip_p, table

NAN = np.nan
# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: four observers, twelve units
PUBLISHED = np.array([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
])  # fmt: skip


def made(gap, raters=12, seed=0):
    """Ratings of two models, `better` higher by about `gap`."""
    draw = np.random.default_rng(seed)
    rows = []
    for rater, item in itertools.product(range(raters), range(6)):
        for scale in SCALES:
            base = draw.normal(2.5, 0.6)
            for model, shift in (("worse", 0), ("better", gap)):
                value = int(np.clip(round(base + shift + draw.normal(0, 0.5)), 1, 5))
                rows.append(Rating(f"r{rater}", f"i{item}", model, scale, value))
    return rows


def test_alpha_is_krippendorffs_own():
    assert krippendorff(PUBLISHED) == pytest.approx(0.815, abs=5e-4)
    perfect = np.tile(np.array([1.0, 2, 3, 5]), (3, 1))
    assert krippendorff(perfect) == pytest.approx(1)
    assert abs(krippendorff(np.random.default_rng(0).integers(1, 6, (8, 2000)).astype(float))) < 0.02
    assert krippendorff(np.array([[1.0, NAN], [NAN, 2.0]])) is None
    assert krippendorff(np.ones((3, 4))) is None


def test_sign_flips_are_counted_exactly():
    differences = np.array([0.5, 1.0, -0.25, 0.75, 0.3])
    flips = [abs(np.dot(s, differences)) for s in itertools.product((1, -1), repeat=5)]
    expected = np.mean(np.array(flips) >= abs(differences.sum()) - 1e-12)
    assert sign_flip_p(differences, 0) == pytest.approx(expected)
    many = np.random.default_rng(1).normal(0.2, 1, 60)
    assert sign_flip_p(many, 0) == pytest.approx(ttest_rel(many, 0 * many).pvalue, abs=0.02)
    assert sign_flip_p(many, 0) == sign_flip_p(many, 0)
    assert sign_flip_p(np.array([3.0]), 0) == 1


def test_means_pairs_and_table():
    rows = made(1.0)
    result = analyse(rows, ["worse", "better"], 200, 0)
    assert (result["n_raters"], result["n_ratings"]) == (12, 12 * 6 * 3 * 2)
    for scale in SCALES:
        found = result["means"][scale]["better"]
        expected = np.mean([r.value for r in rows if r.model == "better" and r.scale == scale])
        assert found["value"] == pytest.approx(expected)
        assert found["low"] < expected < found["high"]
    assert [pair["scale"] for pair in result["pairs"]] == list(SCALES)
    for pair in result["pairs"]:
        assert pair["difference"] < -0.5
        assert pair["p"] <= pair["p_holm"] < 0.01
    same = analyse(made(0.0), ["worse", "better"], 50, 0)
    assert min(pair["p_holm"] for pair in same["pairs"]) > 0.05
    texts = table(result)
    assert texts["md"].splitlines()[0] == "| Model | Quality ↑ | Relevance ↑ | Musicality ↑ |"
    assert texts["md"].splitlines()[2].startswith(f"| worse | {result['means']['quality']['worse']['value']:.2f} |")
    assert texts["csv"].splitlines()[0].startswith("model,quality,quality_low,quality_high,quality_n,relevance")
    assert r"Quality $\uparrow$" in texts["tex"]


def test_names_with_special_characters_and_missing_cells():
    rows = [Rating("a", "i", "x_1 & 50%|", "quality", 3), Rating("b", "i", "x_1 & 50%|", "quality", 4)]
    texts = table(analyse(rows, ["x_1 & 50%|"], 20, 0))
    assert r"x\_1 \& 50\%| & 3.50 & — & —" in texts["tex"]
    assert r"| x_1 & 50%\| | 3.50 | — | — |" in texts["md"]


def test_nothing_to_analyse_is_a_data_error():
    with pytest.raises(DataError, match="no ratings"):
        analyse([], ["a", "b"], 10, 0)
