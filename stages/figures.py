"""Pictures by matplotlib, without a screen, as PNG: equal figures give equal bytes."""

import io
import warnings
from pathlib import Path
from typing import Any

from stages.store import atomic_file

DOTS_PER_INCH = 110


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of this size in inches."""
    from matplotlib.figure import Figure  # not pyplot, which would look for a screen

    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # prompts may be in any script
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def save_png(path: Path, figure: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(png(figure))
