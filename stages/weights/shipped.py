"""The model that comes with musicldm: preset small, trained by `profiles/small`.

small/README.md is its card, small/attribution.csv the music it learned from, small/metrics.json its figures.
"""

from pathlib import Path

from stages.layout import Layout
from stages.store import CARD, restore

NAME = "shipped"  # what `--model` calls it
ROOM = Path(__file__).parent / "small"
SHIPPED = ROOM / "pipeline"


def default_pipeline(layout: Layout) -> Path:
    """The pipeline that was trained in this work folder, else the shipped one."""
    return layout.ldm if restore(layout.ldm) and (layout.ldm / CARD).exists() else SHIPPED
