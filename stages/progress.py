"""How the library tells its caller how far it is; it never prints."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as `progress(label, done, total)`; a new label starts a new bar, `total` 0 means unknown."""


def silent(label: str, done: int, total: int) -> None:
    """Tell nobody."""
