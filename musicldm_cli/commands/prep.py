"""`musicldm prep`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from musicldm_cli.session import Dask, Jobs, session
from stages.evaluate.wording import counted

if TYPE_CHECKING:
    from stages.data.collect import Catalogue

SHOWN, SHOWN_REASONS = 10, 3  # copies and kinds of rejections that the text lists
COLUMNS = 80

app = typer.Typer(
    no_args_is_help=True, help="Prepare a collection: manifest, resample, beats, captions, shards, latents."
)


@app.callback()
def group() -> None:
    """Keep this a group even while it has one command."""


@app.command()
def manifest(
    context: typer.Context,
    source: Annotated[Path | None, typer.Argument(metavar="DIR", help="The music; default manifest.source.")] = None,
    captions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV, TSV, JSON, JSONL or Parquet; default manifest.captions.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="OURS=THEIRS", help="A column's name in that file; repeatable.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail when any file is rejected.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the manifest goes.")] = None,
    jobs: Jobs = None,
    dask: Dask = None,
    override: Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Change one key.")] = None,
) -> None:
    """Catalogue a folder of captioned music, check every file, and split it by artist, else by album, else by track.

    Captions come from the file of --captions (columns path, caption, and if there are title, artist, album,
    licence, or usual names of these), else from a `song.txt` or `song.json` beside each file, else from its tags.
    """
    from stages.errors import UsageError

    columns = {}
    for pair in column or []:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise UsageError(f"--column {pair}: write it as OURS=THEIRS, e.g. --column caption=description.")
        columns[ours] = theirs
    found = session(context)
    settings = found.params(override).manifest
    if captions is None and settings.captions is not None:
        captions = Path(settings.captions)
    from stages.data.collect import make_manifest

    with found.output.progress() as progress:
        made = make_manifest(source or Path(settings.source), captions, out or found.layout.manifest, settings,
                             columns=columns, strict=strict, results=found.layout.work, jobs=jobs, dask=dask,
                             progress=progress)  # fmt: skip
    text = "\n".join(_manifest_lines(made, settings.limit))
    found.output.result(text, [made.folder / "manifest.csv"], **_manifest_figures(made))


def _manifest_figures(made: Catalogue) -> dict[str, Any]:
    return {
        "tracks": len(made.tracks),
        "hours": round(made.hours, 6),
        "splits": made.split_sizes,
        "split_by": made.division.by,
        "notes": made.notes,
        "rejected": len(made.rejected),
        "reasons": [{"count": count, **vars(first)} for count, first in made.reasons(SHOWN_REASONS)],
        "left_out": len(made.left_out),
        "rejected_file": made.folder / "rejected.csv",
        "duplicates": [vars(copy) for copy in made.duplicates],
    }


def _manifest_lines(made: Catalogue, limit: int | None) -> list[str]:
    sizes = ", ".join(f"{count} {split}" for split, count in made.split_sizes.items())
    tracks = counted(len(made.tracks), "track")
    lines = [f"{tracks} ({made.hours:.2f} h: {sizes}) are in {made.folder / 'manifest.csv'}."]
    lines += made.notes
    if made.left_out:
        lines.append(
            f"{len(made.left_out)} files are left out by manifest.limit={limit}; to use all: -S manifest.limit=null"
        )
    if made.rejected:
        lines.append(f"{len(made.rejected)} rejected, listed in {made.folder / 'rejected.csv'}:")
    lines = [textwrap.fill(line, COLUMNS, break_long_words=False, break_on_hyphens=False) for line in lines]
    for count, first in made.reasons(SHOWN_REASONS):
        more = f" (so are {count - 1} more)" if count > 1 else ""
        reason, room = f"{first.path}: {first.reason}", COLUMNS - 2 - len(more)
        lines.append(f"  {reason if len(reason) <= room else reason[: room - 4] + ' ...'}{more}")
    for copy in made.duplicates[:SHOWN]:
        lines.append(f"One recording ({copy.similarity:.2f} alike), kept in one split: {copy.path}, {copy.copy_of}")
    if len(made.duplicates) > SHOWN:
        lines.append(f"All {len(made.duplicates)} copies are listed in {made.folder / 'duplicates.csv'}.")
    return lines


@app.command()
def resample(
    context: typer.Context,
    manifest: Annotated[Path | None, typer.Argument(help="Default: manifest/manifest.csv of the work folder.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the audio goes.")] = None,
    jobs: Jobs = None,
    dask: Dask = None,
    override: Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Change one key.")] = None,
) -> None:
    """Bring every track to one rate, mono, zero mean and one peak; finished files are not done again."""
    found = session(context)
    settings = found.params(override).audio
    from stages.data.manifest import read_manifest
    from stages.data.resample import resample_collection

    collection = read_manifest(manifest or found.layout.manifest)
    with found.output.progress() as progress:
        made = resample_collection(collection, out or found.layout.audio, settings, jobs, progress, dask=dask)
    text = (
        f"{made.tracks} tracks ({made.seconds / 3600:.2f} h at {settings.sample_rate} Hz) are in {made.folder}: "
        f"{made.written} written, {made.kept} kept, {made.removed} removed."
    )
    found.output.result(text, [made.folder / "manifest.csv"], tracks=made.tracks, seconds=round(made.seconds, 3),
                        written=made.written, kept=made.kept, removed=made.removed)  # fmt: skip


@app.command()
def beats(
    context: typer.Context,
    manifest: Annotated[Path | None, typer.Argument(help="Default: manifest/manifest.csv of the work folder.")] = None,
    audio: Annotated[Path | None, typer.Option(metavar="FILE|DIR", help="Track these files, without manifest.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the results go.")] = None,
    jobs: Jobs = None,
    dask: Dask = None,
    device: Annotated[str, typer.Option(help="Where the network runs: cpu, cuda, cuda:1, mps.")] = "cpu",
    report: Annotated[bool, typer.Option("--report", help="Also write report.html.")] = False,
    listen: Annotated[str | None, typer.Option(metavar="ID", help="Only mix clicks over this tracked track.")] = None,
    override: Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Change one key.")] = None,
) -> None:
    """Track beats and downbeats, and group tracks by tempo; what was tracked before is kept.

    `--audio` writes one NAME.beats per file: seconds, a tab, the position in the bar. Other networks than the
    shipped Beat Transformer: -S beats.backend=madmom or beat-this, or -S beats.model=DIR.
    """
    from stages.errors import UsageError

    if audio is not None and (manifest is not None or report or listen is not None):
        raise UsageError("--audio goes without MANIFEST, --report and --listen.")
    found = session(context)
    params = found.params(override)
    from stages.beats import track

    out = out or (found.layout.beats if audio is None else found.layout.beats / "files")
    if listen is None and params.beats.backend in track.LICENCES:
        found.output.say(track.LICENCES[params.beats.backend])
    if audio is not None:
        with found.output.progress() as progress:
            paths = track.track_audio(audio, out, params.beats, jobs, progress, dask=dask, device=device)
        found.output.result(f"Beats of {len(paths)} files are in {out}.", paths, files=len(paths))
        return
    from stages.beats import report as reports
    from stages.data.manifest import read_manifest

    collection = read_manifest(manifest or found.layout.manifest / "manifest.csv")
    if listen is not None:
        written = reports.write_clicks_of(listen, collection, out)
        found.output.result(f"Listen to {written[0]}; {written[1]} shows the beats.", list(written))
        return
    with found.output.progress() as progress:
        rhythms = track.track_collection(collection, params, out, jobs, progress, dask=dask, device=device)
    paths = [out / track.BEATS]
    if report:
        paths.append(out / "report.html")
        reports.write_report(rhythms, collection, params, paths[-1])
    figures = reports.summarise(rhythms, collection, params)
    text = (
        f"{figures.tracked} of {figures.tracks} tracks have a tempo that can be trusted, in {figures.groups} groups; "
        f"{figures.share_with_partner:.1%} of the {figures.training_tracks} training tracks have a partner to be "
        "mixed with."
    )
    if figures.without_partner:
        text += f"\nWithout: {figures.without_partner}."
    if report:
        text += f"\nThe page: {paths[-1]}"
    found.output.result(text, paths, **vars(figures))


@app.command()
def captions(
    context: typer.Context,
    audio: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of `prep resample`.")] = None,
    beats: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of `prep beats`.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the captions go.")] = None,
    jobs: Jobs = None,
    dask: Dask = None,
    override: Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Change one key.")] = None,
) -> None:
    """Join each caption with words for what was measured: tempo, key, loudness, brightness, music tags.

    Measured words are often right, not always. -S captions.measured=false keeps the captions as they are.
    """
    found = session(context)
    settings, layout = found.params(override), found.layout
    from stages.data.captions import CAPTIONS, PROMPTS, write_captions

    out = out or layout.captions
    with found.output.progress() as progress:
        made = write_captions((audio or layout.audio) / "manifest.csv", (beats or layout.beats) / "beats.jsonl", out,
                              settings, jobs, progress, dask=dask)  # fmt: skip
    text = f"{made['tracks']} captions are in {out / CAPTIONS}, {made['prompts']} test prompts in {out / PROMPTS}."
    if not settings.captions.measured:
        text += "\nThey are your own; captions.measured: true adds words for what is measured of the sound."
    elif made["example"] is not None:
        text += (
            f"\n{made['words']} measured words were added, and some will be wrong; captions.measured: false adds none. "
            f"E.g. {made['example']['id']}:\n"
            f"  before: {made['example']['original']}\n  after:  {made['example']['caption']}"
        )
    found.output.result(text, [out / CAPTIONS, out / PROMPTS], **made)


@app.command()
def shards(
    context: typer.Context,
    audio: Annotated[Path | None, typer.Option(help="Folder of `prep resample`.")] = None,
    beats: Annotated[Path | None, typer.Option(help="Folder of `prep beats`.")] = None,
    captions: Annotated[Path | None, typer.Option(help="Folder of `prep captions`.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the shards go.")] = None,
    jobs: Jobs = None,
    dask: Dask = None,
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
            jobs=jobs,
            dask=dask,
        )
    text = (
        f"{made['tracks']} tracks ({made['seconds'] / 3600:.2f} h, {made['bytes'] / 1e6:.1f} MB) are in "
        f"{made['shards']} shards of {out}, {made['written']} of them written now."
    )
    found.output.result(text, [out], **made)


@app.command()
def latents(
    context: typer.Context,
    shards: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of `prep shards`.")] = None,
    vae: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of `train vae`.")] = None,
    clap: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of `train clap`.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the latents go.")] = None,
    override: Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Change one key.")] = None,
) -> None:
    """Encode windows on downbeats and on a grid by VAE and CLAP, for the diffusion model to train on.

    What was made of the same shard by the same models is kept, so a run that was stopped goes on.
    """
    found = session(context)
    params, layout = found.params(override), found.layout
    from stages.ldm.latents import prepare

    out = out or layout.latents
    with found.output.progress() as progress:
        made = prepare(params, shards or layout.shards, vae or layout.vae, clap or layout.clap, out, progress)
    text = (
        f"{made['windows']} windows ({made['bytes'] / 1e6:.1f} MB) are in {made['parts']} parts of {out}, "
        f"{made['written']} of them written now."
    )
    found.output.result(text, [out], **made)


@app.command()
def verify(
    context: typer.Context,
    folder: Annotated[Path | None, typer.Argument(help="A folder of shards; default the work folder's.")] = None,
    jobs: Jobs = None,
    dask: Dask = None,
) -> None:
    """Read every byte of the shards again and compare with their index (exit 4 when anything differs)."""
    from stages.data import shards as stored

    found = session(context)
    folder = folder or found.layout.shards
    with found.output.progress() as progress:
        counts = stored.verify(folder, progress, jobs=jobs, dask=dask)
    text = f"{folder} is whole: {counts['tracks']} tracks in {counts['shards']} shards, {counts['bytes'] / 1e6:.1f} MB."
    found.output.result(text, [folder], **counts)
