"""Published Beat Transformer checkpoints (`fold_k_trf_param.pt`) as model folders."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.beats.features import PUBLISHED
from stages.beats.model import Tracker, save_tracker
from stages.beats.transformer import BeatTransformer, Sizes
from stages.errors import ModelError
from stages.store import sha256

REMEDY = "Take checkpoint/fold_0_trf_param.pt ... fold_7_trf_param.pt of github.com/zhaojw1998/Beat-Transformer."


def import_beat_transformer(file: Path, out: Path) -> int:
    """Convert a published checkpoint, loaded strictly and without unpickling, to the folder `out`.

    Returns its number of parameters. Raises ModelError when it is not a Beat Transformer of the published sizes.
    """
    network = BeatTransformer(Sizes())
    state = _read(file)
    problems = _differences(state, network.state_dict())
    if problems:
        raise ModelError(f"{file} is not a published Beat Transformer: {'; '.join(problems[:5])}.", REMEDY)
    network.load_state_dict(state, strict=True)
    card = {"source": file.name, "source_sha256": sha256(file), "stems": Sizes().stems}
    save_tracker(Tracker(network.eval(), PUBLISHED, scaled=False), out, card, half=False)
    return sum(parameter.numel() for parameter in network.parameters())


def _read(file: Path) -> dict[str, Tensor]:
    try:
        saved: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"There is no {file}.", REMEDY) from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{file} cannot be read as weights: {reason}.", REMEDY) from error
    state = saved.get("state_dict") if isinstance(saved, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{file} holds no weights under the key state_dict.", REMEDY)
    return state


def _differences(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Names and shapes that differ; load_state_dict would take a shape of (1,) for () silently."""
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in wanted]
    return problems + [
        f"{name} has shape {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
