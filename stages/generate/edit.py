"""Music made from music: audio to audio, continuation, and inpainting of a time span.

Audio to audio begins the reverse diffusion from a given clip instead of from noise (SDEdit, Meng et al. 2021). The
other two hold the latents of what is kept at every step, so that the rest is made to fit; what is kept comes out as
the samples that went in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from stages.audio import io as audio_io
from stages.audio.mel import clip_mel
from stages.errors import DataError, UsageError
from stages.generate.join import bridge, crossfade, level_like
from stages.generate.settings import LONGEST_SECONDS, check_length
from stages.generate.windows import encode_mel

if TYPE_CHECKING:
    from stages.generate.pipeline import Pipeline

SILENT_PEAK = 1e-4
CONTEXT_SHARE = 0.5  # of a trained clip: how much of a file's end a continuation listens to
FADE_SECONDS = 0.02
SHORTEST_SPAN_SECONDS = 0.1


@dataclass(frozen=True)
class Canvas:
    """What one sampling works on: so many latent positions in time, perhaps as a ring, and what is given of them.

    `start` (1, C, H, W) is where sampling begins at `strength`, or is held wherever `kept` (1, 1, H, 1) is true.
    `finish` turns the denoised latents (B, C, H, W) into the resulting waveforms (B, L).
    """

    positions: int
    finish: Callable[[Tensor], Tensor]
    ring: bool = False
    start: Tensor | None = None
    strength: float = 1.0
    kept: Tensor | None = None


class Edit(Protocol):
    """A way to make clips other than from noise alone."""

    @property
    def strength(self) -> float:
        """What share of the denoising steps it takes."""
        ...

    @property
    def keeps_samples(self) -> bool:
        """Whether the result holds samples of a file, which no gain may change; what is new then has its headroom."""
        ...

    def identity(self) -> dict[str, Any]:
        """What of it decides the clips, for the manifest."""
        ...

    def seconds(self, asked: float | None, clip_seconds: float) -> float:
        """The length of the result, `asked` being the length that was asked for. Raises UsageError."""
        ...

    def canvas(self, pipeline: "Pipeline", seconds: float) -> Canvas: ...


@dataclass(frozen=True)
class Sound:
    """A file's samples (L,) float32 within [-1, 1] at the model's rate, and their hash."""

    samples: Tensor
    sha256: str
    sample_rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


def read_sound(path: Path, sample_rate: int) -> Sound:
    """Mono at the model's rate; a file that is so already is taken sample by sample. Raises DataError."""
    levels = audio_io.Levels()
    samples, _ = audio_io.read(path, sample_rate, levels)
    if fault := levels.fault():
        raise DataError(f"{path} {fault}.", "Choose another file.")
    return make_sound(torch.from_numpy(samples), sample_rate)


def make_sound(samples: Tensor, sample_rate: int) -> Sound:
    """Raises DataError for silence."""
    if not len(samples) or float(samples.abs().max()) < SILENT_PEAK:
        raise DataError("The audio to begin from is silent.", "Choose another file.")
    digest = audio_io.SampleHash(sample_rate)
    digest.update(samples.numpy())
    return Sound(samples.clamp(-1, 1), digest.hexdigest(), sample_rate)


@dataclass(frozen=True)
class Init:
    """A clip to begin from, and how far to leave it: `strength` 0 gives its reconstruction by VAE and vocoder, 1
    ignores it. Raises UsageError for a strength outside 0 to 1."""

    sound: Sound
    strength: float
    keeps_samples: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UsageError(f"--strength {self.strength:g} is not between 0 and 1.")

    def identity(self) -> dict[str, Any]:
        return {"init_sha256": self.sound.sha256, "strength": self.strength}

    def seconds(self, asked: float | None, clip_seconds: float) -> float:
        if asked is None:
            return clip_seconds
        check_length(asked, self.sound.sample_rate)
        return asked

    def canvas(self, pipeline: "Pipeline", seconds: float) -> Canvas:
        positions = pipeline.positions(seconds)
        start = encode(pipeline, self.sound.samples[: positions * pipeline.position_samples], positions)

        def finish(latents: Tensor) -> Tensor:
            return pipeline.decode(latents)[:, : pipeline.samples(seconds)]

        return Canvas(positions, finish, start=start, strength=self.strength)


@dataclass(frozen=True)
class Continuation:
    """A file, and music that goes on where it ends; the result holds the file's samples, then the new ones."""

    sound: Sound
    strength: float = 1.0
    keeps_samples: bool = True

    def identity(self) -> dict[str, Any]:
        return {"continue_sha256": self.sound.sha256}

    def seconds(self, asked: float | None, clip_seconds: float) -> float:
        """By default one clip is added. Raises UsageError when nothing would be, or more than LONGEST_SECONDS."""
        if asked is None:
            return self.sound.seconds + clip_seconds
        if not 0.5 / self.sound.sample_rate < asked - self.sound.seconds <= LONGEST_SECONDS:
            raise UsageError(
                f"--seconds {asked:g} is the length of the whole result; the file of --continue has "
                f"{self.sound.seconds:.2f} s already, and at most {LONGEST_SECONDS:g} are added."
            )
        return asked

    def canvas(self, pipeline: "Pipeline", seconds: float) -> Canvas:
        """The file's end, as many whole latent positions as half a clip has, then what is new."""
        size, clip = pipeline.position_samples, pipeline.params.latent_shape[1]
        new = pipeline.samples(self.seconds(seconds, 0)) - len(self.sound.samples)
        known = min(round(clip * CONTEXT_SHARE), len(self.sound.samples) // size)
        if known == 0:
            raise DataError(
                f"The file of --continue is shorter than {size / pipeline.params.audio.sample_rate:g} s.",
                "Choose a longer one.",
            )
        context = self.sound.samples[-known * size :]
        positions = max(clip, known - (-new // size))
        start = encode(pipeline, mirrored(context, positions * size), positions)
        kept = (torch.arange(positions, device=start.device) < known).view(1, 1, -1, 1)

        def finish(latents: Tensor) -> Tensor:
            audio = pipeline.decode(latents)
            audio = level_like(audio, context.to(audio), slice(0, len(context)))
            return torch.stack([self._joined(row[len(context) :][:new]) for row in audio])

        return Canvas(positions, finish, start=start, kept=kept)

    def _joined(self, new: Tensor) -> Tensor:
        fade = min(len(new), round(FADE_SECONDS * self.sound.sample_rate))
        old = self.sound.samples.to(new)
        return torch.cat([old, bridge(old, new, fade)])


@dataclass(frozen=True)
class Inpainting:
    """A file of which the time span from `begin` to `end` seconds is made anew, and nothing else changes."""

    sound: Sound
    begin: float
    end: float
    strength: float = 1.0
    keeps_samples: bool = True

    def __post_init__(self) -> None:
        """Raises UsageError for a span that is not inside the file, too short, or all of it."""
        length = self.sound.seconds
        if not 0 <= self.begin < self.end <= length or self.end - self.begin < SHORTEST_SPAN_SECONDS:
            raise UsageError(
                f"--inpaint {self.begin:g}:{self.end:g} is no span of at least {SHORTEST_SPAN_SECONDS:g} s inside the "
                f"file's {length:.2f} s."
            )

    def identity(self) -> dict[str, Any]:
        return {"inpaint_sha256": self.sound.sha256, "inpaint_seconds": [self.begin, self.end]}

    def seconds(self, asked: float | None, clip_seconds: float) -> float:
        """That of the file. Raises UsageError when another was asked for."""
        if asked not in (None, self.sound.seconds):
            raise UsageError("--seconds does not go with --inpaint: the result is as long as its file.")
        return self.sound.seconds

    @property
    def span(self) -> tuple[int, int]:
        """First sample of the span, and the first behind it."""
        rate = self.sound.sample_rate
        return round(self.begin * rate), min(round(self.end * rate), len(self.sound.samples))

    def canvas(self, pipeline: "Pipeline", seconds: float) -> Canvas:
        """The span with music on both sides, at least a quarter of a clip where there is as much."""
        size, clip = pipeline.position_samples, pipeline.params.latent_shape[1]
        (begin, end), total = self.span, len(self.sound.samples)
        positions = max(clip, -(-(end - begin) // size) + clip // 2)
        origin = max(0, min(begin - (positions * size - (end - begin)) // 2, total - positions * size))
        part = self.sound.samples[origin : origin + positions * size]
        first = origin + torch.arange(positions) * size
        kept = ((first + size <= begin) | (first >= end)) & (first + size <= total)
        if not kept.any():
            raise UsageError(
                f"--inpaint leaves nothing of the file that is as long as {size / self.sound.sample_rate:g} s.",
                "Choose a shorter span.",
            )
        start = encode(pipeline, part, positions)

        def finish(latents: Tensor) -> Tensor:
            audio = pipeline.decode(latents)[:, : len(part)]
            outside = torch.ones(len(part), dtype=torch.bool, device=audio.device)
            outside[begin - origin : end - origin] = False
            audio = level_like(audio, part.to(audio), outside)
            return torch.stack([self._joined(row[begin - origin : end - origin]) for row in audio])

        return Canvas(positions, finish, start=start, kept=kept.view(1, 1, -1, 1).to(start.device))

    def _joined(self, new: Tensor) -> Tensor:
        begin, end = self.span
        fade = min(len(new) // 2, round(FADE_SECONDS * self.sound.sample_rate))
        result = self.sound.samples.to(new).clone()
        old = result[begin:end].clone()
        if begin > 0:
            new = torch.cat([crossfade(old[:fade], new[:fade]), new[fade:]])
        if end < len(result):
            new = torch.cat([new[:-fade], crossfade(new[-fade:], old[-fade:])])
        result[begin:end] = new.clamp(-1, 1)
        return result


def parse_inpaint(text: str) -> tuple[Path, float, float]:
    """`song.wav:12.5:15` -> (Path("song.wav"), 12.5, 15.0). Raises UsageError."""
    parts = text.rsplit(":", 2)
    try:
        return Path(parts[0]), float(parts[1]), float(parts[2])
    except (IndexError, ValueError):
        raise UsageError(
            f"--inpaint {text!r} is not FILE:START:END with START and END in seconds.", "E.g.: song.wav:12.5:15"
        ) from None


@torch.no_grad()
def encode(pipeline: "Pipeline", samples: Tensor, positions: int) -> Tensor:
    """Scaled latents (1, C, positions, F / P) of samples (L,), normalised as in training, padded with silence."""
    peak, mel = pipeline.params.audio.peak, clip_mel(pipeline.params).to(pipeline.device)
    samples = samples.to(pipeline.device)
    samples = samples - samples.mean()
    samples = samples * (peak / samples.abs().max().clamp(min=SILENT_PEAK))
    padded = torch.nn.functional.pad(samples, (0, positions * pipeline.position_samples - len(samples)))
    return encode_mel(pipeline.vae, mel(padded[None]), pipeline.params.latent_shape[1]) * pipeline.vae.scale


def mirrored(samples: Tensor, length: int) -> Tensor:
    """`samples` (L,), then themselves backwards, forwards and so on up to `length`: no edge where they end."""
    both = torch.cat([samples, samples.flip(0)])
    return both.repeat(-(-length // len(both)))[:length]
