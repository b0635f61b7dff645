"""`musicldm prep`."""

import typer

app = typer.Typer(no_args_is_help=True, help="Prepare a collection: manifest, resample, beats, captions, shards, latents.")


@app.callback()
def group() -> None:
    """Keep this a group even while it has one command."""
