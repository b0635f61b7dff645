"""Public checkpoints from a file or a hub, read without unpickling code and fitted name by name, shape by shape."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.errors import ModelError
from stages.store import sha256

_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+):(.+)")


def fetch_weights(source: str | None, backbone: str, usual: str) -> Path:
    """A local file, or `owner/name:file` from the Hugging Face hub (kept in its own cache). Raises ModelError."""
    if source is None:
        raise ModelError(
            f"The network {backbone} needs its weights, which cannot be shipped here.",
            f"Give the public file with --weights FILE ({usual}), or owner/name:file on a hub; "
            "musicnn needs none: -S evaluate.backbone=musicnn",
        )
    path = Path(source)
    if path.is_file():
        return path
    match = _HUB_FILE.fullmatch(source)
    if match is None:
        raise ModelError(f"There is no weights file {source}.", f"The network {backbone} reads {usual}.")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(match[1], match[2]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{source} cannot be had from the hub: {str(error).splitlines()[0]}",
            "Check the name and the network, or give a local file.",
        ) from error


def read_state(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a .pth or .safetensors file; `key` names the entry that holds them where there is one.

    Only tensors are read (`weights_only`): a file that needs code to be run is refused with ModelError.
    """
    usual = "Give the file as its authors published it."
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path} is no checkpoint of tensors: {str(error).splitlines()[0]}", usual) from error
    if isinstance(found, dict) and key is not None and isinstance(found.get(key), dict):
        found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path} does not hold a table of tensors.", usual)
    return found


def strict(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load `state`; raises ModelError unless names and shapes are the network's own, all of them."""
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"{path} is not a checkpoint of {type(network).__name__}: {len(wrong)} tensors differ; {name} is "
            f"{found.get(name, 'missing')}, it should be {wanted.get(name, 'absent')}.",
            "Give the file as its authors published it.",
        )
    network.load_state_dict(state, strict=True)


def file_digest(path: Path) -> str:
    """Twelve hex digits that name a weights file."""
    return sha256(path)[:12]
