"""`musicldm init`: begin or update a project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from musicldm_cli.session import session
from stages.errors import UsageError


def init(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The project's folder; made if need be.")],
    music: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of your music; default: the demo music, copied.")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its caption table; default: beside the music, or in tags.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="paper, released, small or tiny; default tiny for the demo music, else small.")
    ] = None,
    override: Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Change one parameter.")] = None,
    update: Annotated[
        bool, typer.Option("--update", help="In a project: accept the results of this version of musicldm.")
    ] = False,
) -> None:
    """Write what `dvc repro` needs (params.yaml, dvc.yaml, versions.yaml) into a folder.

    Then: cd DIR && dvc repro, which needs `pip install 'musicldm[dvc]'`.
    """
    from stages.project import init_project, update_project

    found = session(context)
    if update:
        if music or captions or preset or override:
            raise UsageError("--update goes with no other option.", "Edit params.yaml instead.")
        changed = update_project(folder)
        text = f"`dvc repro` runs these stages again: {', '.join(changed)}." if changed else "All results are current."
        found.output.result(text, [folder], changed=changed)
        return
    chosen = preset or ("small" if music else "tiny")
    with found.output.progress() as progress:
        files = init_project(folder, music, captions, chosen, override, progress)
    listed = "\n".join(f"  {file}" for file in files)
    found.output.result(f"{listed}\nNext: cd {folder} && dvc repro", files, preset=chosen)
