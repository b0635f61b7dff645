"""`musicldm model`: what a trained model is, whether it is whole, and its way in from and out to other programs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from musicldm_cli.commands import model_import
from musicldm_cli.session import session
from stages.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Look into, check, import and export trained models.")
app.add_typer(model_import.app, name="import")


def _named(text: str) -> Path:
    from stages.weights.shipped import NAME, SHIPPED

    return SHIPPED if text == NAME else Path(text)


Folder = Annotated[
    Path, typer.Argument(parser=_named, metavar="DIR|shipped", help="A model folder, e.g. work/models/ldm.")
]


class Layout(StrEnum):
    """Whose layout an export has."""

    DIFFUSERS = "diffusers"
    HALF = "half"


@app.command("list")
def list_models(
    context: typer.Context,
    folder: Annotated[Path | None, typer.Argument(help="Where to look; default the work folder's models.")] = None,
) -> None:
    """List the trained models below a folder."""
    from stages.store import CARD, model_card, model_digest

    found = session(context)
    root = folder or found.layout.models
    cards = {path.parent: model_card(path.parent) for path in sorted(root.glob(f"*/{CARD}"))}
    models = [
        {"path": str(path), "kind": card["kind"], "preset": card.get("preset"), "digest": model_digest(path),
         "megabytes": round(sum(file["bytes"] for file in card["files"].values()) / 1e6, 2)}
        for path, card in cards.items()
    ]  # fmt: skip
    lines = [
        f"{m['path']!s:40}  {m['kind']:8}  {m['preset'] or '?':8}  {m['megabytes']:9} MB  {m['digest']}" for m in models
    ]
    found.output.result("\n".join(lines) or f"There is no model below {root}.", list(cards), models=models)


@app.command()
def info(context: typer.Context, folder: Folder) -> None:
    """Sizes, preset, digests, training, data and licence of a model."""
    from stages.weights.describe import describe

    about = describe(folder)
    networks = about["networks"]
    lines = [f"{key:16} {_plain(value)}" for key, value in about.items() if key != "networks" and value is not None]
    lines += [
        f"  {name:16} {size['parameters'] / 1e6:9.3f} M parameters  {size['megabytes']:9} MB  {size['format']}"
        for name, size in networks.items()
    ]
    session(context).output.result("\n".join(lines), [folder], **about)


def _plain(value: Any) -> str:
    """What a card holds, in words: [{"file": "a.ckpt", "sha256": ...}] -> "file a.ckpt, sha256 ..."."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    if isinstance(value, list):
        return "; ".join(map(_plain, value)) if any(isinstance(each, dict) for each in value) else str(value)
    return str(value)


@app.command()
def verify(context: typer.Context, folder: Folder) -> None:
    """Hash every file of a model again and compare with its seal (exit 5 when anything differs)."""
    from stages.errors import ModelError
    from stages.store import model_card, model_digest, verify_model

    problems = verify_model(folder)
    if problems:
        raise ModelError(f"{folder} differs from its seal: {'; '.join(problems)}.", "Train, copy or import it again.")
    count = len(model_card(folder)["files"])
    session(context).output.result(f"{folder} is whole: {count} files as sealed.", [folder], files=count,
                                   digest=model_digest(folder))  # fmt: skip


@app.command()
def export(
    context: typer.Context,
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    to: Annotated[
        Layout, typer.Option(help="A folder for diffusers' MusicLDMPipeline, or our own in half precision.")
    ] = Layout.DIFFUSERS,
    licence: Annotated[str | None, typer.Option(help="Its terms, for the card of --to half.")] = None,
    training_data: Annotated[str | None, typer.Option(help="What it learned from, for the card of --to half.")] = None,
) -> None:
    """Write a model for diffusers, or at half its size."""
    from stages.store import refuse_existing

    given = {"licence": licence, "training_data": training_data}
    stated = {key: value for key, value in given.items() if value is not None}
    if stated and to is not Layout.HALF:
        raise UsageError("--licence and --training-data belong to --to half.")
    refuse_existing(out)
    if to is Layout.DIFFUSERS:
        from stages.weights.diffusers_folder import export_diffusers

        export_diffusers(folder, out)
        text = f"{out} loads with diffusers' MusicLDMPipeline; its README.md tells of the null condition."
    else:
        from stages.weights.half import export_half

        export_half(folder, out, stated)
        text = f"{out} is {folder} in half precision."
    session(context).output.result(text, [out])
