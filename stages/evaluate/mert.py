"""MERT by folder or hub id, through transformers' own HuBERT: no code from a model repository is ever run.

MERT is HuBERT trained on music at 24 kHz. Variants that change the network (constant-Q input, relaxed
attention, deep norm) exist only as code beside their weights, and are refused with the reason.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from stages.errors import ModelError
from stages.pretrained import fetch, must_fit, network_of, refuse_code
from stages.store import read_config, sha256
from stages.tensors import read_tensors

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
DEFAULT_RATE = 16_000  # HuBERT's, where no preprocessor_config.json says otherwise
VARIANCE_FLOOR = 1e-7  # of transformers' Wav2Vec2FeatureExtractor
_SAME = "Choose one whose network is plain HuBERT, such as m-a-p/MERT-v0, or another evaluate.backbone."
_FOREIGN = {
    "feature_extractor_cqt": "a constant-Q input",
    "attention_relax": "relaxed attention",
    "deepnorm": "deep norm",
}


class Mert(nn.Module):
    """A HuBERT with its sample rate, and the digest of its config and weights."""

    def __init__(self, model: HubertModel, sample_rate: int, digest: str) -> None:
        super().__init__()
        self.model, self.sample_rate, self.digest = model, sample_rate, digest

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveform (B, L) at `sample_rate` -> (B, D); every clip is scaled to mean 0 and variance 1 first."""
        centred = waveform - waveform.mean(1, keepdim=True)
        variance = centred.square().mean(1, keepdim=True)
        return self.model(centred / (variance + VARIANCE_FLOOR).sqrt()).last_hidden_state.mean(1)


def load_mert(source: str) -> Mert:
    """The model of a local folder or a hub id, in eval mode.

    Raises ModelError when it cannot be had, is no HuBERT, or needs code that is not in transformers.
    """
    folder = fetch(source, ["*.json", *WEIGHT_FILES], "Give a local folder or a hub id with --weights.")
    config = read_config(folder / "config.json", _SAME)
    _check(source, config)
    usual = {key: value for key, value in config.items() if key not in ("model_type", "auto_map")}  # MERT's is not run
    refuse_code(folder / "config.json", usual, _SAME)
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)
    if weights is None:
        raise ModelError(f"{source} holds no {' or '.join(WEIGHT_FILES)}.", _SAME)
    tensors, rate = read_tensors(weights, _SAME), _sample_rate(folder / "preprocessor_config.json")
    with must_fit(f"{source} does not fit transformers' HuBERT", _SAME):
        known = HubertConfig(**usual)
        if known.num_hidden_layers > len(tensors):
            raise ValueError(f"its config has {known.num_hidden_layers} layers, its file {len(tensors)} tensors")
        model, lost = network_of(HubertModel, known, tensors)
        if lost:
            raise ValueError(f"{len(lost)} tensors, first {lost[0]}")
    digest = hashlib.sha256(f"{json.dumps(config, sort_keys=True)}{sha256(weights)}".encode()).hexdigest()[:12]
    return Mert(model.eval().requires_grad_(False), rate, digest)


def _sample_rate(path: Path) -> int:
    rate = read_config(path, _SAME).get("sampling_rate", DEFAULT_RATE) if path.exists() else DEFAULT_RATE
    if not isinstance(rate, int) or not 1000 <= rate <= 192_000:
        raise ModelError(f"{path} has a sampling_rate of {rate!r:.50}.", _SAME)
    return rate


def _check(source: str, config: dict[str, Any]) -> None:
    if config.get("model_type") not in ("hubert", "mert_model"):
        raise ModelError(f"{source} is a {config.get('model_type', 'nameless')} model, not MERT or HuBERT.", _SAME)
    foreign = [what for key, what in _FOREIGN.items() if config.get(key) not in (None, False, -1, -1.0)]
    if foreign:
        raise ModelError(
            f"{source} has {' and '.join(foreign)}, which is code of its own repository; such code is not run here.",
            _SAME,
        )
