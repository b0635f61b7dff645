"""Training states on disk: written whole or not at all, checked by hash, pickle-free, and named by identity."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from stages.errors import ModelError
from stages.params import Params
from stages.store import atomic_folder, sha256, write_json
from stages.tensors import fit, load_file, read_tensors
from stages.training.state import State
from stages.versions import VERSIONS

SCHEMA = 1
INDEX = "checkpoint.json"
OPTIMIZERS = "optimizers.pt"
IDENTITY = "identity.json"
# What may change between stop and resume without making it another training.
FREE_KEYS = ("steps", "valid_every", "valid_batches", "checkpoint_every", "keep_last", "max_bad_steps",
             "workers", "samples")  # fmt: skip
_DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ModelError)


@dataclass(frozen=True)
class Position:
    """Where a training stands: steps done, bad steps in a row, and the best validation so far."""

    step: int = 0
    bad_steps: int = 0
    best_step: int | None = None
    best_loss: float | None = None


class DamagedError(Exception):
    """A checkpoint's files are not what its index says."""


def training_identity(params: Params, network: str, *sections: str, **data: str) -> dict[str, str]:
    """What makes a training the same one: every parameter of its sections, key by key, its data's digests, and the
    revision of its results.

    With a cosine schedule the number of steps belongs to it, else a longer training goes on from a shorter. A model to
    start from counts by its digest in `data` (init_from, text_init), not by where it lies.
    """
    identity: dict[str, str] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                add(f"{prefix}.{key}", below)
        else:
            identity[prefix] = json.dumps(value)

    for section in (network, *sections):
        add(section, params.model_dump(mode="json")[section])
    schedule = identity.get(f"{network}.train.schedule")
    for key in FREE_KEYS:
        if key != "steps" or schedule != '"cosine"':
            identity.pop(f"{network}.train.{key}", None)
    if schedule != '"exponential"':
        identity.pop(f"{network}.train.lr_decay", None)
    for key in data:
        identity.pop(f"{network}.{key}", None)
    return identity | data | {f"{network}.version": str(VERSIONS[network])}


def save(run: Path, state: State, position: Position, identity: dict[str, str]) -> Path:
    """Write `run`/step-XXXXXXXX; `state` must hold unwrapped modules. Returns the folder."""
    folder = run / f"step-{position.step:08d}"
    with atomic_folder(folder) as temporary:
        for name, module in _networks(state).items():
            save_model(module, str(temporary / f"{name}.safetensors"))
        torch.save(
            {
                "optimizers": {name: optimizer.state_dict() for name, optimizer in state.optimizers.items()},
                "schedulers": {name: scheduler.state_dict() for name, scheduler in state.schedulers.items()},
                "uses": dict(state.uses),
            },
            temporary / OPTIMIZERS,
        )
        files = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
        index = {"schema": SCHEMA, **vars(position), "identity": identity, "files": files}
        write_json(temporary / INDEX, index)
    return folder


def load(folder: Path, state: State) -> Position:
    """Fill `state` in place from a checkpoint. Raises DamagedError, with `state` possibly half filled."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        for name, wanted in index["files"].items():
            if sha256(folder / name) != wanted:
                raise DamagedError(f"{name} was altered")
        saved = load_file(folder / OPTIMIZERS)
        for name, module in _networks(state).items():
            load_model(module, str(folder / f"{name}.safetensors"), strict=True)
        for name, optimizer in state.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][name])
        for name, scheduler in state.schedulers.items():
            scheduler.load_state_dict(saved["schedulers"][name])
        state.uses.clear()
        state.uses.update(saved.get("uses", {}))  # checkpoints from before they were counted have none
        return Position(*(index[key] for key in Position.__dataclass_fields__))
    except _DAMAGE as error:
        raise DamagedError(" ".join(str(error).split())[:200]) from error


def load_latest(run: Path, state: State, steps: int, warn: Callable[[str], None]) -> Position | None:
    """Load the newest whole checkpoint of at most `steps` steps; None when there is none at all.

    A damaged one is told through `warn` and the one before it is tried. Raises ModelError when
    every one is damaged.
    """
    folders = [folder for folder in steps_on_disk(run) if step_of(folder) <= steps]
    for folder in reversed(folders):
        try:
            return load(folder, state)
        except DamagedError as error:
            warn(f"The checkpoint {folder} is damaged ({error}); trying the one before it.")
    if folders:
        raise ModelError(f"Every checkpoint in {run} is damaged.", "Start the training anew with --no-resume.")
    return None


def load_weights(module: nn.Module, file: Path, remedy: str) -> None:
    """Fill `module` from a safetensors file, names and shapes as they are. Raises ModelError.

    A module made on the device "meta" gets the file's own memory, mapped and read when it is first used: nothing is
    initialised in vain, and nothing copied; but for what is stored in half precision, which becomes float32.
    """
    mapped = any(parameter.is_meta for parameter in module.parameters())
    fit(module, read_tensors(file, remedy), file, remedy, assign=mapped)


def steps_on_disk(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    return sorted(folder for folder in run.glob("step-*") if folder.is_dir())


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def prune(run: Path, keep_last: int, best_step: int | None) -> None:
    """Delete all but the last `keep_last` checkpoints and the best one."""
    for folder in steps_on_disk(run)[:-keep_last]:
        if step_of(folder) != best_step:
            shutil.rmtree(folder)


def digest(identity: dict[str, str]) -> str:
    """Twelve hex digits that name a run's folder."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def differences(root: Path, identity: dict[str, str]) -> str | None:
    """What the other run below `root` that is nearest to `identity` has differently; None when there is none."""
    others = []
    for file in sorted(root.glob(f"*/{IDENTITY}")):
        other = json.loads(file.read_text(encoding="utf-8"))
        keys = sorted(key for key in other.keys() | identity.keys() if other.get(key) != identity.get(key))
        others.append([f"{key} was {other.get(key)}, now {identity.get(key)}" for key in keys])
    nearest = min((found for found in others if found), key=len, default=None)
    return None if nearest is None else "; ".join(nearest[:5]) + ("; ..." if len(nearest) > 5 else "")


def _networks(state: State) -> dict[str, nn.Module]:
    return state.modules if state.ema is None else {**state.modules, "ema": state.ema}
