"""`musicldm train`."""

import typer

app = typer.Typer(no_args_is_help=True, help="Train one of the networks.")


@app.callback()
def group() -> None:
    """Keep this a group even while it has one command."""
