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
from stages.store import sha256

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
    folder = Path(source) if Path(source).is_dir() else _from_hub(source)
    config = _json(folder / "config.json")
    _check(source, config)
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)
    if weights is None:
        raise ModelError(f"{source} holds no {' or '.join(WEIGHT_FILES)}.", _SAME)
    known = HubertConfig(**{key: value for key, value in config.items() if key not in ("model_type", "auto_map")})
    try:
        model, report = HubertModel.from_pretrained(
            folder, config=known, output_loading_info=True, use_safetensors=weights.suffix == ".safetensors"
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{source} does not fit transformers' HuBERT: {str(error).splitlines()[0]}", _SAME) from error
    lost = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
    if lost:
        raise ModelError(f"{source} does not fit transformers' HuBERT: {len(lost)} tensors, first {lost[0]}.", _SAME)
    rate = _json(folder / "preprocessor_config.json").get("sampling_rate", DEFAULT_RATE)
    digest = hashlib.sha256(f"{json.dumps(config, sort_keys=True)}{sha256(weights)}".encode()).hexdigest()[:12]
    return Mert(model.eval().requires_grad_(False), int(rate), digest)


def _check(source: str, config: dict[str, Any]) -> None:
    if config.get("model_type") not in ("hubert", "mert_model"):
        raise ModelError(f"{source} is a {config.get('model_type', 'nameless')} model, not MERT or HuBERT.", _SAME)
    foreign = [what for key, what in _FOREIGN.items() if config.get(key) not in (None, False, -1, -1.0)]
    if foreign:
        raise ModelError(
            f"{source} has {' and '.join(foreign)}, which is code of its own repository; such code is not run here.",
            _SAME,
        )


def _from_hub(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", *WEIGHT_FILES]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"There is no model folder {source}, and the hub does not give it: {str(error).splitlines()[0]}",
            "Give a local folder or a hub id with --weights.",
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", _SAME) from error
