"""Divide tracks into train, valid and test by whole groups, and draw a few tracks spread over all groups."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, TypeVar

from stages import params

Rule = Literal["artist", "album", "track"]
Split = Literal["train", "valid", "test"]
RULES: tuple[Rule, ...] = ("artist", "album", "track")  # coarsest first
Item = TypeVar("Item")
LEAST_TRACKS = 5  # that can be divided into 2 for training, 1 for validation and 2 for tests
_MANY_GROUPS = 200


@dataclass(frozen=True)
class Division:
    """The split of each track, by its path; what was kept whole in it, and sentences that say why."""

    by: Rule
    split_of: dict[str, Split]
    notes: list[str]


def group(path: str, text: Mapping[str, str], rule: Rule = "artist") -> str:
    """What stays in one split: the artist, else the album, else the folder, else the file; finer rules start later."""
    for kind in RULES[RULES.index(rule) : -1]:
        if text[kind]:
            return f"{kind} {text[kind].casefold()}"
    parent = PurePosixPath(path).parent.as_posix()
    return f"file {path}" if rule == "track" or parent == "." else f"folder {parent}"


def divide_tracks(
    texts: Mapping[str, Mapping[str, str]], copies: Sequence[tuple[str, str]], settings: params.Manifest
) -> Division:
    """Divide tracks, given as path -> {"artist", "album"}, by `settings.split_by`; copies always share a split.

    "auto" takes the coarsest rule whose groups fill as many splits as can be filled.
    """
    grouped = {rule: _groups(texts, copies, rule) for rule in RULES}
    shares = {"train": 1.0, "valid": settings.valid_share, "test": settings.test_share}
    wanted = [name for name, share in shares.items() if share > 0]
    rule = _coarsest(grouped, len(wanted)) if settings.split_by == "auto" else settings.split_by
    if all(name.startswith("file ") for name in grouped[rule].values()):
        rule = "track"
    groups = grouped[rule]
    split_of = divide(Counter(groups.values()), settings.valid_share, _test_share(len(texts), settings), settings.seed)
    empty = [name for name in wanted if name not in split_of.values()]
    notes = [_why(rule, grouped, settings)]
    if empty:
        finest = grouped["track"] if settings.split_by == "auto" else groups
        notes.append(_what_is_missing(empty, _count(finest), settings))
    return Division(rule, {path: split_of[name] for path, name in groups.items()}, notes)


def _test_share(tracks: int, settings: params.Manifest) -> float:
    """Enough for two tracks, where five are there: a distance between sets, as `eval quality` gives, needs two."""
    wants_two = settings.test_share > 0 and tracks >= LEAST_TRACKS
    return max(settings.test_share, 2 / tracks) if wants_two else settings.test_share


def _coarsest(grouped: Mapping[Rule, Mapping[str, str]], splits: int) -> Rule:
    """The first of the rules that fill the most of so many splits."""
    return max(RULES, key=lambda rule: min(len(set(grouped[rule].values())), splits))


def _groups(texts: Mapping[str, Mapping[str, str]], copies: Sequence[tuple[str, str]], rule: Rule) -> dict[str, str]:
    own = {path: group(path, text, rule) for path, text in texts.items()}
    one = joined((own[path], own[other]) for path, other in copies)
    return {path: one.get(name, name) for path, name in own.items()}


def _why(rule: Rule, grouped: Mapping[Rule, Mapping[str, str]], settings: params.Manifest) -> str:
    said = f"Split by {rule}: {_count(grouped[rule])}"
    if settings.split_by == "auto" and grouped[rule] != grouped["artist"]:
        coarse = _count(grouped["artist"])
        return f"{said}, since {coarse} cannot fill every split. To keep such groups whole: -S manifest.split_by=artist"
    unnamed = rule == "track" and settings.split_by != "track"
    return f"{said}; none names its artist or album." if unnamed else f"{said}."


def _what_is_missing(empty: list[str], groups: str, settings: params.Manifest) -> str:
    effects = {"valid": "trainings are not validated", "test": "`generate` and `eval` have no test music"}
    remedy = "Add music" if settings.split_by in ("auto", "track") else "To divide finer: -S manifest.split_by=auto"
    return (
        f"{' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty, as {groups} cannot fill every split: "
        f"{' and '.join(effects[name] for name in empty)}. {remedy}."
    )


def _count(groups: Mapping[str, str]) -> str:
    """Say "3 artists and 1 folder" of the groups of tracks."""
    kinds = Counter(name.partition(" ")[0].replace("file", "track") for name in set(groups.values()))
    return " and ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in kinds.most_common())


def joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each name of the pairs the first (by its letters) of all that are joined to it by some chain of pairs."""
    parent: dict[str, str] = {}

    def top(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for pair in pairs:
        first, second = sorted(map(top, pair))
        parent[second] = first
    return {name: top(name) for name in list(parent)}


def divide(sizes: Mapping[str, int], valid_share: float, test_share: float, seed: int) -> dict[str, Split]:
    """A split for each group, of `sizes[group]` tracks.

    A share of 0 leaves its split empty; another split stays empty only where there are fewer groups than
    splits (then train comes first, then test). Within that, the sums of the group sizes are as close to the
    shares as whole groups allow, test being chosen before valid.
    """
    groups = sorted(sizes)
    random.Random(seed).shuffle(groups)
    total = sum(sizes.values())
    splits: dict[str, Split] = dict.fromkeys(groups, "train")
    wanted: list[tuple[Split, float]] = [("test", test_share), ("valid", valid_share)]
    wanted = [(name, share) for name, share in wanted if share > 0]
    for later, (name, share) in enumerate(wanted, start=1):
        left = [group for group in groups if splits[group] == "train"]
        keep = min(1 + len(wanted) - later, max(1, len(left) - 1))  # groups that the other splits need
        if len(left) > keep:
            for group in _closest(left, sizes, share * total, len(left) - keep):
                splits[group] = name
    return splits


def _closest(groups: Sequence[str], sizes: Mapping[str, int], target: float, most: int) -> list[str]:
    """One to `most` of the groups whose sizes sum up closest to `target` (subset sum)."""
    largest = max(sizes[group] for group in groups)
    taken = 0
    while len(groups) - taken > _MANY_GROUPS and target > 4 * largest:  # exactness is wanted of the last few only
        target -= sizes[groups[taken]]
        taken += 1
    return [*groups[:taken], *_closest_sum(groups[taken:], sizes, target, most - taken)]


def _closest_sum(groups: Sequence[str], sizes: Mapping[str, int], target: float, most: int) -> list[str]:
    fewest: dict[int, list[str]] = {0: []}  # sum -> the fewest groups that make it
    limit = 2 * target + min(sizes[group] for group in groups)  # a sum beyond is no closer than one group
    for group in groups:
        if any(abs(total - target) <= 0.5 for total in (int(target), int(target) + 1) if total and total in fewest):
            break  # no closer sum exists, and further groups would only make it of fewer, larger artists
        for total, chosen in list(fewest.items()):
            grown = total + sizes[group]
            fewer = grown not in fewest or len(chosen) + 1 < len(fewest[grown])
            if fewer and grown <= limit and len(chosen) < most:
                fewest[grown] = [*chosen, group]
    del fewest[0]
    return fewest[min(fewest, key=lambda total: (abs(total - target), total))]


def spread(items: Sequence[Item], groups: Sequence[str], seed: int) -> list[Item]:
    """All items in a seeded order whose every beginning holds as many different groups as it can."""
    members: dict[str, list[Item]] = {}
    for item, group in zip(items, groups, strict=True):
        members.setdefault(group, []).append(item)
    names = sorted(members)
    draw = random.Random(seed)
    draw.shuffle(names)
    for name in names:
        draw.shuffle(members[name])
    rounds = max(map(len, members.values()), default=0)
    return [members[name][i] for i in range(rounds) for name in names if i < len(members[name])]
