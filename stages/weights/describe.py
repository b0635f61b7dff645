"""What a model folder is, from its seal and the headers of its files, without loading it."""

import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from stages.beats.model import KIND as BEATS
from stages.errors import ModelError
from stages.store import model_card, model_digest, model_params

HIDDEN = ("files", "params", "schema")
UNKNOWN, OWN = "not known: ask its authors", "none stated: that of the training data and yours"


def describe(folder: Path) -> dict[str, Any]:
    """Kind, preset, digests, origin, training, licence, and the size of every network. Raises ModelError."""
    card = model_card(folder)
    about = {key: value for key, value in card.items() if key not in HIDDEN}
    return {
        **about,
        **({"few_steps": _few_steps(card["few_steps"])} if "few_steps" in card else {}),
        "digest": model_digest(folder),
        "training_data": card.get("training_data") or _training_data(card),
        "licence": card.get("licence") or (UNKNOWN if "imported_from" in card else OWN),
        **({} if card["kind"] == BEATS else _sound(folder)),
        "networks": networks(folder, card),
        "megabytes": round(sum(file["bytes"] for file in card["files"].values()) / 1e6, 2),
    }


def _few_steps(few: dict[str, Any]) -> dict[str, Any]:
    told = ("steps", "substeps", "guidance", "guidance_interval")
    return {key: few["params"][key] for key in told if key in few["params"]} | {"trained": few.get("steps")}


def _sound(folder: Path) -> dict[str, Any]:
    params = model_params(folder)
    clip = f"{params.audio.clip_seconds:g} s at {params.audio.sample_rate} Hz"
    return {"clip": clip, "latent_shape": list(params.latent_shape)}


def networks(folder: Path, card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Parameters, megabytes and number format of each .safetensors file, by the name of its folder."""
    found = {}
    for name, file in card["files"].items():
        path = folder / name
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(path, "pt") as tensors:
                slices = [tensors.get_slice(key) for key in tensors.keys()]  # noqa: SIM118  (no mapping)
                sizes = [math.prod(part.get_shape()) for part in slices]
                formats = sorted({part.get_dtype() for part in slices})
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be read: {error}.", f"Check it: musicldm model verify {folder}") from error
        found[path.parent.name if path.parent != folder else path.stem] = {
            "parameters": sum(sizes), "megabytes": round(file["bytes"] / 1e6, 2), "format": ", ".join(formats),
        }  # fmt: skip
    return found


def _training_data(card: dict[str, Any]) -> str:
    digest = card.get("data_digest")
    return f"shards with the digest {digest}" if digest else "unknown"
