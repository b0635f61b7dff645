"""`musicldm params`: read, write and check params.yaml."""

from pathlib import Path
from typing import Annotated

import typer

from musicldm_cli.session import session

app = typer.Typer(no_args_is_help=True, help="Show or check the parameters.")


@app.command()
def show(
    context: typer.Context,
    preset: Annotated[str | None, typer.Option(help="One of: paper, released, small, tiny.")] = None,
    override: Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Change one key.")] = None,
) -> None:
    """Print every parameter, as a params.yaml that can be saved and edited.

    `musicldm params show --preset paper > params.yaml` starts a project at the paper's sizes.
    """
    from stages.params import to_yaml

    found = session(context)
    params = found.params(override, preset)
    found.output.result(to_yaml(params).rstrip("\n"), [], params=params.model_dump(mode="json"))


@app.command()
def check(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The file to check.")] = Path("params.yaml"),
) -> None:
    """Check every key and every combination; all mistakes are listed at once (exit 3)."""
    from stages import params as parameters

    found = parameters.load(file)
    shape = " x ".join(map(str, found.latent_shape))
    session(context).output.result(
        f"{file} is valid: preset {found.preset}, latents {shape}, digest {found.digest()}.",
        [],
        preset=found.preset,
        latent_shape=found.latent_shape,
        digest=found.digest(),
    )
