"""What every command gets from the options before its name: the sink, the parameters, the work folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from musicldm_cli.output import Output
from stages.errors import UsageError
from stages.layout import Layout

if TYPE_CHECKING:  # pydantic costs 0.2 s, which --help need not pay
    from stages.generate.choose import Project
    from stages.params import Params

DEFAULT_PARAMS = Path("params.yaml")
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Processes; default one each CPU.")]
Dask = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Work on this Dask cluster, e.g. tcp://host:8786; needs musicldm[dask]."),
]


@dataclass(frozen=True)
class Session:
    """The global options of one call."""

    output: Output
    layout: Layout
    params_file: Path | None = None

    def params(self, overrides: list[str] | None = None, preset: str | None = None) -> Params:
        """params.yaml (or the file of --params, or a preset by name) with `-S` overrides, checked whole.

        Without any params.yaml here the default preset holds.
        """
        from stages import params
        from stages.versions import check_versions

        if preset is not None:
            return params.resolve({"preset": preset}, overrides or [], origin=f"preset {preset}")
        if self.params_file is not None:
            return params.load(self.params_file, overrides or [])
        check_versions()
        if DEFAULT_PARAMS.exists():
            return params.load(DEFAULT_PARAMS, overrides or [])
        name = params.DEFAULT_PRESET
        return params.resolve({"preset": name}, overrides or [], origin=f"preset {name}")

    def project(self, overrides: list[str] | None = None) -> Project:
        """The parameters as `params` gives them, with where they come from."""
        from stages.generate.choose import Project

        written = self.params_file is not None or DEFAULT_PARAMS.exists()
        return Project(self.params(overrides), self.layout, overrides or [], written)


def session(context: typer.Context) -> Session:
    """The session of a running command."""
    found = context.obj
    if not isinstance(found, Session):
        raise UsageError("The command was called without its session.")
    return found
