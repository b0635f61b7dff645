"""`musicldm data`: music to train on, and whether it is whole."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from musicldm_cli.session import Dask, Jobs, Session, session

app = typer.Typer(no_args_is_help=True, help="Find, fetch and check music to train on.")


class Recipe(StrEnum):
    """The collections that can be fetched."""

    DEBIAN_GAMES = "debian-games"
    SCORE_BEATS = "score-beats"


class PublicSet(StrEnum):
    """The sets whose own metadata can be read."""

    FMA = "fma"
    MTG_JAMENDO = "mtg-jamendo"
    MUSICCAPS = "musiccaps"
    SONG_DESCRIBER = "song-describer"
    GTZAN = "gtzan"
    ESC_50 = "esc-50"


class Licence(StrEnum):
    """Which licences will do."""

    CC = "cc"
    FREE = "free"


@app.command()
def demo(
    context: typer.Context,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="Where the music goes.")] = Path("data/demo"),
) -> None:
    """Copy the embedded music (108 excerpts of game music) with its attribution and licences."""
    from stages.data.catalog import ATTRIBUTION, copy_demo

    found = session(context)
    with found.output.progress() as progress:
        paths = copy_demo(destination, progress)
    audio = sum(path.suffix == ".ogg" for path in paths)
    text = f"{audio} tracks are in {destination}; {destination / ATTRIBUTION} names their authors and licences."
    found.output.result(text, [destination], tracks=audio)


@app.command("list")
def list_collections(context: typer.Context) -> None:
    """Tell which music can be had, and under which licences."""
    from stages.data.catalog import COLLECTIONS

    lines = [
        f"{item.name}: {f'{item.hours:g} h, ' if item.hours else ''}{item.licence}\n  {item.what}\n  {item.command}"
        for item in COLLECTIONS
    ]
    session(context).output.result("\n".join(lines), [], collections=[vars(item) for item in COLLECTIONS])


@app.command()
def fetch(
    context: typer.Context,
    name: Annotated[Recipe, typer.Argument(help="What to fetch.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="Where the music goes.")],
    licence: Annotated[
        Licence, typer.Option(help="cc: Creative Commons and public domain; free: GPL as well.")
    ] = Licence.CC,
    hours: Annotated[float | None, typer.Option(min=0.01, help="Stop at this much; default all.")] = None,
    pieces: Annotated[int, typer.Option(min=1, help="score-beats: how many, of up to a minute each.")] = 600,
    seed: Annotated[int, typer.Option(help="score-beats: of all that is drawn.")] = 0,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="score-beats: processes.")] = None,
) -> None:
    """Download a collection with its attribution, ready for `musicldm prep manifest DEST`.

    score-beats: scores and grooves rendered with exactly known beats, for `musicldm train beats DEST`.
    """
    found = session(context)
    if name is Recipe.SCORE_BEATS:
        _score_beats(found, destination, pieces, seed, jobs)
        return
    from stages.data import debian_games

    with found.output.progress() as progress:
        made = debian_games.fetch(destination, licence.value, hours, progress)
    length = sum(row.seconds for row in made.tracks) / 3600
    text = f"{len(made.tracks)} tracks ({length:.2f} h) of {name.value} are in {made.folder}."
    if made.missing:
        text += f"\nThe packages of this release lack {len(made.missing)}: {', '.join(r.source for r in made.missing)}"
    found.output.result(text, [made.folder / debian_games.ATTRIBUTION], tracks=len(made.tracks),
                        hours=round(length, 3), missing=[row.source for row in made.missing])  # fmt: skip


def _score_beats(found: Session, destination: Path, pieces: int, seed: int, jobs: int | None) -> None:
    from stages.data.score_beats import collection

    with found.output.progress() as progress:
        made = collection.fetch(destination, pieces, seed, jobs, progress)
    length = sum(piece.seconds for piece in made) / 3600
    text = f"{len(made)} pieces ({length:.2f} h) with their beats are in {destination}."
    if len(made) < pieces:
        text += f" {pieces - len(made)} more were drawn whose score has no bars to trust."
    found.output.result(text, [destination / collection.INDEX], pieces=len(made), hours=round(length, 3))


@app.command()
def convert(
    context: typer.Context,
    name: Annotated[PublicSet, typer.Argument(metavar="SET", help=", ".join(PublicSet))],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the set's audio and metadata lie.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The table; default DIR/attribution.csv.")] = None,
) -> None:
    """Write the caption table of a public set that is on your disk, from its own metadata files.

    Those are: fma tracks.csv; mtg-jamendo autotagging.tsv and raw.meta.tsv; musiccaps musiccaps-public.csv;
    song-describer song_describer.csv; gtzan the folders' names; esc-50 esc50.csv. Then: musicldm prep manifest DIR
    """
    from stages.data import public_sets

    made = public_sets.convert(name.value, folder, out)
    text = f"{made.tracks} tracks of {name.value} are in {made.path}."
    if made.missing:
        text += f" {made.missing} more are listed by the set, and have no file below {folder}."
    text += f"\nGo on with: musicldm prep manifest {folder}" + (f" --captions {out}" if out else "")
    session(context).output.result(text, [made.path], tracks=made.tracks, missing=made.missing)


@app.command()
def check(
    context: typer.Context,
    manifest: Annotated[Path | None, typer.Argument(help="Default: manifest/manifest.csv of the work folder.")] = None,
    jobs: Jobs = None,
    dask: Dask = None,
) -> None:
    """Decode every file of a manifest and compare it with its row (exit 4 when anything differs)."""
    from stages.data.catalog import check_manifest
    from stages.errors import DataError

    found = session(context)
    manifest = manifest or found.layout.manifest
    with found.output.progress() as progress:
        count, problems = check_manifest(manifest, jobs, progress, dask=dask)
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise DataError(f"{len(problems)} problem(s) in {manifest}:\n{lines}", "Run: musicldm prep manifest")
    found.output.result(f"All {count} files of {manifest} are whole and as listed.", [manifest], tracks=count)
