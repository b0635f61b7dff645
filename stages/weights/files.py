"""Public checkpoint files as one table of tensors under the names of MusicLDM's main checkpoint; never unpickled."""

from collections.abc import Iterable
from pathlib import Path

from stages.errors import ModelError
from stages.tensors import USUAL, Tensors, read_tensors
from stages.weights.names import CLAP, UNET, VAE, VOCODER

# What tells a file's content, the prefix it has in the main checkpoint, and how people call it.
_KINDS = (("encoder.conv_in.", VAE, "VAE"), ("audio_branch.", CLAP, "CLAP"), ("conv_pre.", VOCODER, "HiFi-GAN"))


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
