"""`musicldm init`: a project folder, in which `dvc repro` leads from music to a report."""

import os
from pathlib import Path

from stages import params as parameters
from stages.data.catalog import ATTRIBUTION, copy_demo
from stages.errors import DataError
from stages.layout import packaged
from stages.progress import Progress, silent
from stages.store import write_text
from stages.versions import VERSIONS, VERSIONS_FILE, changed_stages, versions_text

PARAMS, GRAPH = "params.yaml", "dvc.yaml"
DEMO = "data/demo"
_IGNORED = "/work/\n/data/\n"
_DVC_CONFIG = "[core]\n    no_scm = True\n    analytics = false\n"
_DVC_IGNORED = "/config.local\n/tmp\n/cache\n"
_README = """# A musicldm project

    dvc repro                                   # from the music to work/report/report.html
    musicldm generate "dramatic trailer"        # with the model trained here

`params.yaml` holds every number that changes a result (`musicldm params check`). `dvc.yaml` is the graph: each command
is as you would type it. `dvc repro` runs what is out of date and nothing else; what was stopped goes on.
It needs `pip install 'musicldm[dvc]'`.
"""


def init_project(
    folder: Path,
    music: Path | None = None,
    captions: Path | None = None,
    preset: str = "small",
    overrides: list[str] | None = None,
    progress: Progress = silent,
) -> list[Path]:
    """Write params.yaml, dvc.yaml, versions.yaml, .gitignore, README.md and DVC's settings into `folder`.

    `music` is the collection and `captions` its table (None: found beside the music, or in tags); without `music`
    the demo music is copied into data/demo. Returns the files written. Raises DataError, with nothing written, when
    the folder holds one of them already or the music is not there; ParamsError for a wrong override.
    """
    names = (PARAMS, GRAPH, VERSIONS_FILE)
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise DataError(
            f"{folder / there[0]} is there already.",
            f"Choose another folder, or accept this version's results: musicldm init --update {folder}",
        )
    for path in (music, captions):
        if path is not None and not path.exists():
            raise DataError(f"{path} does not exist.", "Give the folder of your music: --music DIR")
    manifest: dict[str, str | None] = {"source": DEMO, "captions": f"{DEMO}/{ATTRIBUTION}"}
    if music is not None:
        manifest = {"source": _seen(folder, music), "captions": _seen(folder, captions), "limit": None}
    params = parameters.resolve({"preset": preset, "manifest": manifest}, overrides or [], origin=f"preset {preset}")
    if music is None:
        copy_demo(folder / DEMO, progress)
    files = {
        PARAMS: parameters.to_yaml(params),
        GRAPH: packaged(GRAPH).read_text(encoding="utf-8"),
        VERSIONS_FILE: versions_text(),
        "README.md": _README,
        ".gitignore": _IGNORED,
        ".dvc/config": _DVC_CONFIG,
        ".dvc/.gitignore": _DVC_IGNORED,
    }
    written = []
    for name, text in files.items():
        if not (folder / name).exists():  # a README or .gitignore of one's own stays
            write_text(folder / name, text)
            written.append(folder / name)
    return written


def update_project(folder: Path) -> list[str]:
    """Accept this musicldm's results in a project: rewrite versions.yaml. Returns the stages that DVC will run again.

    Raises DataError when `folder` is no project.
    """
    file = folder / VERSIONS_FILE
    if not (folder / GRAPH).is_file():
        raise DataError(f"{folder} has no {GRAPH}.", f"Begin a project: musicldm init {folder}")
    changed = changed_stages(file) if file.is_file() else list(VERSIONS)
    write_text(file, versions_text())
    return changed


def _seen(folder: Path, path: Path | None) -> str | None:
    """A path as the project's params.yaml names it: relative to `folder`, or absolute as it was given."""
    return None if path is None else str(path) if path.is_absolute() else os.path.relpath(path, folder)
