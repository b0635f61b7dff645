"""`musicldm eval listen`: a blind listening test in the browser, and what the listeners said."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from musicldm_cli.session import session
from stages.evaluate import wording

app = typer.Typer(no_args_is_help=True, help="Hold a blind listening test in the browser.")

Survey = Annotated[Path | None, typer.Option("--survey", metavar="DIR", help="Default: work/listening.")]
Override = Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Change one parameter.")]


@app.command()
def serve(
    context: typer.Context,
    folders: Annotated[list[Path], typer.Argument(metavar="DIR_A DIR_B ...", help="Clips, one folder a model.")],
    groups: Annotated[int, typer.Option(help="Captions each participant hears.")] = 6,
    seconds: Annotated[float, typer.Option(min=0.5, max=60, help="Length of a clip, at most.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of the order in which clips are heard.")] = 0,
    survey: Survey = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than 127.0.0.1 let strangers in.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Serve a survey of generated clips: relevance, quality and musicality, blind and balanced.

    The folders hold clips of the same prompts (`generate --prompts`). Stop it with Ctrl-C; the same command
    goes on with the same participants.
    """
    from stages.web.server import check_installed, serve

    check_installed()
    from stages.web.survey import open_survey, survey_app

    found = session(context)
    out = survey or found.layout.listening
    with found.output.progress() as progress:
        store, left_out = open_survey(folders, groups, seconds, seed, out, progress)
    if left_out:
        clips = wording.counted(len(left_out), "clip")
        found.output.say(f"Left out, since not in every folder: {clips}, {left_out[0]} among them.")
    length = store.clip_seconds()
    if length < seconds:
        found.output.say(f"All clips are cut to {length:.2f} s, the length of the shortest.")
    serve(
        survey_app(store, host), host, port, out / "survey.log",
        lambda address: found.output.say(f"Listening test at {address} (Ctrl-C ends it)."),
    )  # fmt: skip
    counts = store.counts()
    store.close()
    found.output.result(
        f"{wording.counted(counts['began'], 'participant')} began, {counts['finished']} finished; "
        f"{wording.counted(counts['answers'], 'answer')}.", [out], **counts
    )  # fmt: skip


@app.command()
def report(context: typer.Context, survey: Survey = None, override: Override = None) -> None:
    """Means per model with intervals, paired tests with Holm's correction, agreement, and the paper's table."""
    from stages.evaluate.listening import analyse, table
    from stages.store import write_json, write_text
    from stages.web.survey_store import open_existing

    found = session(context)
    settings = found.params(override).evaluate
    store = open_existing(survey or found.layout.listening)
    counts = store.counts()
    result = analyse(store.ratings(), store.design.models, settings.bootstrap, settings.seed) | {"survey": counts}
    folder = found.layout.metrics / "listening"
    tables = table(result)
    paths = [folder / "metrics.json", *(folder / f"table.{suffix}" for suffix in tables)]
    write_json(paths[0], result)
    for path, text in zip(paths[1:], tables.values(), strict=True):
        write_text(path, text)
    lines = [tables["md"]]
    for scale, means in result["means"].items():
        lines += [
            f"{scale}, mean of 1 to 5 with its 95% interval over raters",
            *wording.lines(means, "  ", "rating", "rater"),
        ]
    lines += [
        f"{pair['scale']}, {pair['first']} - {pair['second']}: {pair['difference']:+.2f}, "
        f"p = {pair['p_holm']:.2g} (Holm), {wording.counted(pair['n_raters'], 'rater')}"
        for pair in result["pairs"]
    ]
    for scale, agreement in result["agreement"].items():
        alpha = agreement["krippendorff_alpha_ordinal"]
        lines.append(
            f"{scale}, agreement (Krippendorff's alpha, 1 is full): {'none' if alpha is None else f'{alpha:.2f}'}"
        )
    lines.append(f"{wording.counted(counts['began'], 'participant')} began, {counts['finished']} finished.")
    found.output.result("\n".join([*lines, *map(str, paths)]), paths, **result)


@app.command()
def export(
    context: typer.Context,
    survey: Survey = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: work/metrics/listening.")] = None,
) -> None:
    """Every answer as CSV and JSON, with the model behind each clip; those of unfinished groups are marked."""
    from stages.store import write_json, write_text
    from stages.web.survey_store import as_csv, open_existing

    found = session(context)
    rows = open_existing(survey or found.layout.listening).answers()
    folder = out or found.layout.metrics / "listening"
    paths = [folder / "answers.csv", folder / "answers.json"]
    write_text(paths[0], as_csv(rows))
    write_json(paths[1], rows)
    text = f"{wording.counted(len(rows), 'answer')}\n" + "\n".join(map(str, paths))
    found.output.result(text, paths, answers=len(rows))
