"""Figures as people read them: decimals that the interval bears out, arrows, counts of cases, singular and plural."""

import pytest

from stages.evaluate import wording
from stages.evaluate.intervals import figure
from stages.evaluate.run import QUALITY, RELEVANCE


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (26.6712, 22.1, 31.9, ("26.7", "22.1", "31.9")),
        (0.87312, 0.8689, 0.8773, ("0.8731", "0.8689", "0.8773")),
        (0.5, 0.15, 0.85, ("0.50", "0.15", "0.85")),
        (1234.5, 1000.0, 1500.0, ("1234", "1000", "1500")),
        (-0.0004, -0.02, 0.02, ("0.000", "-0.020", "0.020")),
        (0.25, 0.25, 0.25, ("0.25", "0.25", "0.25")),  # of one case there is no interval
        (0.0, 0.0, 0.0, ("0", "0", "0")),
    ],
)
def test_figures_have_two_digits_of_half_their_interval(value, low, high, text):
    assert wording.shown(figure(value, low, high, 40)) == text


def test_the_interval_of_few_cases_is_itself_uncertain_and_shown_with_one_digit():
    assert wording.shown(figure(0.3124, 0.2511, 0.3737, 4)) == ("0.31", "0.25", "0.37")
    assert wording.shown(figure(0.3124, 0.2511, 0.3737, 50, 4)) == ("0.31", "0.25", "0.37")
    assert wording.shown(figure(0.3124, 0.2511, 0.3737, 50)) == ("0.312", "0.251", "0.374")


def test_windows_are_told_from_the_tracks_they_are_of():
    assert wording.sample(figure(0, 0, 0, 50, 4)) == "50 windows of 4 tracks"
    assert wording.sample(figure(0, 0, 0, 3, 1)) == "3 windows of 1 track"
    assert wording.sample(figure(0, 0, 0, 4)) == "4"
    assert wording.sample({"n": 6, "trials": 1}, "rating", "rater") == "6 ratings of 1 rater"
    assert [wording.counted(n, "clip") for n in (0, 1, 2)] == ["0 clips", "1 clip", "2 clips"]


def test_every_figure_has_a_title_with_its_direction_and_one_short_line_of_meaning():
    keys = [*QUALITY, *RELEVANCE, "within", "sim_aa@0.9", "sim_mel@0.95", "mean_similarity", "recall copy", "map@10",
            "mean_mel_similarity", "duplicates_aa@0.9", "duplicates_mel@0.9", "accuracy"]  # fmt: skip
    for key in keys:
        assert wording.title(key) != key
        (line,) = wording.legend([key])
        assert wording.meaning(key) in line
        assert len(line) <= 80
    assert wording.title("sim_aa@0.9") == "SIM_AA@0.9 ↓"
    assert wording.title("is_softmax").endswith("↑")
    assert wording.title("test_set_reference") == "test set (reference)"  # neither way is better
    assert wording.title("recall pitch_1_semitone") == "recall pitch 1 semitone ↑"
    assert (wording.title("generated / vocoder"), wording.legend(["griffin_lim"])) == ("generated / vocoder", [])
    assert len(wording.legend(["sim_aa@0.9", "sim_aa@0.95"])) == 1


def test_rows_stand_in_columns_and_fit_a_terminal():
    rows = wording.lines(
        {"fd": figure(26.67, 22, 32, 50, 4), "kid": None, "text_audio_similarity": figure(0.3, 0.2, 0.4, 9)}
    )
    assert rows == [
        "FD ↓                      27  [22, 32]    n = 50 windows of 4 tracks",
        "text-audio similarity ↑  0.3  [0.2, 0.4]  n = 9",
    ]
