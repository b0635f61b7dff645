"""What a network makes of fixed clips of the valid split, to be seen and heard while it trains."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stages.audio import io
from stages.audio.level import limited
from stages.figures import new_figure, save_png


@dataclass(frozen=True)
class Sample:
    """One clip: log-mels (T, F) by what they are, one above the other in a picture, and sound (L,) if there is any."""

    mels: dict[str, Tensor]
    audio: Tensor | None = None
    sample_rate: int = 0

    def waveform(self) -> NDArray[np.float32] | None:
        return None if self.audio is None else limited(self.audio.float().cpu())[0].numpy()

    def picture(self) -> Any:
        """A matplotlib figure; all mels of it share one scale of colours, so that they can be compared."""
        figure = new_figure(8, 2 * len(self.mels))
        images = {name: mel.float().cpu().numpy().T for name, mel in self.mels.items()}
        low, high = min(map(np.min, images.values())), max(map(np.max, images.values()))
        axes = np.ravel(figure.subplots(len(images), sharex=True))
        for axis, (name, image) in zip(axes, images.items(), strict=True):
            axis.imshow(image, origin="lower", aspect="auto", vmin=low, vmax=high)
            axis.set_title(name)
            axis.set_ylabel("mel bin")
        axis.set_xlabel("frame")
        return figure


def pixels(figure: Any) -> NDArray[np.uint8]:
    """A figure as (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_sample(stem: Path, sample: Sample) -> None:
    """Write `stem`.png, and `stem`.flac where there is sound."""
    save_png(stem.with_suffix(".png"), sample.picture())
    waveform = sample.waveform()
    if waveform is not None:
        io.write(stem.with_suffix(".flac"), waveform, sample.sample_rate)
