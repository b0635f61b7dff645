"""Weights files of the evaluation networks, local or from a hub."""

import re
from pathlib import Path

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


def file_digest(path: Path) -> str:
    """Twelve hex digits that name a weights file."""
    return sha256(path)[:12]
