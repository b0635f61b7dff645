"""`musicldm generate`: text to sound files, or to a stream."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from musicldm_cli.session import Session, session
from stages.errors import UsageError

if TYPE_CHECKING:
    from stages.generate.run import Made, Run


def generate(
    context: typer.Context,
    text: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="What it should sound like.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="csv (prompt,id,seed,negative,guidance,seconds), jsonl, or txt, one a line."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|HUB ID|shipped",
            help="Trained pipeline, one on the hub, or the one that comes with musicldm; default work/models/ldm, "
            "else the last.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE|-",
            help="Folder, one file (.wav .flac .ogg), or - to stream to stdout. "
            "Default: ./generated for a PROMPT, else work/generated.",
        ),
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Length; default one clip as trained.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, dpm++, unipc, euler, or few-steps, for a model of `train few-steps`.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 is none.")] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LO HI", help="Guide only in these shares of the diffusion time; 1 is noise."),
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What it should not sound like.")] = None,
    eta: Annotated[float | None, typer.Option(help="Fresh noise at every step, 0 to 1 (ddim only).")] = None,
    reuse: Annotated[
        int | None,
        typer.Option(metavar="N", help="Compute the UNet's inner blocks at every N-th step only; 1 is exact."),
    ] = None,
    candidates: Annotated[int | None, typer.Option(help="Make so many, keep the one CLAP likes best.")] = None,
    seed: Annotated[int | None, typer.Option(help="Row n of a file takes seed + n.")] = None,
    takes: Annotated[int, typer.Option(min=1, help="Clips of each prompt, each with a seed of its own.")] = 1,
    init_audio: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Begin from this audio instead of from noise.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How far to leave --init-audio: 0 keeps it, 1 ignores it; default 0.5.")
    ] = None,
    continued: Annotated[
        Path | None,
        typer.Option("--continue", metavar="FILE", help="Keep FILE and go on from its end, up to --seconds in all."),
    ] = None,
    inpaint: Annotated[
        str | None, typer.Option(metavar="FILE:START:END", help="Make this span of FILE (in seconds) anew.")
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="A loop without a seam, exact in length.")] = False,
    bars: Annotated[int | None, typer.Option(help="Of the loop; default 4.")] = None,
    bpm: Annotated[float | None, typer.Option(help="Tempo of the loop; default 120.")] = None,
    metre: Annotated[int | None, typer.Option(help="Beats in a bar of the loop; default 4.")] = None,
    max_similarity: Annotated[
        float | None,
        typer.Option(
            metavar="SIM", help="Make a clip again that is so near to a training clip; exit 7 if none passes."
        ),
    ] = None,
    index: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Training music, by `eval index`; default that of work/shards.")
    ] = None,
    tries: Annotated[int | None, typer.Option(help="How many seeds --max-similarity tries; default 5.")] = None,
    avoid_copies: Annotated[
        float, typer.Option(metavar="SCALE", help="Steer away from the nearest training clip while sampling; try 1.")
    ] = 0.0,
    suffix: Annotated[
        str | None, typer.Option("--format", help="wav, flac, ogg, opus or mp3; to stdout wav or raw. Default wav.")
    ] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Save a spectrogram beside each file.")] = False,
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="How to compute: auto, eager, bf16 or openvino.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts of the file.")] = None,
    override: Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Change one parameter.")] = None,
) -> None:
    """Make music from text: one typed PROMPT, a file of them, or (neither given) the test split's prompts.

    The model's card says how it samples, unless an option or the section `generate` of params.yaml says otherwise.
    The same seed makes the same sound. What is there already, with the same settings, is not made again.
    """
    found = session(context)
    from stages.evaluate.gating import GateOptions
    from stages.generate.choose import Options
    from stages.generate.edit import EditOptions
    from stages.generate.manifest import choose_target
    from stages.generate.run import Request, prepare

    edit = EditOptions(init_audio, strength, continued, inpaint, loop, bars, bpm, metre)
    gate = GateOptions(max_similarity, index, tries, avoid_copies)
    typed = text is not None
    target = choose_target(out, suffix, typed, takes, Path("generated") if typed else found.layout.generated)
    options = Options(
        sampler, steps, guidance, guidance_interval, eta, reuse, candidates, negative, seed, seconds, avoid_copies
    )
    request = Request(target, text, prompts, takes, limit, model, backend, options, edit, gate.wanted, plot)
    if target.stdout:
        _check_stdout(found)
    project = found.project(override)
    run = prepare(request, project, found.output.say)
    if target.stdout:
        _stream(found, run)
        return
    with found.output.progress() as progress:
        made = run.files(gate.choose(project, run.model.folder, progress), progress)
    _show(found, run, made)


def _check_stdout(found: Session) -> None:
    if found.output.mode == "json":
        raise UsageError("--out - streams one PROMPT; it does not go with --json.")
    if sys.stdout.isatty():
        raise UsageError("--out - writes sound, not text.", 'Pipe it: musicldm generate "calm piano" --out - | aplay')


def _stream(found: Session, run: Run) -> None:
    """The sound to stdout piece by piece; the talk about it goes to stderr."""
    pipe, prompt, rate = sys.stdout.buffer, run.prompts[0], run.model.params.audio.sample_rate
    with found.output.progress() as progress:
        for piece in run.stream(progress):
            pipe.write(piece)
            pipe.flush()
    found.output.say(f"{prompt.seconds:g} s of 16-bit mono at {rate} Hz; seed {prompt.seed}.")


def _show(found: Session, run: Run, made: Made) -> None:
    """The finished clips; then raise for prompts that were left out (4) or clips that passed no gate (7)."""
    paths = [run.request.target.folder / row["file"] for row in made.rows]
    count, skipped, seconds = len(made.new), len(made.rows) - len(made.new), sum(row["seconds"] for row in made.new)
    lines = [_line(path, row) for path, row in zip(paths, made.rows, strict=True)]
    if run.request.plot:
        pictures = [path.with_suffix(".png") for path in paths]
        lines += [f"{picture}  spectrogram" for picture in pictures]
        paths += pictures
    there = f"; {skipped} {'was' if skipped == 1 else 'were'} there already." if skipped else "."
    lines.append(f"{count} clip{'' if count == 1 else 's'} in {made.seconds_taken:.1f} s{there}")
    fault = made.fault()
    if fault is not None:
        found.output.say("\n".join(lines))
        raise fault
    found.output.result(
        "\n".join(lines),
        paths,
        clips=made.rows,
        made=count,
        skipped=skipped,
        truncated=made.cut,
        model=str(run.model.folder),
        model_digest=run.digest,
        seconds_taken=round(made.seconds_taken, 3),
        clips_per_second=round(count / made.seconds_taken, 4) if count else None,
        real_time_factor=round(seconds / made.seconds_taken, 4) if count else None,
    )


def _line(path: Path, row: dict[str, Any]) -> str:
    text = f"{path}  CLAP {row['clap_score']:+.3f}"
    return f"{text}  nearest {row['similarity']:.3f} {row['nearest']}" if "nearest" in row else text
