"""`musicldm prep`."""

from pathlib import Path
from typing import Annotated

import typer

from musicldm_cli.session import session

app = typer.Typer(no_args_is_help=True, help="Prepare a collection: manifest, resample, beats, captions, shards, latents.")


@app.callback()
def group() -> None:
    """Keep this a group even while it has one command."""


@app.command()
def shards(
    context: typer.Context,
    audio: Annotated[Path | None, typer.Option(help="Folder of `prep resample`.")] = None,
    beats: Annotated[Path | None, typer.Option(help="Folder of `prep beats`.")] = None,
    captions: Annotated[Path | None, typer.Option(help="Folder of `prep captions`.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the shards go.")] = None,
    override: Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Change one key.")] = None,
) -> None:
    """Pack audio, beats and captions into checksummed HDF5 shards; those that did not change stay as they are."""
    found = session(context)
    params, layout = found.params(override), found.layout
    from stages.data.shards import write_shards

    out = out or layout.shards
    with found.output.progress() as progress:
        made = write_shards(
            (audio or layout.audio) / "manifest.csv",
            (beats or layout.beats) / "beats.jsonl",
            (captions or layout.captions) / "captions.jsonl",
            out,
            params,
            progress,
        )
    text = (
        f"{made['tracks']} tracks ({made['seconds'] / 3600:.2f} h, {made['bytes'] / 1e6:.1f} MB) are in "
        f"{made['shards']} shards of {out}, {made['written']} of them written now."
    )
    found.output.result(text, [out], **made)


@app.command()
def verify(
    context: typer.Context,
    folder: Annotated[Path | None, typer.Argument(help="A folder of shards; default the work folder's.")] = None,
) -> None:
    """Read every byte of the shards again and compare with their index (exit 4 when anything differs)."""
    from stages.data import shards as stored

    found = session(context)
    folder = folder or found.layout.shards
    with found.output.progress() as progress:
        counts = stored.verify(folder, progress)
    text = f"{folder} is whole: {counts['tracks']} tracks in {counts['shards']} shards, {counts['bytes'] / 1e6:.1f} MB."
    found.output.result(text, [folder], **counts)
