"""Captions as a training sees them: now and then only some of their phrases, in any order.

People type keywords as often as sentences; a text tower that has seen whole captions only takes their order and
length for meaning (LAION-CLAP trains on both, Wu et al. 2023, section 3.4).
"""

import re

import torch

BORDERS = re.compile(r"[,.;:]\s+|\s+and\s+")


def phrases(caption: str) -> list[str]:
    """What stands between commas, full stops, colons and "and": `calm piano, 90 BPM` has two phrases."""
    return [phrase for phrase in (part.strip(" .,;:") for part in BORDERS.split(caption)) if phrase]


def some_keywords(caption: str, generator: torch.Generator) -> str:
    """A random number of the caption's phrases, at least one, in random order, with commas between them."""
    found = phrases(caption)
    if not found:
        return caption
    count = int(torch.randint(1, len(found) + 1, (), generator=generator))
    order = torch.randperm(len(found), generator=generator)[:count].tolist()
    return ", ".join(found[place] for place in order)
