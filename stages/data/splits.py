"""Divide tracks into train, valid and test by whole groups, and draw a few tracks spread over all groups."""

import random
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

Split = Literal["train", "valid", "test"]
Item = TypeVar("Item")
_MANY_GROUPS = 200


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
