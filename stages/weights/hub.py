"""A model by its name on the Hugging Face hub: fetched and imported once, a folder like any other from then on."""

import re
from pathlib import Path

from stages.errors import ModelError
from stages.store import CARD, model_card, refuse_existing

HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
WANTED = ["*.json", "*.safetensors", "*.txt", "README.md", "LICENSE*"]  # no pickles, no code


def resolve_model(source: str, models: Path) -> tuple[Path, str | None]:
    """The sealed folder of `source`, a folder or hub id, and what to tell people at its first use.

    What comes from the hub is imported into `models`, where it is found the next time without a network.
    Raises ModelError.
    """
    folder = Path(source)
    if (folder / CARD).is_file() or not HUB_ID.fullmatch(source):
        return _folder(folder), None
    if folder.is_dir():
        return _folder(folder), None
    kept = models / source.replace("/", "--")
    if (kept / CARD).is_file():
        return kept, None
    return kept, import_from_hub(source, kept)


def import_from_hub(name: str, out: Path) -> str:
    """Fetch a MusicLDMPipeline repository and write it as the model folder `out`; returns a sentence on its licence."""
    from stages.weights.diffusers_folder import import_diffusers, licence_of

    refuse_existing(out)
    snapshot = fetch(name)
    licence = licence_of(snapshot)
    about = {"imported_from": [{"hub": name, "revision": snapshot.name}], "licence": licence,
             "training_data": f"see https://huggingface.co/{name}"}  # fmt: skip
    remarks: list[str] = []
    import_diffusers(snapshot, out, about, remarks.append)
    stated = f"has the licence {licence}" if licence else "states no licence"
    return " ".join([f"{name} {stated}; see https://huggingface.co/{name}. It is kept in {out}.", *remarks])


def fetch(name: str) -> Path:
    """The repository's configs and .safetensors files in the hub's own cache. Raises ModelError."""
    from stages import pretrained

    return pretrained.fetch(name, WANTED, "Check the name and the connection, or name a folder instead.")


def _folder(folder: Path) -> Path:
    if not (folder / CARD).is_file() and (folder / "model_index.json").is_file():
        raise ModelError(
            f"{folder} is a diffusers folder that was not imported yet.", f"musicldm model import diffusers {folder}"
        )
    model_card(folder, "ldm")
    return folder
