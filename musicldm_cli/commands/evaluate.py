"""`musicldm eval`."""

import typer

app = typer.Typer(no_args_is_help=True, help="Measure quality, relevance and novelty.")


@app.callback()
def group() -> None:
    """Keep this a group even while it has one command."""
