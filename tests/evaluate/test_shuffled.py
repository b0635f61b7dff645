"""Whether the prompt matters: true against shuffled pairs, and stated against tracked tempos of real sound files."""

import csv
import json
import math

import numpy as np
import pytest
import soundfile

from stages.evaluate.rhythm import stated_bpm
from stages.evaluate.shuffled import DRAWS, against_shuffled
from tests.beats.conftest import SAMPLE_RATE, click_track


@pytest.mark.parametrize("prompts", [2, 3, 4])
def test_the_chance_of_all_right_is_one_in_the_number_of_permutations(prompts):
    found = against_shuffled(np.eye(prompts), [str(n) for n in range(prompts)], seed=0)
    assert (found["true"], found["shuffled"], found["prompts"]) == (1.0, 0.0, prompts)
    expected = 1 / math.factorial(prompts)
    assert abs(found["p"] - expected) < 4 * math.sqrt(expected / DRAWS)


def test_clips_of_one_prompt_count_as_one():
    """Nine clips of two prompts are no stronger case than two of two."""
    clips = ["a"] * 3 + ["b"] * 6
    scores = np.array([[1.0] * 3 + [0.0] * 6, [0.0] * 3 + [1.0] * 6])
    assert against_shuffled(scores, clips, 0)["p"] == pytest.approx(0.5, abs=0.03)


def test_prompts_that_do_not_matter_and_prompts_that_do():
    same = against_shuffled(np.full((5, 10), 0.3), [str(n // 2) for n in range(10)], 0)
    assert same["p"] == 1.0 and same["true"] == pytest.approx(same["shuffled"])
    noise = np.random.default_rng(0).normal(size=(20, 20))
    assert against_shuffled(noise, [str(n) for n in range(20)], 0)["p"] > 0.01
    assert against_shuffled(noise + 2 * np.eye(20), [str(n) for n in range(20)], 0)["p"] == 1 / (1 + DRAWS)
    assert against_shuffled(np.ones((1, 3)), ["a"] * 3, 0) is None


@pytest.mark.parametrize(
    ("text", "bpm"),
    [
        ("calm piano, 120 BPM", 120.0), ("Fast, 172 bpm.", 172.0), ("92.5BPM: drums", 92.5), ("a waltz", None),
        ("in 1999, BPM unknown", None), ("1120 BPM", None),
    ],
)  # fmt: skip
def test_the_tempo_a_prompt_states(text, bpm):
    assert stated_bpm(text) == bpm


def test_drums_at_the_stated_tempo_and_drums_at_another(tmp_path, typed):
    """Four prompts; the clips of three keep their tempo, those of one are far off; one more prompt states none."""
    rows = [("id", "prompt")]
    for name, stated, played in (("a", 90, 90), ("b", 110, 110), ("c", 140, 140), ("d", 125, 100), ("e", None, 100)):
        soundfile.write(tmp_path / f"{name}.wav", click_track(played, 10.24)[0], SAMPLE_RATE)
        rows.append((name, "drums" if stated is None else f"drums {name}, {stated} BPM"))
    with (tmp_path / "prompts.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)

    code, out, _ = typed(tmp_path, "--json", "eval", "rhythm", tmp_path, "--out", "found")
    found = json.loads(out)
    assert code == 0
    assert (found["n_clips"], found["n_without_tempo"], found["n_untracked"]) == (4, 1, 0)
    assert found["within"]["value"] == 0.75
    assert found["within_against_shuffled"]["shuffled"] < 0.2
    assert json.loads((tmp_path / "found/metrics.json").read_text())["within"] == found["within"]

    (tmp_path / "prompts.csv").write_text("id,prompt\na,drums\n")
    code, out, _ = typed(tmp_path, "--json", "eval", "rhythm", tmp_path, "--out", "found")
    found = json.loads(out)
    assert code == 4 and "tempo" in found["error"]["message"]
