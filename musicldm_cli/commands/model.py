"""`musicldm model`: what a trained model is, and whether it is whole."""

from pathlib import Path
from typing import Annotated

import typer

from musicldm_cli.session import session

app = typer.Typer(no_args_is_help=True, help="Look into and check trained models.")

Folder = Annotated[Path, typer.Argument(help="A model folder, e.g. work/models/ldm.")]


@app.command("list")
def list_models(
    context: typer.Context,
    folder: Annotated[Path | None, typer.Argument(help="Where to look; default the work folder's models.")] = None,
) -> None:
    """List the trained models below a folder."""
    from stages.store import CARD, model_card

    found = session(context)
    root = folder or found.layout.models
    cards = {path.parent: model_card(path.parent) for path in sorted(root.glob(f"*/{CARD}"))}
    lines = [f"{path!s:40}  {card['kind']:8}  {card.get('preset', '?')}" for path, card in cards.items()]
    models = [{"path": str(path), "kind": card["kind"], "preset": card.get("preset")} for path, card in cards.items()]
    found.output.result("\n".join(lines) or f"There is no model below {root}.", list(cards), models=models)


@app.command()
def info(context: typer.Context, folder: Folder) -> None:
    """Sizes, preset, digests, training and data of a model."""
    from stages.store import model_card, model_digest

    card = model_card(folder)
    size = sum(file["bytes"] for file in card["files"].values())
    summary = {key: value for key, value in card.items() if key not in ("files", "params")}
    summary |= {"digest": model_digest(folder), "megabytes": round(size / 1e6, 2)}
    lines = [f"{key:16} {value}" for key, value in summary.items()]
    lines += [f"  {file['bytes'] / 1e6:9.3f} MB  {name}" for name, file in card["files"].items()]
    session(context).output.result("\n".join(lines), [folder], **summary)


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
