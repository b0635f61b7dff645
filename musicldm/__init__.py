"""Text to music, and what is measured of it, from Python; nothing heavy is imported before it is used.

    clip = musicldm.load("shipped")("dramatic trailer", seed=1)
    clip.save("trailer.wav")

Errors are those of `stages.errors`: a sentence, and what mends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stages.beats.track import Beats
    from stages.evaluate.run import Similarity
    from stages.generate.choose import Model
    from stages.generate.pipeline import Pipeline
    from stages.params import Params

__all__ = ["Clip", "Pipe", "beats", "load", "mix", "similarity"]

FilePath = str | Path


@dataclass(frozen=True)
class Clip:
    """A finished clip: waveform (L,) float32 in [-1, 1], and what it was made from and came to."""

    waveform: NDArray[np.float32]
    about: dict[str, Any]
    params: Params = field(repr=False)

    @property
    def sample_rate(self) -> int:
        """In Hz."""
        return self.params.audio.sample_rate

    def save(self, path: FilePath) -> Path:
        """Write .wav, .flac, .ogg, .opus or .mp3, as `musicldm generate` does. Raises DataError."""
        import torch

        from stages.generate.batch import write_clip

        write_clip(Path(path), torch.from_numpy(self.waveform), self.sample_rate, self.about)
        return Path(path)

    def _repr_html_(self) -> str:
        """A player with the spectrogram, for a notebook."""
        import torch

        from stages.generate.plots import player_html

        title = self.about.get("prompt") or " + ".join(self.about["files"])  # of a mix
        return player_html(torch.from_numpy(self.waveform), self.params, title)


class Pipe:
    """A text-to-music model; its networks are loaded at the first clip, and again where a call needs other weights."""

    def __init__(self, model: Model, device: str | None, backend: str, few_steps: bool | Literal["auto"]) -> None:
        self.model, self.device, self.backend, self.few_steps = model, device, backend, few_steps
        self._loaded: Pipeline | None = None

    def __call__(
        self, prompt: str, *, seconds: float | None = None, seed: int | None = None, negative: str | None = None,
        candidates: int | None = None, steps: int | None = None, guidance: float | None = None,
        sampler: str | None = None,
    ) -> Clip:  # fmt: skip
        """Make a clip, the one of `candidates` that CLAP likes best; None is as the model's card says. The same seed
        and settings give the same clip. Raises UsageError for what cannot be."""
        from stages.generate.batch import make_clip
        from stages.generate.choose import Options, choose_clip
        from stages.generate.settings import FEW_STEPS

        if sampler is None and self.few_steps != "auto":
            sampler = FEW_STEPS if self.few_steps else self.model.sampling.sampler
        options = Options(sampler, steps, guidance, None, None, None, candidates, negative, seed, seconds)
        settings, chosen = choose_clip(self.model, prompt, options)
        pipeline = self._load(settings.sampler == FEW_STEPS)
        clip, row = make_clip(pipeline, chosen, settings, self.model.sampling.batch_size)
        return Clip(clip.waveform.numpy(), row, pipeline.params)

    def _load(self, few_steps: bool) -> Pipeline:
        from stages.generate.backends import load_pipeline

        if self._loaded is None or self._loaded.few_steps != few_steps:
            self._loaded = None  # before the next one takes memory
            self._loaded, _ = load_pipeline(self.model.folder, few_steps, self.backend, self.device)
        return self._loaded


def load(
    model: FilePath = "shipped", *, device: str | None = None, backend: str = "auto",
    few_steps: bool | Literal["auto"] = "auto",
) -> Pipe:  # fmt: skip
    """The shipped model, that of a folder, or one of the hub ("owner/name", kept below work/models). Raises ModelError.
    `few_steps` "auto": by its weights for few steps, where a call asks for nothing that these cannot do."""
    from stages.generate.settings import check_backend

    check_backend(backend)
    return Pipe(_find(model), device, backend, few_steps)


def beats(path: FilePath) -> Beats:
    """The beats, downbeats, metre and tempo of an audio file. Raises DataError for one that is not whole."""
    from stages.beats.track import find_beats

    return find_beats(Path(path))


def mix(
    first: FilePath, second: FilePath, weight: float = 0.5, mode: Literal["blm", "bam", "simple"] = "blm",
    model: FilePath = "shipped",
) -> Clip:  # fmt: skip
    """weight * first + (1 - weight) * second, of latents (`blm`) or audio; but for `simple` aligned on downbeats.
    Raises DataError for files whose tempos or metres differ."""
    from stages.ldm.pair import mix_files

    found = mix_files(Path(first), Path(second), _find(model).folder, weight, mode)
    return Clip(found.waveform.numpy(), found.about, found.params)


def similarity(
    made: FilePath, training: FilePath, *, thresholds: Sequence[float] = (0.9, 0.95), model: FilePath = "shipped",
    cache: FilePath | None = None,
) -> Similarity:  # fmt: skip
    """Compare the clips of a folder with the training music of another (audio files or shards), by the model's CLAP
    and by spectrogram. The folder `cache` keeps embeddings for the next call. Raises DataError."""
    from stages.evaluate.run import similarity as compare

    found, kept = _find(model), None if cache is None else Path(cache)
    return compare(Path(made), Path(training), found.folder, found.params, thresholds, kept)


def _find(model: FilePath) -> Model:
    from stages.generate.choose import find_model, no_project

    return find_model(str(model), no_project())
