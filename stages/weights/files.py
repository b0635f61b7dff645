"""Public checkpoint files as one table of tensors under the names of MusicLDM's main checkpoint; never unpickled."""

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.errors import ModelError
from stages.weights.names import CLAP, UNET, VAE, VOCODER
from stages.weights.tensors import Tensors

USUAL = "Give a file as its authors published it, or a .safetensors of its tensors."
# Plain numbers that CLAP's and Lightning's files keep beside their tensors: losses, dates, learning rates.
_NUMBERS: list[Any] = [np.dtype, *{type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8", "b1")}]
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
# What tells a file's content, the prefix it has in the main checkpoint, and how people call it.
_KINDS = (("encoder.conv_in.", VAE, "VAE"), ("audio_branch.", CLAP, "CLAP"), ("conv_pre.", VOCODER, "HiFi-GAN"))


def read_tensors(path: Path) -> Tensors:
    """The tensors of a .safetensors or torch file, its `state_dict` or `generator` where it has one.

    Raises ModelError for a file that is none, and for one that would have to be unpickled (only tensors and plain
    numbers are read, by torch's `weights_only`).
    """
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        with torch.serialization.safe_globals([*_NUMBERS, _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar")]):
            found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except FileNotFoundError:
        raise ModelError(f"There is no {path}.", USUAL) from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path} is no checkpoint of tensors: {_first_line(error)}", USUAL) from error
    for key in ("state_dict", "generator"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path} does not hold a table of tensors.", USUAL)
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def read_public(files: Iterable[Path]) -> tuple[Tensors, list[str]]:
    """All tensors of the files, each part (UNet, VAE, vocoder, CLAP) from one file only; and remarks.

    The main checkpoint (the one with the UNet) goes before the others, as in the public code; what it does not
    hold comes from them. Raises ModelError for a file of another layout.
    """
    tables = {path: _prefixed(read_tensors(path), path) for path in files}
    mains = [path for path, table in tables.items() if any(name.startswith(UNET) for name in table)]
    merged: Tensors = {}
    remarks = []
    for path in sorted(tables, key=lambda path: path not in mains):
        parts = {_part(name) for name in tables[path]}
        held = sorted(parts & {_part(name) for name in merged} - {""})
        if held:
            remarks.append(f"The {', '.join(held)} of {path} was not used: {mains[0] if mains else 'another'} has it.")
        merged |= {name: t for name, t in tables[path].items() if _part(name) not in held and name not in merged}
    return merged, remarks


def _part(name: str) -> str:
    prefixes = ((UNET, "UNet"), (VOCODER, "vocoder"), (VAE, "VAE"), (CLAP, "CLAP"))
    return next((part for prefix, part in prefixes if name.startswith(prefix)), "")


def _prefixed(tensors: Tensors, path: Path) -> Tensors:
    """The tensors of a part's own file under the names they have in the main checkpoint."""
    if any(name.startswith((UNET, VAE, CLAP)) for name in tensors):
        return tensors
    for sign, prefix, _ in _KINDS:
        if any(name.startswith(sign) for name in tensors):
            return {prefix + name: tensor for name, tensor in tensors.items()}
    kinds = ", ".join(kind for _, _, kind in _KINDS)
    raise ModelError(f"{path} is none of the public layouts: neither MusicLDM or AudioLDM, nor {kinds}.", USUAL)


def _safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is no checkpoint of tensors: {_first_line(error)}", USUAL) from error


def _is_zip(path: Path) -> bool:
    """Whether torch can map the file; its oldest format it reads whole."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
