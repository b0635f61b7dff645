"""`musicldm doctor`."""

import typer


def doctor(context: typer.Context) -> None:
    """Tell what this machine has, and what is missing with the command that mends it."""
