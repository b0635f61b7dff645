"""Beat annotations as datasets and tools write them: text tables and JAMS, read into seconds and downbeats."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import DataError
from stages.store import read_text

SUFFIXES = (".beats", ".csv", ".tsv", ".txt", ".jams", ".json")
FORMATS = "A line is: seconds, then a tab or a comma, then the position in the bar (1 is the downbeat)."
MIN_INTERVAL_SECONDS, MAX_INTERVAL_SECONDS = 0.05, 10.0  # at the median; beyond them the times are no seconds
MAX_BAR = 32  # beats; what counts further numbers the beats of the piece
MOST_COLUMNS = 3  # that one beat may be written in; a single line of more is a line of beats
MIN_STEPS = 0.75  # share of beats whose position is the next one, or the first again
AIST_BAR, AIST_BEAT = 384, 48  # codes of RWC's annotations: a bar line, and each further beat of the bar
_COMMENTS = ("#", "%", "//")
_UNKNOWN = ("", "nan", "none", "null", "na", "n/a", "-", "?")

Beats = tuple[NDArray[np.float64], NDArray[np.float64] | None]


def read_beats(path: Path) -> Beats:
    """Beat times (N,) and downbeat times (M,) in seconds, rising; None for downbeats where positions are not known.

    Text: time and position, further columns ignored, separated by tabs, blanks, commas or semicolons; comments and a
    header are passed over. Positions are of the bar, from 1 or 0; or `bar.beat`; or a 1 for each downbeat and a 0 for
    other beats; or RWC's codes, with hundredths of seconds; or the times alone, on one line. JAMS: namespaces
    beat_position and beat. Raises DataError for everything else.
    """
    try:
        text = read_text(path, FORMATS)
        return _jams(json.loads(text)) if path.suffix.lower() in (".jams", ".json") else _table(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} does not hold beats: {error}.", FORMATS) from error


def _table(text: str) -> Beats:
    """Commas separate; where no beats come of that, they are decimal marks."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(_COMMENTS)]
    try:
        return _of_lines(lines)
    except ValueError as error:
        try:
            return _of_lines([line.replace(",", ".") for line in lines])
        except ValueError:
            raise error from None


def _of_lines(lines: list[str]) -> Beats:
    separator = next((mark for mark in ";\t," if any(mark in line for line in lines)), None)
    rows = [[field.strip(" \"'") for field in line.split(separator)] for line in lines]
    if len(rows) == 1 and len(rows[0]) > MOST_COLUMNS:  # MIREX: the times of one annotator
        return _beats(rows[0], [""] * len(rows[0]))
    names = rows.pop(0) if rows and not _is_number(rows[0][0]) else []
    time, label = _columns(rows, [name.lower() for name in names])
    return _beats([row[time] for row in rows], [row[label] if len(row) > label else "" for row in rows])


def _columns(rows: list[list[str]], names: list[str]) -> tuple[int, int]:
    """Which column is the time and which the position: by the header, else the first two, or three if the second is
    an end."""
    if names:
        time = next((i for i, name in enumerate(names) if re.search(r"time|onset|start|sec", name)), 0)
        others = (i for i, name in enumerate(names) if i != time and re.search(r"pos|beat|label|value", name))
        return time, next(others, 1 - min(time, 1))
    if rows and all(len(row) > 2 and _is_number(row[1]) for row in rows):
        times, ends = (np.array([float(row[column]) for row in rows]) for column in (0, 1))
        codes = {row[2] for row in rows}
        fractions = any("." in row[1] for row in rows)
        if (ends >= times).all() and (np.diff(ends) >= 0).all() and (fractions or str(AIST_BAR) in codes):
            return 0, 2
    return 0, 1


def _jams(jams: dict[str, Any]) -> Beats:
    """The first annotation with beat positions, else the first with beats."""
    annotations = {one["namespace"]: one for one in reversed(jams["annotations"]) if one["data"]}
    chosen = annotations.get("beat_position") or annotations.get("beat")
    if chosen is None:
        raise ValueError("there is no annotation of namespace beat or beat_position")
    data = chosen["data"]
    if isinstance(data, dict):  # the older, columnar form
        data = [{"time": time, "value": value} for time, value in zip(data["time"], data["value"], strict=True)]
    values = [one["value"]["position"] if isinstance(one["value"], dict) else one["value"] for one in data]
    return _beats([one["time"] for one in data], [str(value) for value in values])


def _beats(times: list[Any], labels: list[str]) -> Beats:
    """Times and labels as they were written -> seconds and downbeats. Raises ValueError for what is neither."""
    seconds = np.array([float(time) for time in times], dtype=np.float64)
    if not np.isfinite(seconds).all() or (seconds < 0).any():
        raise ValueError("there are times that are not finite, or below zero")
    falls = np.flatnonzero(np.diff(seconds) <= 0)
    if len(falls):
        raise ValueError(f"its times do not rise at beat {falls[0] + 2}")
    unknown = any(label.lower() in _UNKNOWN for label in labels)
    codes = not unknown and _are_aist(labels)
    interval = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 1.0
    if codes and interval > MAX_INTERVAL_SECONDS:
        seconds, interval = seconds / 100, interval / 100
    if not MIN_INTERVAL_SECONDS <= interval <= MAX_INTERVAL_SECONDS:
        raise ValueError(f"its beats are {interval:g} s apart, so its times are not in seconds")
    if unknown:
        return seconds, None
    return seconds, seconds[_downbeats_of_codes(labels) if codes else _downbeats(labels)]


def _are_aist(labels: list[str]) -> bool:
    whole = {int(label) for label in labels if label.isdecimal()}
    return AIST_BAR in whole and all(label.isdecimal() for label in labels) and not any(n % AIST_BEAT for n in whole)


def _downbeats_of_codes(labels: list[str]) -> NDArray[np.bool_]:
    return np.array([int(label) == AIST_BAR for label in labels], dtype=bool)


def _downbeats(labels: list[str]) -> NDArray[np.bool_]:
    """Which beats (N,) are downbeats, by their labels. Raises ValueError where those are no positions in a bar."""
    parts = [re.fullmatch(r"(\d+)(?:[.:|](\d+))?", label) for label in labels]
    strange = [label for label, part in zip(labels, parts, strict=True) if part is None]
    if strange:
        raise ValueError(f"{strange[0]!r} is no position in a bar")
    before, after = ([part[group] or "0" for part in parts if part] for group in (1, 2))
    while len(set(map(len, after))) == 1 and after[0:1] and all(len(a) > 1 and a[-1] == "0" for a in after):
        after = [a[:-1] for a in after]  # 1.10, 1.20, 1.30: written with two places
    bar_and_beat = any(map(int, after))
    if bar_and_beat and (np.diff([int(b) for b in before]) < 0).any():
        raise ValueError("its numbers of bars fall")
    places = np.array([int(a if bar_and_beat else b) for b, a in zip(before, after, strict=True)], dtype=np.int64)
    if set(places.tolist()) <= {0, 1} and 0 in places:
        if len(places) > 1 and (np.diff(places) != 0).all():
            raise ValueError("0 and 1 in turn may be positions in bars of two, or marks of downbeats")
        return places == 1
    places = places + (places.min(initial=1) == 0)
    steps = (np.diff(places) == 1) | (places[1:] == 1)
    if places.max(initial=1) > MAX_BAR or (len(steps) and steps.mean() < MIN_STEPS):
        raise ValueError("its second column holds no positions in bars")
    return places == 1


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
