"""`musicldm eval`: measure generated clips, and show them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from musicldm_cli.commands import listen
from musicldm_cli.session import session
from stages.evaluate import wording

if TYPE_CHECKING:
    from stages.evaluate.setting import Setting

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

    The network is evaluate.backbone of params.yaml: musicnn or musicnn-msd (music tags, 200-d; need no file), clap,
    cnn14-16k or cnn14-32k (FD, IS, KL as in the paper), vggish (its FD is FAD), or mert.
    """
    from stages.evaluate import run

    override = [*(override or []), *([] if weights is None else [f"evaluate.weights={json.dumps(weights)}"])]
    layout, folder = session(context).layout, _folder(context, out, "quality")
    with _setting(context, clap, override) as setting:
        result = run.quality(setting, generated or layout.generated, reference, folder)
    shown = {key: result[key] for key in run.QUALITY if result[key] is not None}
    lines = wording.lines(shown)
    lines += [f"{result['backbone']}; {_set(result, 'generated')}, {_set(result, 'reference')}", *_legend(shown)]
    _show(context, lines, [folder / run.METRICS], result)


@app.command()
def relevance(
    context: typer.Context, generated: Generated = None, clap: ClapFolder = None, out: Out = None,
    override: Override = None,
) -> None:  # fmt: skip
    """CLAP similarity of every clip with its prompt, beside the test set's own and the best training clip's."""
    from stages.evaluate import run

    layout, folder = session(context).layout, _folder(context, out, "relevance")
    with _setting(context, clap, override) as setting:
        result = run.relevance(setting, generated or layout.generated, folder)
    shown = {key: result[key] for key in run.RELEVANCE if result[key] is not None}
    lines = wording.lines(shown) + _against(result, "against_shuffled", "Similarity") + _legend(shown)
    _show(context, lines, [folder / run.METRICS, folder / "prompts.csv"], result)


@app.command()
def rhythm(
    context: typer.Context, generated: Generated = None, out: Out = None, override: Override = None,
) -> None:  # fmt: skip
    """Share of clips whose tracked tempo is the one their prompt states ("120 BPM"), against shuffled prompts."""
    from stages.evaluate.rhythm import rhythm_of
    from stages.evaluate.run import METRICS

    layout, folder = session(context).layout, _folder(context, out, "rhythm")
    with _setting(context, None, override) as setting:
        result = rhythm_of(setting, generated or layout.generated, folder)
    shown = {key: result[key] for key in ("within", "within_with_octaves")}
    lines = wording.lines(shown)
    for key in shown:
        lines += _against(result, f"{key}_against_shuffled", wording.title(key))
    lines += _legend(shown)
    session(context).output.result("\n".join([*lines, str(folder / METRICS)]), [folder / METRICS], **result)


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
            help="Exit 7 when more than SHARE have a training clip this near; mel:SHARE@SIM by spectrogram.",
        ),
    ] = None,
    clap: ClapFolder = None,
    out: Out = None,
    override: Override = None,
) -> None:
    """The nearest training music of every clip, by CLAP and by spectrogram, and the share that is too near."""
    from stages.evaluate import run
    from stages.evaluate.novelty import parse_gate

    layout, folder = session(context).layout, _folder(context, out, "novelty")
    gates = [parse_gate(text) for text in fail_over or []]
    with _setting(context, clap, override) as setting:
        result = run.novelty(setting, generated or layout.generated, index, folder, gates)
    lines = ["generated clips", *wording.lines(result["generated"], "  ")]
    if result["held_out"] is not None:
        lines += ["real music that was not trained on", *wording.lines(result["held_out"], "  ")]
    lines += _legend(result["generated"])
    _show(context, lines, [folder / run.METRICS, folder / "nearest.csv"], result)


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

    with _setting(context, clap, override) as setting:
        kept: Literal["float16", "float32"] = "float16" if half else "float32"
        path, figures = run.index_training(
            source or setting.shards, setting.clap, setting.params, out, setting.cache, kept, duplicates,
            setting.progress,
        )  # fmt: skip
    windows, tracks = (wording.counted(figures[f"n_{noun}s"], noun) for noun in ("window", "track"))
    lines = [f"{path}: {windows} of {tracks}, {figures['bytes'] / 1e6:.1f} MB"]
    shares = {key: figure for key, figure in figures.items() if key.startswith("duplicates")}
    lines += wording.lines(shares) + _legend(shares)
    session(context).output.result("\n".join(lines), [path], **figures)


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

    folder = _folder(context, out, "planted")
    with _setting(context, clap, override) as setting:
        result = run.planted(setting, others, folder, count)
    lines = [f"recall at 1% false alarms of {result['n_innocent']} innocent clips; clap: {result['clap_backbone']}"]
    for measure in run.MEASURES:
        rows = result[measure]
        lines.append(f"{measure}: alarm above {rows['alarm_level']:.4f}")
        lines += wording.lines(
            {key: figure for key, figure in rows.items() if key.startswith("recall")}, "  ", "excerpt"
        )
    lines += _legend(["recall copy"])
    _show(context, lines, [folder / run.METRICS, folder / "planted.csv"], result)


@app.command()
def joints(
    context: typer.Context,
    generated: Generated = None,
    vae: Annotated[Path | None, typer.Option(metavar="DIR", help="A vae or ldm folder; default work/models.")] = None,
    vocoder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A vocoder or ldm folder; default work/models.")
    ] = None,
    split: Annotated[
        Literal["test", "valid"], typer.Option(help="Whose real clips all sets are compared with.")
    ] = "test",
    clips: Annotated[int, typer.Option(min=2, help="At most this many clips in each set.")] = 150,
    out: Out = None,
    override: Override = None,
) -> None:
    """Where quality is lost: real clips through Griffin-Lim, vocoder and VAE, generated ones, and marks beside them.

    FD of each set from the same real clips, and log-mel L1 where clips are paired. The marks: other real music,
    training music, its 1 s grains shuffled, and noise with the real clips' mean spectrum.
    """
    from stages.evaluate.joints import joints as measure

    layout, folder = session(context).layout, _folder(context, out, "joints")
    made = generated or (layout.generated if layout.generated.is_dir() else None)
    vae, vocoder = (
        given or next((folder for folder in (usual, layout.ldm) if folder.is_dir()), None)
        for given, usual in ((vae, layout.vae), (vocoder, layout.vocoder))
    )
    with _setting(context, None, override) as setting:
        result = measure(setting, vae, vocoder, made, split, clips, folder)
    lines = [f"{result['backbone']}; {result['n_real']} real clips of {result['n_real_tracks']} tracks, {split} split"]
    keys = ["fd", "fd_infinity", "log_mel_l1"]
    for key in keys:
        rows = {name: found[key] for name, found in result["sets"].items()}
        lines += [wording.title(key), *wording.lines(rows, "  ")]
    lines += ["Ratios of FD", *wording.lines(result["ratios"], "  "), *_legend(keys)]
    _show(context, lines, [folder / "metrics.json"], result)


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

    target = _folder(context, out, "zeroshot")
    with _setting(context, clap, override) as setting:
        result = run.zeroshot(setting, folder, benchmark, target)
    lines = [f"{result['benchmark']}, {result['n_classes']} classes, {result['backbone']}"]
    shown = {key: result[key] for key in ("accuracy", "map@10")}
    lines += wording.lines(shown)
    lines += [f"fold {name}: {value:.1%}" for name, value in result.get("fold_accuracy", {}).items()]
    lines += _legend(shown)
    _show(context, lines, [target / run.METRICS, target / "clips.csv"], result)


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

    layout = session(context).layout
    folder = out or layout.work / "retrieved"
    with _setting(context, clap, override) as setting:
        count = run.retrieval(setting, prompts or layout.captions / "prompts.csv", folder)
    session(context).output.result(f"{folder}: {wording.counted(count, 'clip')}.", [folder], clips=count)


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
    found.output.result(
        f"{path}: {wording.counted(shown, 'clip')}, {size / 1e6:.1f} MB.", [path], clips=shown, bytes=size
    )


@app.command()
def beats(
    context: typer.Context,
    estimates: Annotated[Path, typer.Argument(help="A .beats file, or a folder of them.")],
    references: Annotated[Path, typer.Argument(help="The true beats: .beats, CSV, text or JAMS, of the same names.")],
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
    lines += [f"Left out: {one['id']}, {one['reason']}." for one in scores["left_out"]]
    found.output.result("\n".join(lines), [], **scores)


@contextmanager
def _setting(context: typer.Context, clap: Path | None, override: list[str] | None) -> Iterator[Setting]:
    """What the evaluations share, with a progress bar while they run."""
    from stages.evaluate.setting import Setting

    found = session(context)
    layout = found.layout
    usual = layout.clap if layout.clap.exists() or not layout.ldm.exists() else layout.ldm
    with found.output.progress() as progress:
        yield Setting(found.params(override), layout.shards, clap or usual, layout.metrics / "cache", progress)


def _folder(context: typer.Context, out: Path | None, name: str) -> Path:
    return out or session(context).layout.metrics / name


def _against(result: dict[str, Any], key: str, name: str) -> list[str]:
    """A line on true against shuffled pairs, where there is more than one prompt."""
    if (found := result[key]) is None:
        return []
    return [f"{name}: {found['true']:.3f} with a clip's own prompt, {found['shuffled']:.3f} with another's "
            f"(p = {found['p']:.2g}, {found['prompts']} prompts)"]  # fmt: skip


def _set(result: dict[str, Any], which: str) -> str:
    """`reference n = 50 windows of 4 tracks`."""
    n, tracks = result[f"n_{which}"], result[f"n_{which}_tracks"]
    return f"{which} n = {wording.sample({'n': n, 'trials': tracks})}"


def _legend(keys: Iterable[str]) -> list[str]:
    return ["", *wording.legend(keys), ""]


def _show(context: typer.Context, lines: list[str], paths: list[Path], result: dict[str, Any]) -> None:
    lines += [f"Note: {warning}" for warning in result["warnings"]]
    session(context).output.result("\n".join([*lines, *map(str, paths)]), paths, **result)
