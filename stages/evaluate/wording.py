"""Evaluation figures as text: significant digits by their interval, which way is better, and what they mean."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

MANY = 10  # independent cases, from which on an interval's own error is a quarter of its width or less
DOWN, UP = "↓", "↑"
MEANINGS = {
    "fd": ("FD", DOWN, "Frechet distance from the real clips' embeddings; grows as n falls"),
    "fd_infinity": ("FD-infinity", DOWN, "FD extrapolated to endlessly many clips"),
    "kid": ("KID, all pairs", DOWN, "unbiased kernel distance from the real clips; may be below 0"),
    "kid_audioldm_eval": ("KID, audioldm_eval", DOWN, "as audioldm_eval prints it, the mean over 100 subsets"),
    "density": ("density", UP, "real clips' neighbourhoods that a clip lies in; 1 as dense as real"),
    "coverage": ("coverage", UP, "share of real clips in whose neighbourhood a clip lies"),
    "is_softmax": ("IS, 10 splits", UP, "how sure and how varied the tags are, the mean over ten parts"),
    "is_one_split": ("IS, one split", UP, "how sure and how varied the tags are, over all clips at once"),
    "kl_softmax": ("KL softmax", DOWN, "tags of each clip against the real clip of its name, as one choice"),
    "kl_sigmoid": ("KL sigmoid", DOWN, "the same, each tag by itself"),
    "text_audio_similarity": ("text-audio similarity", UP, "CLAP cosine of each clip with its prompt, -1 to 1"),
    "test_set_reference": ("test set (reference)", "", "CLAP cosine of real test music with its own captions"),
    "retrieval_max_reference": ("retrieval max (reference)", "", "CLAP cosine of each prompt's best training clip"),
    "within": ("stated tempo", UP, "share of clips within 8% of the tempo their prompt states"),
    "within_with_octaves": ("stated tempo, octaves", UP, "half and double the tempo are right too"),
    "sim_aa": ("SIM_AA", DOWN, "share of windows with a training window of this CLAP cosine or more"),
    "sim_mel": ("mel SIM", DOWN, "the same by spectrogram correlation, which tells copies from style"),
    "mean_similarity": ("mean similarity", DOWN, "mean CLAP cosine to the nearest training window"),
    "mean_mel_similarity": ("mean mel similarity", DOWN, "mean spectrogram correlation to the nearest training music"),
    "duplicates_aa": ("duplicates", DOWN, "share of windows with one this near in another track, by CLAP"),
    "duplicates_mel": ("mel duplicates", DOWN, "the same by spectrogram correlation"),
    "recall": ("recall", UP, "share of these disguised copies above the alarm level"),
    "right track": ("right track", UP, "share of them that also name the track they are from"),
    "accuracy": ("accuracy", UP, "share of clips whose nearest class is their own"),
    "map": ("mAP", UP, "mean of 1 / rank of the true class, ranks up to 10"),
    "log_mel_l1": ("log-mel L1", DOWN, "mean difference of log-mels from those of the real clip, in nats"),
}
"""By key, or by what comes before its "@" or last word: title, which way is better, and one line of meaning."""


def title(key: str) -> str:
    """What a figure is called for people, with an arrow to where it is better: `SIM_AA@0.9 ↓`."""
    base = _base(key)
    if base is None:
        return key
    name, arrow, _ = MEANINGS[base]
    return f"{name}{key[len(base) :].replace('_', ' ')} {arrow}".rstrip()


def meaning(key: str) -> str:
    """One line on a figure; empty where its name says all."""
    base = _base(key)
    return "" if base is None else MEANINGS[base][2]


def _base(key: str) -> str | None:
    return next((base for base in (key, key.partition("@")[0], key.rpartition(" ")[0]) if base in MEANINGS), None)


def shown(figure: Mapping[str, Any]) -> tuple[str, str, str]:
    """Value, low and high, to two digits of half the interval's width, or one where few cases make it uncertain; with
    no width, to three digits of the value."""
    half, digits = (figure["high"] - figure["low"]) / 2, 2 if figure.get("trials", figure["n"]) >= MANY else 1
    value, low, high = (_rounded(figure[key], half, digits) for key in ("value", "low", "high"))
    return value, low, high


def plus_minus(value: float, deviation: float) -> str:
    """`26.7 ± 1.2`: to two digits of the deviation."""
    return f"{_rounded(value, deviation)} ± {_rounded(deviation, deviation)}"


def _rounded(value: float, error: float, digits: int = 2) -> str:
    if not error > 0:
        return f"{value:.3g}"
    text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(error)))}f}"
    return text if float(text) else text.removeprefix("-")


def sample(figure: Mapping[str, Any], case: str = "window", trial: str = "track") -> str:
    """How many cases a figure rests on: `12`, or `50 windows of 4 tracks` where those of a track are alike."""
    n, trials = figure["n"], figure.get("trials", figure["n"])
    return str(n) if n == trials else f"{counted(n, case)} of {counted(trials, trial)}"


def counted(n: int, noun: str) -> str:
    """`1 rater`, `2 raters`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def lines(
    figures: Mapping[str, Mapping[str, Any] | None], indent: str = "", case: str = "window", trial: str = "track"
) -> list[str]:
    """A row for each figure that there is: title, value, 95% interval and n, in columns; words as in `sample`."""
    rows = [
        (indent + title(key), value, f"[{low}, {high}]", f"n = {sample(figure, case, trial)}")
        for key, figure in figures.items()
        if figure is not None
        for value, low, high in (shown(figure),)
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    return [f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:{widths[2]}}  {d}" for a, b, c, d in rows]


def legend(keys: Iterable[str]) -> list[str]:
    """The meanings of the figures among `keys` that have one, a line each and each once."""
    found = {base: MEANINGS[base] for key in keys if (base := _base(key)) is not None}
    return [f"{name}: {text}" for name, _, text in found.values()]
