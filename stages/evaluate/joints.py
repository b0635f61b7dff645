"""Where quality is lost: real clips through each part of the pipeline alone, between marks to read a figure by.

Every set is compared with the same real clips of one split, through `evaluate.backbone`. From below: other real
music, music in pieces of a second, and noise with the right spectrum. Through one part each: the clips' own
log-mels made sound by Griffin-Lim, by the vocoder, and by VAE and vocoder; at last what was generated from texts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.functional import griffinlim

from stages.audio.io import FULL_SCALE
from stages.audio.mel import MelSpectrogram, clip_mel
from stages.data.shards import ShardReader
from stages.errors import DataError, ModelError
from stages.evaluate.backbones import load_backbone
from stages.evaluate.embeddings import (
    Embedded,
    Segment,
    evenly,
    folder_files,
    folder_segments,
    normalised,
    shard_segments,
)
from stages.evaluate.intervals import Rows, distance_figure, mean_figure, ratio_figure, resampler
from stages.evaluate.quality import fewest, frechet_distance, intervals, limit_figure
from stages.evaluate.setting import Setting
from stages.params import Audio, Evaluate, Params
from stages.store import write_json
from stages.vae.model import load_vae
from stages.vocoder.model import load_vocoder

GRAIN_SECONDS, FADE_SECONDS = 1.0, 0.01
GRIFFIN_LIM_STEPS = 32  # without momentum, which made musicnn's distance larger (docs/LOG.md)
INVERSION_STEPS = 50  # of multiplicative updates from filters back to bins
OTHER = {"test": "valid", "valid": "test"}
SETS = {
    "held_out": "other real music that was not trained on",
    "training": "real training music",
    "shuffled_grains": f"{GRAIN_SECONDS:g} s grains from anywhere in the training music, joined",
    "shaped_noise": "white noise with the mean spectrum of the real clips",
    "griffin_lim": f"log-mels of the real clips, non-negative inversion, {GRIFFIN_LIM_STEPS} steps of Griffin-Lim",
    "vocoder": "log-mels of the real clips through the vocoder",
    "vae_vocoder": "log-mels of the real clips through the VAE (posterior means) and the vocoder",
    "generated": "clips generated from texts",
}
RATIOS = (
    ("vocoder", "griffin_lim"), ("vae_vocoder", "griffin_lim"), ("generated", "shaped_noise"),
    ("generated", "shuffled_grains"), ("generated", "held_out"),
)  # fmt: skip

Samples = NDArray[np.float32]
Sounding = Callable[[Tensor], Tensor]  # log-mel (1, T, F) -> waveform (1, T * hop)


def shaped_noise(clips: Iterator[Segment], audio: Audio, count: int, seed: int) -> Iterator[Segment]:
    """`count` clips of Gaussian noise whose power spectrum is the mean of the clips' own, at equal levels."""
    size = 1024
    spectra = []
    for clip in clips:
        stft = torch.stft(normalised(clip.samples, audio), size, window=torch.hann_window(size), return_complex=True)
        spectra.append(stft.abs().square().mean(1))
    gain = torch.stack(spectra).mean(0).sqrt().numpy()
    bins = np.linspace(0, len(gain) - 1, audio.clip_samples // 2 + 1)
    wide = np.interp(bins, np.arange(len(gain)), gain)
    for i in range(count):
        white = np.random.default_rng((seed, i)).normal(size=audio.clip_samples)
        shaped = np.fft.irfft(np.fft.rfft(white) * wide, audio.clip_samples)
        yield Segment(f"noise-{i}", 0.0, (audio.peak * shaped / np.abs(shaped).max()).astype(np.float32), 0)


def shuffled_grains(reader: ShardReader, audio: Audio, count: int, seed: int) -> Iterator[Segment]:
    """`count` clips of grains drawn from all training music alike, faded at both ends for FADE_SECONDS."""
    rate = reader.sample_rate
    size = round(GRAIN_SECONDS * rate)
    fade = np.ones(size, np.float32)
    ramp = np.sin(np.linspace(0, np.pi / 2, round(FADE_SECONDS * rate), dtype=np.float32)) ** 2
    fade[: len(ramp)], fade[-len(ramp) :] = ramp, ramp[::-1]
    tracks = [i for i, t in enumerate(reader.tracks) if t.split == "train" and t.samples >= size]
    if not tracks:
        raise DataError("No training track is as long as a grain.", "Check the splits: musicldm data check")
    weight = np.array([reader.tracks[i].samples - size + 1 for i in tracks], float)
    for number in range(count):
        generator = np.random.default_rng((seed, number))
        grains = []
        for track in generator.choice(tracks, -(-audio.clip_samples // size), p=weight / weight.sum()):
            start = int(generator.integers(reader.tracks[track].samples - size + 1))
            grains.append(reader.audio(track, start, start + size) * fade / np.float32(FULL_SCALE))
        samples = np.concatenate(grains)[: audio.clip_samples].astype(np.float32)
        yield Segment(f"grains-{number}", 0.0, samples, rate)


class GriffinLim:
    """Log-mel (1, T, F) -> waveform (1, T * hop) by phases alone (Griffin and Lim 1984), from a seeded start.

    Bins come from filters by multiplicative updates of least squares (Lee and Seung 2001), which keep them
    positive; cutting a pseudo-inverse at zero instead loses twice as much (docs/LOG.md).
    """

    def __init__(self, front_end: MelSpectrogram, seed: int) -> None:
        self.mel, self.seed, self.inverse = front_end, seed, torch.linalg.pinv(front_end.filters)

    def __call__(self, log_mel: Tensor) -> Tensor:
        bins, frames = self.bins(log_mel.exp()), log_mel.shape[1]
        whole = torch.cat([bins, bins[:, -1:]], 1)  # the front-end drops the last frame
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return griffinlim(
                whole.transpose(1, 2), self.mel.window, self.mel.n_fft, self.mel.hop_length, self.mel.win_length,
                1.0, GRIFFIN_LIM_STEPS, 0.0, frames * self.mel.hop_length, True,
            )  # fmt: skip

    def bins(self, mel: Tensor) -> Tensor:
        """Magnitudes (..., n_fft / 2 + 1), none negative, whose mel is nearly (..., F)."""
        filters = self.mel.filters
        found = (mel @ self.inverse).clamp(min=self.mel.floor)
        for _ in range(INVERSION_STEPS):
            found = found * (mel @ filters.T) / (found @ filters @ filters.T).clamp(min=1e-12)
        return found


@dataclass
class Through:
    """Real clips made to log-mels and back, and how far the log-mel of each result is from its own (L1, nats)."""

    clips: Callable[[], Iterator[Segment]]
    sounding: Sounding
    front_end: MelSpectrogram
    audio: Audio
    errors: list[float] = field(default_factory=list)

    @torch.no_grad()
    def __iter__(self) -> Iterator[Segment]:
        for clip in self.clips():
            mel = self.front_end(normalised(clip.samples, self.audio)[None])
            sound = self.sounding(mel)
            self.errors.append(float((self.front_end(sound) - mel).abs().mean()))
            yield Segment(clip.name, clip.start_seconds, sound[0].numpy(), clip.source_rate)


def soundings(params: Params, vae: Path | None, vocoder: Path | None) -> dict[str, Sounding]:
    """The ways from log-mel to sound; those of a model that is None are left out.

    Raises ModelError when a model is not whole or was trained on another mel.
    """
    found: dict[str, Sounding] = {"griffin_lim": GriffinLim(clip_mel(params), params.evaluate.seed)}
    if vocoder is not None:
        voice = load_vocoder(vocoder)
        _same_mel(params, voice.params, vocoder)
        found["vocoder"] = voice
        if vae is not None:
            coder = load_vae(vae)
            _same_mel(params, coder.params, vae)
            found["vae_vocoder"] = lambda mel: voice(coder.decode(coder.encode(mel)[0]))
    return found


def _same_mel(params: Params, other: Params, folder: Path) -> None:
    if (params.mel, params.audio.sample_rate) != (other.mel, other.audio.sample_rate):
        raise ModelError(
            f"{folder} was trained on other mels than params.yaml describes (mel, audio.sample_rate).",
            "Give the params.yaml it was trained with: musicldm --params FILE eval joints",
        )


def joints(
    setting: Setting, vae: Path | None, vocoder: Path | None, generated: Path | None, split: str, most: int, out: Path
) -> dict[str, Any]:
    """Write out/metrics.json: the Frechet distance of every set of SETS from at most `most` real clips of `split`.

    Models and generated clips that are None are left out, with a warning. Raises DataError, ModelError.
    """
    params, reader = setting.params, ShardReader(setting.shards)
    audio, seed = params.audio, params.evaluate.seed
    listen = setting.listener(load_backbone(params, setting.clap))

    def real() -> Iterator[Segment]:
        return shard_segments(reader, split, audio, most)

    target = listen(real(), f"{split} split")
    if len(target.names) < 2:
        raise DataError(f"The {split} split has one clip; a distance between sets needs two.", "Use more music.")
    names = [clip.name for clip in real()]
    count = len(names)
    front_end = clip_mel(params)
    paired = {name: Through(real, how, front_end, audio) for name, how in soundings(params, vae, vocoder).items()}
    sets: dict[str, Any] = {
        name: shard_segments(reader, which, audio, count)
        for name, which in (("held_out", OTHER[split]), ("training", "train"))
        if any(track.split == which for track in reader.tracks)
    }
    sets |= {"shuffled_grains": shuffled_grains(reader, audio, count, seed),
             "shaped_noise": shaped_noise(real(), audio, count, seed)} | paired  # fmt: skip
    if generated is not None:
        sets["generated"] = folder_segments(evenly(folder_files(generated), count), audio)
    embedded = {name: listen(segments, name.replace("_", " ")) for name, segments in sets.items()}
    embedded = {name: found for name, found in embedded.items() if len(found) > 1}
    errors = {name: mean_figure(np.array(through.errors), names, params.evaluate.bootstrap, seed)
              for name, through in paired.items()}  # fmt: skip
    result = figures(target, embedded, errors, params.evaluate) | {"split": split}
    write_json(out / "metrics.json", result)
    return result


def figures(
    real: Embedded, sets: dict[str, Embedded], errors: dict[str, dict[str, Any]], settings: Evaluate
) -> dict[str, Any]:
    """Distances with intervals, and the ratios of RATIOS.

    One bootstrap draw takes the same real tracks for all sets, and for sets made from these clips the same
    tracks there too, so that a ratio's interval holds what both distances share only once.
    """
    generator, draw = np.random.default_rng(settings.seed), resampler(real.names)
    draws = [draw(generator) for _ in range(settings.bootstrap)]
    pairs = {name: _pairs(found, name in errors, draws, settings) for name, found in sets.items()}
    replicates = {name: [frechet_distance(found.vectors[i], real.vectors[j]) for i, j in pairs[name]]
                  for name, found in sets.items()}  # fmt: skip
    result = {
        name: _row(name, found, real, replicates[name], pairs[name], errors, settings) for name, found in sets.items()
    }
    ratios = {}
    for a, b in (pair for pair in RATIOS if set(pair) <= set(sets)):
        above, below = result[a], result[b]
        value = (above["fd"]["value"], below["fd"]["value"])
        rests_on = fewest(sets[a], sets[b], real)
        ratios[f"{a} / {b}"] = ratio_figure(*value, replicates[a], replicates[b], *rests_on)
    return {
        "backbone": real.backbone, "preprocessing": real.preprocessing, "n_real": len(real.names),
        "n_real_tracks": real.n_tracks, "sets": result, "ratios": ratios,
        "intervals": intervals(settings),
        "warnings": _warnings(real, sets),
    }  # fmt: skip


def _row(
    name: str, found: Embedded, real: Embedded, replicates: list[float], draws: list[tuple[Rows, Rows]],
    errors: dict[str, dict[str, Any]], settings: Evaluate,
) -> dict[str, Any]:  # fmt: skip
    x, y, rests_on = found.vectors, real.vectors, fewest(found, real)
    return {
        "what": SETS[name],
        "n": len(x),
        "fd": distance_figure(frechet_distance(x, y), replicates, *rests_on),
        "fd_infinity": limit_figure(x, y, draws, settings.seed, *rests_on),
        "log_mel_l1": errors.get(name),
    }


def _pairs(found: Embedded, paired: bool, draws: list[Rows], settings: Evaluate) -> list[tuple[Rows, Rows]]:
    """The set's rows in each draw of the real rows: the same where the set was made from these."""
    generator, draw = np.random.default_rng(settings.seed + 1), resampler(found.names)
    return [(rows if paired else draw(generator), rows) for rows in draws]


def _warnings(real: Embedded, sets: dict[str, Embedded]) -> list[str]:
    found = [*real.warnings, *(warning for one in sets.values() for warning in one.warnings)]
    found += [f"Not measured: {name} ({what})." for name, what in SETS.items() if name not in sets]
    uneven = [f"{name} {len(one)}" for name, one in sets.items() if len(one) != len(real)]
    if uneven:
        found.append(f"Sets smaller than the {len(real)} real clips have too large an FD: {', '.join(uneven)}.")
    if len(real) <= real.vectors.shape[1]:
        found.append(f"FD is biased upwards: {len(real)} clips do not determine {real.vectors.shape[1]} dimensions; "
                     "compare it with sets of the same size only.")  # fmt: skip
    return found
