"""Mixed pairs to listen to and look at: do the beats of both sides really meet?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stages.audio import io
from stages.audio.level import limited
from stages.errors import UsageError
from stages.figures import new_figure, save_png
from stages.ldm.mixup import Mix, Mixer
from stages.ldm.train import build_task
from stages.params import Params

SIDES = ("first", "second")


@dataclass(frozen=True)
class Preview:
    """One mixed pair, and how far its sides' grids are apart: what a listener should hear."""

    wav: Path
    png: Path
    first: str
    second: str
    weight: float
    beats_apart: float | None  # seconds, see `apart`
    downbeats_apart: float | None


def write_preview(
    params: Params, latents: Path, shards: Path, clap: Path, vae: Path, vocoder: Path, out: Path, count: int
) -> list[Preview]:
    """Write `count` mixed clips as mixup-NN.wav, each with a picture of both sides' downbeats and waveforms.

    What is heard is what the model is conditioned on: the mixed audio, or for BLM the decoded and vocoded
    latent. Raises UsageError for `ldm.mixup: none`.
    """
    mixer = build_task(params, latents, shards, clap, vae, vocoder).mixer
    if mixer is None:
        raise UsageError("There is nothing to preview with ldm.mixup none.", "Choose --mixup simple, bam or blm.")
    previews = []
    for number in range(count):
        mix = mixer.pairs.draw([mixer.seed, 0, number])
        weight = torch.tensor([mix.weight])
        if params.ldm.mixup == "blm":
            z, _ = mixer.make([number], 0, torch.device("cpu"))
            audio = mixer.render(z)[0].numpy()
        else:
            audio = mixer.mix_audio([mix], weight)[0].numpy()
        wav = out / f"mixup-{number:02d}.wav"
        wav.parent.mkdir(parents=True, exist_ok=True)
        io.write(wav, limited(torch.from_numpy(audio))[0].numpy(), params.audio.sample_rate)
        _draw(mixer, mix, audio, wav.with_suffix(".png"))
        first, second = (mixer.shards.tracks[mixer.latents.windows[row].track].id for row in (mix.first, mix.second))
        beats, downbeats = zip(_grid(mixer, mix.first), _grid(mixer, mix.second), strict=True)
        previews.append(
            Preview(wav, wav.with_suffix(".png"), first, second, mix.weight, apart(*beats), apart(*downbeats))
        )
    return previews


def apart(times: NDArray[np.float64], others: NDArray[np.float64]) -> float | None:
    """Median distance in seconds from a time of the sparser grid to the other's nearest; None where one has none.

    So of two tracks an octave of tempo apart every beat of the slower one is to meet one.
    """
    if not len(times) or not len(others):
        return None
    distances = np.abs(times[:, None] - others[None])
    return float(np.median(distances.min(1 if len(times) <= len(others) else 0)))


def _grid(mixer: Mixer, row: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Beats and downbeats within a window's clip, in seconds from its start."""
    window, audio = mixer.latents.windows[row], mixer.params.audio
    inside = []
    for times in (mixer.shards.beats(window.track), mixer.shards.downbeats(window.track)):
        from_start = times - window.start / audio.sample_rate
        inside.append(from_start[(from_start > -0.01) & (from_start < audio.clip_seconds)])
    return inside[0], inside[1]


def _draw(mixer: Mixer, mix: Mix, audio: np.ndarray, path: Path) -> None:
    """Waveforms of both sides and of the mix, over the clip's seconds, with each side's beats and downbeats."""
    rate = mixer.params.audio.sample_rate
    seconds = np.arange(len(audio)) / rate
    figure = new_figure(12, 6)
    axes = figure.subplots(3, sharex=True)
    for axis, side, row, weight in zip(
        axes, SIDES, (mix.first, mix.second), (mix.weight, 1 - mix.weight), strict=False
    ):
        window = mixer.latents.windows[row]
        info = mixer.shards.tracks[window.track]
        axis.plot(seconds, mixer.clip(row), linewidth=0.3)
        tempo = "no tempo" if info.tempo_bpm is None else f"{info.tempo_bpm:.1f} BPM"
        axis.set_title(f"{side}: {info.id} from {window.start / rate:.2f} s, {tempo}, weight {weight:.2f}")
        for times, style in zip(_grid(mixer, row), (":", "-"), strict=True):
            for time in times:
                for shown in (axis, axes[2]):
                    shown.axvline(time, linestyle=style, linewidth=0.8, color="C1" if side == "first" else "C2")
    axes[2].plot(seconds, audio, linewidth=0.3, color="C0")
    axes[2].set_title(f"mixed by {mixer.params.ldm.mixup}; first side's beats orange, second's green")
    axes[2].set_xlabel("seconds")
    save_png(path, figure)
