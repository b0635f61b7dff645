"""`musicldm generate`: text to sound files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from musicldm_cli.session import Session, session

if TYPE_CHECKING:
    from stages.generate.pipeline import Pipeline
    from stages.generate.prompts import BadRow, Prompt
    from stages.params import Params

DEFAULT_STRENGTH = 0.5


def generate(
    context: typer.Context,
    text: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="What it should sound like.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="csv (prompt,id,seed,negative,guidance,seconds), jsonl, or txt, one a line."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Trained pipeline; default work/models/ldm.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: ./generated for a PROMPT, else work/generated.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Length; default one clip as trained.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddim, dpm++, unipc or euler.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 is none.")] = None,
    negative: Annotated[str | None, typer.Option(help="What it should not sound like.")] = None,
    eta: Annotated[float | None, typer.Option(help="Fresh noise at every step, 0 to 1 (ddim only).")] = None,
    candidates: Annotated[int | None, typer.Option(help="Make so many, keep the one CLAP likes best.")] = None,
    seed: Annotated[int | None, typer.Option(help="Row n of a file takes seed + n.")] = None,
    init_audio: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Begin from this audio instead of from noise.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="How far to leave --init-audio: 0 keeps it, 1 ignores it.")
    ] = DEFAULT_STRENGTH,
    suffix: Annotated[str, typer.Option("--format", help="wav, flac or ogg.")] = "wav",
    plot: Annotated[bool, typer.Option("--plot", help="Save a spectrogram beside each file.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts of the file.")] = None,
    override: Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Change one parameter.")] = None,
) -> None:
    """Make music from text: one typed PROMPT, a file of them, or (neither given) the test split's prompts.

    Defaults come from the section `generate` of params.yaml. The same seed makes the same sound. What is
    there already, with the same settings, is not made again.
    """
    found = session(context)
    params = found.params(override)
    given = {"sampler": sampler, "steps": steps, "eta": eta, "candidates": candidates}
    chosen = {key: getattr(params.generate, key) if value is None else value for key, value in given.items()}
    folder = model or found.layout.ldm
    defaults = {
        "seed": params.generate.seed if seed is None else seed,
        "guidance": params.generate.guidance if guidance is None else guidance,
        "negative": negative,
        "seconds": _clip_seconds(folder) if seconds is None else seconds,
    }
    wanted, bad = _wanted(found, params, text, prompts, limit, defaults)
    target = out or (Path("generated") if text is not None else found.layout.generated)
    _run(found, params, wanted, bad, folder, target, chosen, suffix, plot, init_audio, strength)


def _wanted(
    found: Session, params: Params, text: str | None, file: Path | None, limit: int | None, given: dict[str, Any]
) -> tuple[list[Prompt], list[BadRow]]:
    from stages.errors import UsageError
    from stages.generate.prompts import Defaults, read_prompts, typed_prompt

    defaults = Defaults(**given)
    if text is not None:
        if file is not None or limit is not None:
            raise UsageError("A PROMPT stands alone: leave out --prompts and --limit.")
        return [typed_prompt(text, defaults)], []
    tests = found.layout.captions / "prompts.csv"
    if file is None and not tests.exists():
        raise UsageError(f"There is no prompt, and no {tests}.", 'Type one: musicldm generate "dramatic trailer"')
    wanted, bad = read_prompts(file or tests, defaults)
    if limit is None and (file is None or file.resolve() == tests.resolve()):
        limit = params.generate.max_prompts
    return wanted[:limit], bad


def _clip_seconds(model: Path) -> float:
    """How long the clips were that a model was trained on; its own params count, not those here."""
    from stages.store import model_card

    return float(model_card(model, "ldm")["params"]["audio"]["clip_seconds"])


def _run(
    found: Session, params: Params, wanted: list[Prompt], bad: list[BadRow], model: Path, out: Path,
    chosen: dict[str, Any], suffix: str, plot: bool, init_audio: Path | None, strength: float,
) -> None:  # fmt: skip
    from stages.generate.manifest import Settings, plan_clips
    from stages.store import model_card, model_digest

    init = None
    if init_audio is not None:
        from stages.generate.edit import read_init

        init = read_init(init_audio, int(model_card(model, "ldm")["params"]["audio"]["sample_rate"]), strength)
    settings, also = Settings(**chosen), {} if init is None else init.identity()
    plan = plan_clips(wanted, settings, out, suffix, plot, model_digest(model), also)
    rows, made, cut, taken = list(plan.wanted.values()), [], [], 0.0
    rows = [plan.rows.get(row["id"], row) for row in rows]
    if plan.todo:  # else no network is loaded, which takes most of a short command's time
        from stages.generate.batch import generate_files
        from stages.generate.pipeline import Pipeline

        pipeline = Pipeline.load(model)
        cut = _warn_of_cut(found, pipeline, plan.todo)
        started = time.perf_counter()
        with found.output.progress() as progress:
            rows, made = generate_files(
                pipeline, wanted, settings, out, suffix, plot, params.generate.batch_size, progress, init
            )
        taken = time.perf_counter() - started
    _show(found, rows, made, cut, bad, out, plot, taken)


def _warn_of_cut(found: Session, pipeline: Pipeline, prompts: list[Prompt]) -> list[str]:
    """Say which prompts are longer than what CLAP reads; returns their ids."""
    cut = [prompt.id for prompt in prompts if pipeline.truncated(prompt.prompt)]
    if cut:
        limit = pipeline.params.clap.text.max_tokens
        found.output.say(f"The model reads {limit} tokens of a prompt; the rest was left out of: {', '.join(cut[:5])}.")
    return cut


def _show(
    found: Session, rows: list[dict[str, Any]], made: list[dict[str, Any]], cut: list[str], bad: list[BadRow],
    out: Path, plot: bool, taken: float,
) -> None:  # fmt: skip
    from stages.errors import DataError

    paths = [out / row["file"] for row in rows]
    skipped = len(rows) - len(made)
    seconds = sum(row["seconds"] for row in made)
    lines = [f"{path}  CLAP {row['clap_score']:+.3f}" for path, row in zip(paths, rows, strict=True)]
    if plot:
        pictures = [path.with_suffix(".png") for path in paths]
        lines += [f"{picture}  spectrogram" for picture in pictures]
        paths += pictures
    lines.append(f"{len(made)} clips in {taken:.1f} s" + (f"; {skipped} were there already." if skipped else "."))
    if bad:
        listed = "\n".join(f"  line {row.line}: {row.reason}" for row in bad)
        found.output.say("\n".join(lines))
        raise DataError(
            f"{len(bad)} row(s) of the prompts file were left out, the other {len(rows)} done:\n{listed}",
            "Correct these rows and run the same command again; the finished clips are kept.",
        )
    found.output.result(
        "\n".join(lines),
        paths,
        clips=rows,
        made=len(made),
        skipped=skipped,
        truncated=cut,
        seconds_taken=round(taken, 3),
        clips_per_second=round(len(made) / taken, 4) if made else None,
        real_time_factor=round(seconds / taken, 4) if made else None,
    )
