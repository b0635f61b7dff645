"""A mix of two audio files, aligned on their downbeats, by the functions that mix training pairs (stages.ldm.mixup)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stages import params as parameters
from stages.audio import io as audio_io
from stages.audio.mel import clip_mel
from stages.beats.align import Candidate, clip_starts, partners, why_not_mixable
from stages.beats.tempo import Rhythm
from stages.beats.track import track_file
from stages.data.dataset import normalise_audio
from stages.errors import DataError, UsageError
from stages.ldm.latents import sample_posterior
from stages.ldm.mixup import mix_clips, posterior_noise, render
from stages.params import Params
from stages.store import model_params
from stages.vae.model import load_vae
from stages.vocoder.model import load_vocoder

Mode = Literal["blm", "bam", "simple"]
_OTHERS = 'Take two files of one tempo and metre, or mode="simple".'


@dataclass(frozen=True)
class MixedPair:
    """weight * first + (1 - weight) * second, normalised (clip_samples,); what it was made of; the model's params."""

    waveform: Tensor
    about: dict[str, Any]
    params: Params


def mix_files(
    first: Path, second: Path, model: Path, weight: float = 0.5, mode: Mode = "blm", seed: int = 0
) -> MixedPair:
    """Mix one clip of each file, as long as the model's.

    `blm` mixes latents drawn by `seed` from the posteriors, and renders them; `bam` mixes audio; both clips begin on
    the first downbeat with a full clip after it. `simple` mixes the audio of both beginnings. Raises UsageError for
    another mode or weight, DataError for files that are not whole, or that the model's `tempo` does not let be mixed.
    """
    if mode not in ("blm", "bam", "simple"):
        raise UsageError(f"The mode {mode} is none of blm, bam, simple.")
    if not 0 <= weight <= 1:
        raise UsageError(f"The weight {weight:g} is not between 0 and 1.")
    params, paths = model_params(model, "ldm"), (first, second)
    sounds = [audio_io.read(path, params.audio.sample_rate)[0] for path in paths]
    starts = [0, 0] if mode == "simple" else _downbeats(paths, [len(sound) for sound in sounds], params)
    clips = [_clip(sound, start, params.audio) for sound, start in zip(sounds, starts, strict=True)]
    share = torch.tensor([weight])
    if mode == "blm":
        mixed = _mix_latents(torch.stack(clips), share, model, seed)
    else:
        mixed = mix_clips(clips[0][None], clips[1][None], share, params.audio.peak)
    about = {"mixup": mode, "weight": weight, "files": [path.name for path in paths],
             "starts_seconds": [round(start / params.audio.sample_rate, 4) for start in starts]}  # fmt: skip
    return MixedPair(mixed[0], about | ({"seed": seed} if mode == "blm" else {}), params)


def _downbeats(paths: tuple[Path, Path], lengths: list[int], params: Params) -> list[int]:
    """First sample of the first downbeat of each file that has a full clip after it. Raises DataError."""
    settings = parameters.preset(parameters.DEFAULT_PRESET).beats
    rhythms = [track_file(path, settings) for path in paths]
    starts, tracks = [], []
    for path, rhythm, length in zip(paths, rhythms, lengths, strict=True):
        starts.append(clip_starts(rhythm.downbeats, length, params.audio.sample_rate, params.audio.clip_samples))
        tracks.append(_candidate(rhythm, len(starts[-1])))
        if (reason := why_not_mixable(tracks[-1], params.tempo)) is not None:
            raise DataError(f"{path} is a track {reason}.", _OTHERS)
    if not partners(tracks, params.tempo).counts.any():
        said = [f"{path.name} has {t.tempo_bpm:.1f} BPM in {t.metre}" for path, t in zip(paths, tracks, strict=True)]
        raise DataError(f"{', '.join(said)}: they cannot be mixed on their downbeats.", _OTHERS)
    return [int(found[0]) for found in starts]


def _candidate(rhythm: Rhythm, starts: int) -> Candidate:
    downbeats = len(rhythm.downbeats)
    return Candidate(rhythm.tempo_bpm, rhythm.mean_bpm, rhythm.tempo_confidence, rhythm.metre, downbeats, starts)


def _clip(sound: "np.ndarray[Any, np.dtype[np.float32]]", start: int, audio: parameters.Audio) -> Tensor:
    """(clip_samples,), normalised; padded with silence behind a short file's end."""
    part = torch.from_numpy(sound[start : start + audio.clip_samples].copy())
    return torch.nn.functional.pad(normalise_audio(part[None], audio.peak)[0], (0, audio.clip_samples - len(part)))


@torch.no_grad()
def _mix_latents(clips: Tensor, weight: Tensor, model: Path, seed: int) -> Tensor:
    """Normalised clips (2, L), weight (1,) -> the mix of their latents as audio (1, L)."""
    vae, vocoder = load_vae(model), load_vocoder(model)
    mean, logvar = vae.encode(clip_mel(vae.params)(clips))
    noise = posterior_noise([seed], vae.params.latent_shape)
    z = sample_posterior(mean, logvar, noise, vae.scale)
    return render(torch.lerp(z[1:], z[:1], weight[:, None, None, None]), vae, vocoder, vae.params)
