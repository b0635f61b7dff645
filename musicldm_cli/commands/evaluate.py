"""`musicldm eval`: measure generated clips, and show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from musicldm_cli.commands import listen
from musicldm_cli.session import Session, session

if TYPE_CHECKING:
    pass

app = typer.Typer(no_args_is_help=True, help="Measure quality, relevance and novelty.")
app.add_typer(listen.app, name="listen")

Generated = Annotated[Path | None, typer.Argument(metavar="[GEN]", help="Folder of clips; default work/generated.")]
Override = Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Change one parameter.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Default: a folder below work/metrics.")]
ClapFolder = Annotated[
    Path | None,
    typer.Option("--clap", metavar="DIR", help="CLAP to measure with; default work/models/clap, else work/models/ldm."),
]


@app.callback()
def group() -> None:
    """Measure quality, relevance and novelty."""


@app.command()
def quality(
    context: typer.Context,
    generated: Generated = None,
    reference: Annotated[
        Path | None,
        typer.Argument(metavar="[REF]", help="Folder of real clips; default the test split of work/shards."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Of cnn14-* and vggish: a file or owner/name:file; of mert: a folder or id."),
    ] = None,
    clap: ClapFolder = None,
    out: Out = None,
    override: Override = None,
) -> None:
    """FD, KID, IS, KL, density and coverage of generated clips against real ones, with 95% intervals.

    The network is evaluate.backbone of params.yaml: musicnn (music tags, 200-d; needs no file), clap,
    cnn14-16k or cnn14-32k (FD, IS, KL as in the paper), vggish (its FD is FAD), or mert.
    """
    from stages.evaluate import run

    found = session(context)
    override = [*(override or []), *([] if weights is None else [f"evaluate.weights={json.dumps(weights)}"])]
    params, folder = found.params(override), out or found.layout.metrics / "quality"
    with found.output.progress() as progress:
        result = run.quality(
            generated or found.layout.generated, reference, found.layout.shards, _clap(found, clap), params, folder,
            found.layout.metrics / "cache", progress,
        )  # fmt: skip
    keys = ("fd", "fd_infinity", "kid", "density", "coverage", "is_softmax", "is_one_split", "kl_softmax", "kl_sigmoid")
    lines = [_line(key, result[key]) for key in keys if result[key] is not None]
    lines.append(f"backbone {result['backbone']}; {result['n_generated']} generated, {result['n_reference']} real")
    _show(found, lines, [folder / run.METRICS], result)


@app.command()
def relevance(
    context: typer.Context, generated: Generated = None, clap: ClapFolder = None, out: Out = None,
    override: Override = None,
) -> None:  # fmt: skip
    """CLAP similarity of every clip with its prompt, beside the test set's own and the best training clip's."""
    from stages.evaluate import run

    found = session(context)
    params, folder = found.params(override), out or found.layout.metrics / "relevance"
    with found.output.progress() as progress:
        result = run.relevance(
            generated or found.layout.generated, found.layout.shards, _clap(found, clap), params, folder,
            found.layout.metrics / "cache", progress,
        )  # fmt: skip
    keys = ("text_audio_similarity", "test_set_reference", "retrieval_max_reference")
    lines = [_line(key, result[key]) for key in keys if result[key] is not None]
    _show(found, lines, [folder / run.METRICS, folder / "prompts.csv"], result)


@app.command()
def novelty(
    context: typer.Context,
    generated: Generated = None,
    index: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Index of `eval index`; default that of work/shards.")
    ] = None,
    fail_over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHARE@SIM",
            help="Exit 7 when more than SHARE have a training clip this near; mel:SHARE@SIM by log-mel similarity.",
        ),
    ] = None,
    clap: ClapFolder = None,
    out: Out = None,
    override: Override = None,
) -> None:
    """The nearest training music of every clip, by CLAP and by spectrogram, and the share that is too near."""
    from stages.evaluate import run
    from stages.evaluate.novelty import parse_gate

    found = session(context)
    gates = [parse_gate(text) for text in fail_over or []]
    params, folder = found.params(override), out or found.layout.metrics / "novelty"
    with found.output.progress() as progress:
        result = run.novelty(
            generated or found.layout.generated, found.layout.shards, index, _clap(found, clap), params, folder,
            found.layout.metrics / "cache", gates, progress,
        )  # fmt: skip
    lines = []
    for row in ("generated", "held_out"):
        lines += [_line(f"{row} {key}", value) for key, value in (result[row] or {}).items()]
    _show(found, lines, [folder / run.METRICS, folder / "nearest.csv"], result)


@app.command()
def index(
    context: typer.Context,
    source: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Shards, or a folder of audio; default work/shards.")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Keep vectors in 16 bits: half the size, similarity to 1e-3.")
    ] = False,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Also list what the training set holds twice.")
    ] = False,
    clap: ClapFolder = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: where `eval novelty` looks.")] = None,
    override: Override = None,
) -> None:
    """Embed the training set once, for `eval novelty` and `eval relevance`; goes on where it was interrupted."""
    from stages.evaluate import run

    found = session(context)
    params, cache = found.params(override), found.layout.metrics / "cache"
    with found.output.progress() as progress:
        path, figures = run.index_training(
            source or found.layout.shards, _clap(found, clap), params, out, cache,
            "float16" if half else "float32", duplicates, progress,
        )  # fmt: skip
    lines = [f"{path}: {figures['n_windows']} windows of {figures['n_tracks']} tracks, {figures['bytes'] / 1e6:.1f} MB"]
    lines += [_line(key, value) for key, value in figures.items() if key.startswith("duplicates")]
    found.output.result("\n".join(lines), [path], **figures)


@app.command()
def planted(
    context: typer.Context,
    others: Annotated[
        Path | None, typer.Option(metavar="DIR", help="More music that was not trained on, beside valid and test.")
    ] = None,
    count: Annotated[int, typer.Option(min=2, help="Copies of each kind.")] = 100,
    clap: ClapFolder = None,
    out: Out = None,
    override: Override = None,
) -> None:
    """Test the novelty audit itself: hide disguised training excerpts among other music, count those it finds."""
    from stages.evaluate import run

    found = session(context)
    params, folder = found.params(override), out or found.layout.metrics / "planted"
    with found.output.progress() as progress:
        result = run.planted(
            found.layout.shards, others, _clap(found, clap), params, folder, found.layout.metrics / "cache", count,
            progress,
        )  # fmt: skip
    lines = [f"recall at 1% false alarms of {result['n_innocent']} innocent clips; clap: {result['backbone']}"]
    for measure in ("clap", "mel"):
        rows = result[measure]
        lines.append(f"{measure}: alarm above {rows['alarm_level']:.4f}")
        lines += [_line(f"  {key}", value) for key, value in rows.items() if key.startswith("recall")]
    _show(found, lines, [folder / run.METRICS, folder / "planted.csv"], result)


@app.command()
def zeroshot(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="ESC-50, UrbanSound8K, VGGSound or GTZAN.")],
    benchmark: Annotated[
        Literal["esc50", "urbansound8k", "vggsound", "gtzan"] | None,
        typer.Option(help="Which layout DIR has; default by its files."),
    ] = None,
    clap: ClapFolder = None,
    out: Out = None,
    override: Override = None,
) -> None:
    """Accuracy and mAP@10 of CLAP as a classifier that was told only the names of the classes (table 3)."""
    from stages.evaluate import run

    found = session(context)
    target = out or found.layout.metrics / "zeroshot"
    with found.output.progress() as progress:
        result = run.zeroshot(folder, benchmark, _clap(found, clap), found.params(override), target, progress)
    lines = [f"{result['benchmark']}, {result['n_classes']} classes, {result['backbone']}"]
    lines += [_line(key, result[key]) for key in ("accuracy", "map@10")]
    lines += [f"fold {name:26} {value:9.4f}" for name, value in result.get("fold_accuracy", {}).items()]
    _show(found, lines, [target / run.METRICS, target / "clips.csv"], result)


@app.command()
def retrieve(
    context: typer.Context,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV (id,prompt); default work/captions/prompts.csv.")
    ] = None,
    clap: ClapFolder = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: work/retrieved.")] = None,
    override: Override = None,
) -> None:
    """The baseline that makes nothing: the training clip nearest to each prompt, to be measured like the others."""
    from stages.evaluate import run

    found = session(context)
    folder = out or found.layout.work / "retrieved"
    with found.output.progress() as progress:
        count = run.retrieval(
            prompts or found.layout.captions / "prompts.csv", found.layout.shards, _clap(found, clap),
            found.params(override), folder, found.layout.metrics / "cache", progress,
        )  # fmt: skip
    found.output.result(f"{folder}: {count} clips.", [folder], clips=count)


@app.command()
def table(
    context: typer.Context,
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder of runs, each with its metrics.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: work/table.")] = None,
) -> None:
    """Tables 1 and 2 of several runs as Markdown, CSV and LaTeX, the paper's rows beside, marked as theirs.

    RUNS holds a folder `<variant>-<seed>` for each run, with quality/, relevance/ and novelty/ inside. Variants
    are compared prompt by prompt (Wilcoxon, Holm's correction) in significance.csv.
    """
    from stages.evaluate.table import write_tables

    found = session(context)
    folder = out or found.layout.work / "table"
    result = write_tables(runs, folder)
    text = "\n".join((folder / f"table{n}.md").read_text(encoding="utf-8") for n in (1, 2))
    found.output.result(f"{text}\n{folder}", sorted(folder.iterdir()), **result)


@app.command()
def report(
    context: typer.Context,
    generated: Generated = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: work/report/report.html.")] = None,
    clips: Annotated[int, typer.Option(min=1, max=64, help="How many clips to put in.")] = 16,
    override: Override = None,
) -> None:
    """One HTML page without network: players, nearest training pairs, spectrograms, violins, metric tables."""
    from stages.evaluate.report import write_report

    found = session(context)
    path = out or found.layout.report / "report.html"
    shown = write_report(generated or found.layout.generated, found.layout, found.params(override), path, clips)
    size = path.stat().st_size
    found.output.result(f"{path}: {shown} clips, {size / 1e6:.1f} MB.", [path], clips=shown, bytes=size)


@app.command()
def beats(
    context: typer.Context,
    estimates: Annotated[Path, typer.Argument(help="A .beats file, or a folder of them.")],
    references: Annotated[Path, typer.Argument(help="The true beats: .beats, CSV or JAMS, of the same names.")],
) -> None:
    """F-measure, CMLt, AMLt and Cemgil of tracked beats and downbeats; the first 5 s are dropped."""
    from stages.evaluate.beats import evaluate_beats

    found = session(context)
    with found.output.progress() as progress:
        scores = evaluate_beats(estimates, references, progress)
    lines = [f"{'':10} {'F':>6} {'CMLt':>6} {'AMLt':>6} {'Cemgil':>6}      N"]
    for name, count in (("beats", scores["n"]), ("downbeats", scores["n_downbeats"])):
        values = (scores[name] or {}).values()
        lines.append(f"{name:10} " + " ".join(f"{value:6.3f}" for value in values) + f" {count:6d}")
    found.output.result("\n".join(lines), [], **scores)


def _clap(found: Session, given: Path | None) -> Path:
    if given is not None or found.layout.clap.exists() or not found.layout.ldm.exists():
        return given or found.layout.clap
    return found.layout.ldm


def _line(name: str, figure: dict[str, Any]) -> str:
    return f"{name:32} {figure['value']:9.4f}   [{figure['low']:.4f}, {figure['high']:.4f}]   n = {figure['n']}"


def _show(found: Session, lines: list[str], paths: list[Path], result: dict[str, Any]) -> None:
    lines += [f"Note: {warning}" for warning in result["warnings"]]
    found.output.result("\n".join([*lines, *map(str, paths)]), paths, **result)
