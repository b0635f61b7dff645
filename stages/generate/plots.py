"""Pictures for people: spectrograms (log-mel in dB over seconds and hertz) and distributions; players for notebooks."""

import io
from base64 import b64encode
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from stages.audio.io import quantise
from stages.audio.mel import clip_mel
from stages.figures import new_figure, png, save_png
from stages.params import Params

TICKS_HZ = (0, 500, 1000, 2000, 4000, 8000, 16_000)
RANGE_DB = 70.0  # below the clip's loudest bin all is drawn black


def mel_decibels(waveform: Tensor, params: Params) -> NDArray[np.float32]:
    """Waveform (L,) -> (T, n_mels) in dB below its loudest bin, through the mel front-end the model is trained with."""
    with torch.no_grad():
        ln_magnitude = clip_mel(params)(waveform[None].float())[0]
    return np.asarray((ln_magnitude - ln_magnitude.max()) * (20 / np.log(10)), dtype=np.float32)


def draw_spectrogram(axes: Axes, waveform: Tensor, params: Params) -> None:
    """Draw one clip into `axes`."""
    from transformers.audio_utils import hertz_to_mel

    decibels = mel_decibels(waveform, params)
    seconds = len(waveform) / params.audio.sample_rate
    low, high = (hertz_to_mel(f, "slaney") for f in (params.mel.f_min, params.mel.f_max))
    image = axes.imshow(
        decibels.T, origin="lower", aspect="auto", extent=(0, seconds, low, high), vmin=-RANGE_DB, vmax=0,
        cmap="magma", interpolation="nearest",
    )  # fmt: skip
    ticks = [f for f in TICKS_HZ if params.mel.f_min <= f <= params.mel.f_max]
    axes.set_yticks([hertz_to_mel(float(f), "slaney") for f in ticks], [f"{f:,}" for f in ticks])
    axes.set_xlabel("seconds")
    axes.set_ylabel("Hz")
    figure = axes.get_figure()
    if figure is not None:
        figure.colorbar(image, ax=axes, label="dB", pad=0.02)


def save_spectrogram(path: Path, waveform: Tensor, params: Params, title: str) -> None:
    """Write a PNG of one clip; `title` is cut to one line."""
    save_png(path, _spectrogram(waveform, params, title))


def player_html(waveform: Tensor, params: Params, title: str) -> str:
    """A clip (L,) as a player with its spectrogram, for a notebook; nothing in it is fetched."""
    sound = io.BytesIO()
    soundfile.write(sound, quantise(waveform.numpy()), params.audio.sample_rate, "PCM_16", format="WAV")
    data = {"audio/wav": sound.getvalue(), "image/png": png(_spectrogram(waveform, params, title))}
    player, image = (f"data:{kind};base64,{b64encode(content).decode()}" for kind, content in data.items())
    return (
        f'<figure><img src="{image}" alt="Spectrogram of {escape(title, quote=True)}" style="max-width:100%"><br>'
        f'<audio controls src="{player}"></audio></figure>'
    )


def _spectrogram(waveform: Tensor, params: Params, title: str) -> Any:
    figure = new_figure(9, 3.4)
    axes = figure.subplots()
    draw_spectrogram(axes, waveform, params)
    axes.set_title(one_line(title, 90), fontsize=10, parse_math=False)
    return figure


def one_line(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def spectrogram_pair_png(left: Tensor, right: Tensor, titles: tuple[str, str], params: Params) -> bytes:
    """Two clips side by side, as figures 4 and 5 of the paper show a generated one and its nearest in training."""
    figure = new_figure(11, 2.8)
    for axes, waveform, title in zip(figure.subplots(1, 2, sharey=True), (left, right), titles, strict=True):
        draw_spectrogram(axes, waveform, params)
        axes.set_title(one_line(title, 60), fontsize=9, parse_math=False)
    return png(figure)


def violin_png(sets: dict[str, list[float]], label: str) -> bytes:
    """The distribution of a similarity in each set, as figure 3 of the paper; short bars mark the means."""
    figure = new_figure(max(5.5, 1.0 + 0.95 * len(sets)), 3.6)  # names of many side by side
    axes = figure.subplots()
    axes.violinplot(list(sets.values()), widths=0.7, showmeans=True, showextrema=True)
    names = [f"{name.replace('_', chr(10))}\nn = {len(values)}" for name, values in sets.items()]
    axes.set_xticks(range(1, len(sets) + 1), names, fontsize=9)
    axes.set_ylabel(label)
    axes.grid(axis="y", alpha=0.3)
    return png(figure)


def save_waveform_and_spectrogram(path: Path, waveform: Tensor, params: Params) -> None:
    """Write a PNG of one clip (L,): its waveform above its spectrogram, over the same seconds."""
    figure = new_figure(9, 4.4)
    upper, lower = figure.subplots(2, 1, height_ratios=(1, 2))
    upper.plot(np.arange(len(waveform)) / params.audio.sample_rate, waveform.numpy(), linewidth=0.4)
    upper.set(xlim=(0, len(waveform) / params.audio.sample_rate), ylim=(-1, 1), ylabel="amplitude")
    draw_spectrogram(lower, waveform, params)
    save_png(path, figure)
