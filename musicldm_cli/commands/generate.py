"""`musicldm generate`."""

import typer


def generate(context: typer.Context) -> None:
    """Make music from text."""
