"""Who hears what in which order: captions spread evenly, models in each position equally often (Latin squares)."""

import random
from collections.abc import Sequence


def plan(participant: int, items: Sequence[str], models: Sequence[str], groups: int, seed: int) -> list[list[str]]:
    """`groups` rows of [item, model in position 1, ..., model in position K] for participant number 0, 1, ...

    Participant i takes the captions i * groups ... (i + 1) * groups - 1 of an endless repetition of them. The
    t-th participant to hear a caption gets row t mod K of a cyclic Latin square whose symbols are shuffled
    anew for each K listeners: so K listeners of a caption hear every model once in every position.
    """
    deck = list(items)
    random.Random(f"{seed}").shuffle(deck)
    rows = []
    for turn in range(participant * groups, (participant + 1) * groups):
        visit, card = divmod(turn, len(deck))
        block, row = divmod(visit, len(models))
        symbols = list(models)
        random.Random(f"{seed}/{deck[card]}/{block}").shuffle(symbols)
        rows.append([deck[card], *symbols[row:], *symbols[:row]])
    random.Random(f"{seed}/order/{participant}").shuffle(rows)
    return rows
