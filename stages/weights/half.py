"""A model folder in half precision: half the size on disk, for shipping; it is read back as float32."""

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stages.store import card_facts, model_card, model_digest, model_folder
from stages.tensors import read_tensors


def export_half(model: Path, out: Path, stated: dict[str, str] | None = None) -> None:
    """Write the model folder `model` again as `out`, sealed, with every float32 tensor as float16.

    `stated` is what its card is to say besides: licence, training_data. Raises ModelError for what is no model folder.
    """
    card = model_card(model)
    about = card_facts(card) | (stated or {})
    with model_folder(out, card["kind"], about | {"half_of": model_digest(model)}) as folder:
        for name in card["files"]:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix == ".safetensors":
                _halve(model / name, target)
            else:
                shutil.copyfile(model / name, target)


def _halve(source: Path, target: Path) -> None:
    tensors = read_tensors(source)
    with safe_open(source, "pt") as file:
        about = file.metadata()
    halves = {name: t.half() if t.dtype == torch.float32 else t for name, t in tensors.items()}
    save_file(halves, target, metadata=about)
