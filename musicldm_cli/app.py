"""The command tree, and the one table from our errors to exit codes."""

import os
import signal
import sys
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from musicldm_cli.commands import data, doctor, evaluate, generate, init, model, params, prep, studio, train
from musicldm_cli.output import Mode, Output
from musicldm_cli.session import Session
from stages import errors
from stages.layout import Layout

EXIT_CODES: dict[type[errors.MusicldmError], int] = {
    errors.UsageError: 2,
    errors.ParamsError: 3,
    errors.DataError: 4,
    errors.ModelError: 5,
    errors.MissingDependencyError: 6,
    errors.GateError: 7,
    errors.Interrupted: 130,
}
GLOBAL = ("as_json", "quiet", "params_file", "work")  # parameters of `options` that every command takes


class _OptionsAnywhere(TyperGroup):
    """Its own options are taken behind a command's name, too: every command below gets copies of them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        shared: list[Any] = [copy(option) for option in self.params if option.name in GLOBAL]
        for option in shared:
            option.callback, option.expose_value, option.rich_help_panel = _given_late, False, "Global options"
        for command in _below(self):
            command.params += shared


def _below(group: Any) -> Iterator[Any]:
    for command in group.commands.values():
        yield command
        if isinstance(command, TyperGroup):
            yield from _below(command)


def _given_late(context: Any, option: Any, value: Any) -> None:
    """Have the session made again, with what was typed behind the command."""
    if context.get_parameter_source(option.name).name == "COMMANDLINE":
        root = context.find_root()
        root.params[option.name] = value
        root.command.callback(**root.params)  # which sets the obj of this, the current context


app = typer.Typer(
    name="musicldm",
    cls=_OptionsAnywhere,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a folder of captioned music to a trained, audited text-to-music model.",
    epilog="Exit codes: 0 done, 2 usage, 3 params, 4 data, 5 model, 6 missing package, 7 a gate failed, "
    "130 interrupted.",
)
app.command("init")(init.init)
app.add_typer(data.app, name="data")
app.add_typer(prep.app, name="prep")
app.add_typer(train.app, name="train")
app.command("generate")(generate.generate)
app.add_typer(evaluate.app, name="eval")
app.command("studio")(studio.studio)
app.add_typer(model.app, name="model")
app.add_typer(params.app, name="params")
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"musicldm {version('musicldm')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the paths written.")] = False,
    params_file: Annotated[
        Path | None, typer.Option("--params", metavar="FILE", help="Parameters; ./params.yaml if there is one.")
    ] = None,
    work: Annotated[Path, typer.Option(metavar="DIR", help="Folder of all intermediate results.")] = Path("work"),
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if as_json and quiet:
        raise errors.UsageError("--json and --quiet exclude each other.")
    mode: Mode = "json" if as_json else "quiet" if quiet else "human"
    context.obj = Session(Output(mode), Layout(work), params_file)


def main() -> NoReturn:
    """Run the command line; every exit of the program is here."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        words = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
        code = _run(Output("json" if "--json" in words else "human"))
    except BrokenPipeError:  # the reader of our stdout went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    finally:
        signal.signal(signal.SIGTERM, before)
    raise SystemExit(code)


def _run(output: Output) -> int:
    """The exit code of the command line; what went wrong is told on `output`."""
    try:
        code = app(standalone_mode=False)
        if code == EXIT_CODES[errors.Interrupted]:  # typer turns Ctrl-C into this
            raise KeyboardInterrupt
    except errors.MusicldmError as error:
        code = exit_code(error)
        output.error(error, code)
    except typer.TyperException as error:  # the command line itself was wrong
        code = getattr(error, "exit_code", 2)
        context = getattr(error, "ctx", None)
        name = context.command_path if context is not None else "musicldm"
        message = error.format_message()
        if message:  # a group called without a command has shown its help already
            output.error(errors.UsageError(message, f"Help: {name} --help"), code)
    except KeyboardInterrupt:
        code = 130
        output.error(errors.Interrupted("Interrupted.", "The same command goes on where it stopped."), code)
    return code if isinstance(code, int) else 0


def exit_code(error: errors.MusicldmError) -> int:
    """The exit code of an error's nearest listed class."""
    return next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), 1)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
