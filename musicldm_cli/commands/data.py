"""`musicldm data`."""

import typer

app = typer.Typer(no_args_is_help=True, help="Find and fetch music to train on.")


@app.callback()
def group() -> None:
    """Keep this a group even while it has one command."""
