"""The networks that evaluations listen with. Each states its name, with version, and what it does to a clip.

`musicnn` and `musicnn-msd` work out of the box; `clap` is trained here; `cnn14-16k`, `cnn14-32k` and `vggish` read
the public checkpoints from a file or a hub; `mert` reads a HuBERT-shaped model of 24 kHz from a folder or a hub.
"""

from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor
from torchaudio.functional import resample

from stages.errors import ModelError
from stages.evaluate.weights import fetch_weights, file_digest
from stages.params import Params

TAG_EPSILON = 1e-9  # probabilities this near to 0 or 1 have no finite logit in float32


class Backbone(Protocol):
    """(B, L) float32 at the clip rate -> vectors (B, D), or (B, P, D) for P patches of `patch_seconds`, and tag
    logits (B, K) or None. `keeps_level`: clips are measured at their own level, not at one peak."""

    @property
    def name(self) -> str: ...
    @property
    def keeps_level(self) -> bool: ...
    @property
    def patch_seconds(self) -> float: ...
    def __call__(self, waveform: Tensor) -> tuple[Tensor, Tensor | None]: ...


def clap_name(folder: Path) -> str:
    """What the CLAP of a `clap` or `ldm` folder is called in figures, caches and indexes. Raises ModelError."""
    from stages.clap.model import clap_digest

    return f"clap {clap_digest(folder)}"


class ClapBackbone:
    """The audio tower of a trained CLAP folder (or of the CLAP inside an `ldm` folder)."""

    keeps_level, patch_seconds = False, 0.0

    def __init__(self, folder: Path, sample_rate: int) -> None:
        from stages.clap.model import load_clap

        if not folder.is_dir():
            raise ModelError(f"There is no model folder {folder}.", "Make it with: dvc repro, or: musicldm train clap")
        self.clap, self.sample_rate = load_clap(folder), sample_rate
        self.name = clap_name(folder)

    @torch.no_grad()
    def __call__(self, waveform: Tensor) -> tuple[Tensor, None]:
        return self.clap.embed_audio(waveform, self.sample_rate), None


class MusicnnBackbone:
    """musicnn trained on MagnaTagATune or the Million Song Dataset: 200-d, 50 tags, means over 3 s patches.

    The tags' logits are those of the mean probabilities.
    """

    keeps_level, patch_seconds = False, 0.0

    def __init__(self, sample_rate: int, weights: Literal["MTT_musicnn", "MSD_musicnn"] = "MTT_musicnn") -> None:
        from stages.audio.musicnn import load_musicnn

        self.network, self.sample_rate = load_musicnn(weights), sample_rate
        self.name = f"musicnn {weights}"

    @torch.no_grad()
    def __call__(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        from stages.audio.musicnn import SAMPLE_RATE

        tags, vectors = self.network(resample(waveform, self.sample_rate, SAMPLE_RATE))
        return vectors, torch.logit(tags.double(), eps=TAG_EPSILON)


class UnitBackbone:
    """Another network's vectors at length 1, so that their products are cosines, as an index needs them."""

    def __init__(self, network: Backbone) -> None:
        self.network, self.name = network, f"{network.name}, length 1"
        self.keeps_level, self.patch_seconds = network.keeps_level, network.patch_seconds

    def __call__(self, waveform: Tensor) -> tuple[Tensor, Tensor | None]:
        vectors, logits = self.network(waveform)
        return torch.nn.functional.normalize(vectors, dim=-1), logits


class Cnn14Backbone:
    """PANN Cnn14: 2048-d after fc1 and ReLU, 527 AudioSet logits; what audioldm_eval calls `cnn14`."""

    keeps_level, patch_seconds = True, 0.0

    def __init__(self, weights: Path, network_rate: int, sample_rate: int) -> None:
        from stages.evaluate.panns import load_cnn14

        self.network = load_cnn14(weights, network_rate)
        self.network_rate, self.sample_rate = network_rate, sample_rate
        self.name = f"cnn14-{network_rate // 1000}k {file_digest(weights)}"

    @torch.no_grad()
    def __call__(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(resample(waveform, self.sample_rate, self.network_rate))


class VggishBackbone:
    """VGGish: 128-d for every whole 0.96 s, no tags; its FD is FAD."""

    keeps_level = True

    def __init__(self, weights: Path, sample_rate: int) -> None:
        from stages.evaluate.vggish import PATCH_SECONDS, load_vggish

        self.network, self.sample_rate, self.patch_seconds = load_vggish(weights), sample_rate, PATCH_SECONDS
        self.name = f"vggish {file_digest(weights)}"

    @torch.no_grad()
    def __call__(self, waveform: Tensor) -> tuple[Tensor, None]:
        from stages.evaluate.vggish import SAMPLE_RATE

        return self.network(resample(waveform, self.sample_rate, SAMPLE_RATE)), None


class MertBackbone:
    """MERT (Li et al. 2023, arXiv 2306.00107) and other HuBERTs: mean over time of the last layer."""

    keeps_level, patch_seconds = False, 0.0

    def __init__(self, source: str, sample_rate: int) -> None:
        from stages.evaluate.mert import load_mert

        self.network, self.sample_rate = load_mert(source), sample_rate
        self.name = f"mert {self.network.digest}"

    @torch.no_grad()
    def __call__(self, waveform: Tensor) -> tuple[Tensor, None]:
        return self.network(resample(waveform, self.sample_rate, self.network.sample_rate)), None


def load_backbone(params: Params, clap: Path) -> Backbone:
    """The network of `evaluate.backbone` with `evaluate.weights`. Raises ModelError."""
    name, source, rate = params.evaluate.backbone, params.evaluate.weights, params.audio.sample_rate
    if name == "clap":
        return ClapBackbone(clap, rate)
    if name == "musicnn":
        return MusicnnBackbone(rate)
    if name == "musicnn-msd":
        return MusicnnBackbone(rate, "MSD_musicnn")
    if name == "mert":
        if source is None:
            raise ModelError("The network mert needs a model.", "Give a folder or hub id with --weights.")
        return MertBackbone(source, rate)
    if name == "vggish":
        return VggishBackbone(fetch_weights(source, name, "vggish-10086976.pth"), rate)
    usual = "Cnn14_16k_mAP=0.438.pth" if name == "cnn14-16k" else "Cnn14_mAP=0.431.pth"
    return Cnn14Backbone(fetch_weights(source, name, usual), 16_000 if name == "cnn14-16k" else 32_000, rate)
