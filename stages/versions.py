"""The revision of each stage's results.

Raise a stage's number when it gives other results than before for the same input, not for a refactoring or a message.
DVC reads the numbers from a project's `versions.yaml` and reruns the stages whose number has changed.
`tests/test_pipeline.py` fails where results moved and the number did not.
"""

from pathlib import Path

from stages.errors import ParamsError
from stages.params.yaml12 import read_yaml, write_yaml

VERSIONS_FILE = "versions.yaml"
_HEADING = "# Revision of each stage's results, for DVC; written by `musicldm init`, not by hand.\n"
VERSIONS = {
    "manifest": 1,
    "resample": 1,
    "beats": 1,
    "captions": 1,
    "shards": 1,
    "clap": 1,
    "vae": 1,
    "vocoder": 1,
    "latents": 1,
    "ldm": 1,
    "few_steps": 1,
    "generate": 1,
    "evaluate": 1,
    "report": 1,
}


def check_versions(folder: Path = Path()) -> None:
    """Raise ParamsError where the versions.yaml of a folder is another musicldm's; one without it is no project."""
    file = folder / VERSIONS_FILE
    changed = changed_stages(file) if file.is_file() else []
    if changed:
        raise ParamsError(
            f"{file} is another version's; this version gives other results in: {', '.join(changed)}.",
            "Accept them, and `dvc repro` runs these stages again: musicldm init --update .",
        )


def versions_text() -> str:
    """versions.yaml as this musicldm writes it."""
    return _HEADING + write_yaml(VERSIONS)


def changed_stages(file: Path) -> list[str]:
    """The stages whose number in a versions.yaml is not ours. Raises ParamsError."""
    try:
        recorded = read_yaml(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ParamsError(
            f"{file} cannot be read: {error}.", f"Delete it, then: musicldm init --update {file.parent}"
        ) from error
    known = recorded if isinstance(recorded, dict) else {}
    return [name for name, number in VERSIONS.items() if known.get(name) != number]
