"""`musicldm studio`: make and hear clips in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from musicldm_cli.session import session


def studio(
    context: typer.Context,
    models: Annotated[
        list[Path] | None,
        typer.Option(
            "--model",
            metavar="DIR",
            help="A trained pipeline, or a folder of them; default work/models and the shipped one.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where clips are kept; default work/studio.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than 127.0.0.1 let strangers in.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    override: Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Change one parameter.")] = None,
) -> None:
    """Serve the studio: prompt, player, pictures, and the nearest training clips. Ctrl-C ends it.

    Where work/shards is, every clip is shown beside the training clips it is most like.
    """
    from stages.web.server import check_installed, serve

    check_installed()
    from stages.generate.choose import open_model
    from stages.store import disk_errors
    from stages.web.studio import studio_app
    from stages.web.studio_queue import StudioQueue, find_models
    from stages.weights.shipped import SHIPPED

    found = session(context)
    folder = out or found.layout.studio
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    known = find_models(models or [usual for usual in (found.layout.models, SHIPPED) if usual.is_dir()])
    project = found.project(override)
    first = open_model(next(iter(known.values())), project)  # the form begins with what it likes
    jobs = StudioQueue(known, folder, found.layout.shards, found.layout.metrics / "cache", project)
    app = studio_app(jobs, first.sampling, first.params.audio.clip_seconds, host)
    serve(app, host, port, folder / "studio.log", lambda at: found.output.say(f"Studio at {at} (Ctrl-C ends it)."))
    jobs.close()
    found.output.result(f"The clips are in {folder}.", [folder])
