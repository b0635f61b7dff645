"""`musicldm generate`: text to sound files, or to a stream."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from musicldm_cli.clips import EditOptions, GateOptions, Target, show, target, write_stream
from musicldm_cli.session import Session, session
from stages.errors import ModelError, UsageError

if TYPE_CHECKING:
    from stages.generate.edit import Edit
    from stages.generate.pipeline import Pipeline
    from stages.generate.prompts import BadRow, Defaults, Prompt
    from stages.generate.settings import Settings
    from stages.params import Generate, Params


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
    edits = EditOptions(init_audio, strength, continued, inpaint, loop, bars, bpm, metre)
    gates = GateOptions(max_similarity, index, tries, avoid_copies)
    edits.check()
    gates.check()
    from stages.generate.settings import check_options

    typed = text is not None
    goal = target(out, suffix, typed, takes, Path("generated") if typed else found.layout.generated)
    if goal.stdout:
        _check_stream({
            "a file of prompts": not typed, "--takes": takes > 1, "--plot": plot,
            "--json": found.output.mode == "json",
            "--candidates": candidates is not None, "a novelty gate": gates.wanted, "an edit": edits.way is not None,
        })  # fmt: skip
    given: dict[str, Any] = {
        "sampler": sampler, "steps": steps, "guidance": guidance, "guidance_interval": guidance_interval, "eta": eta,
        "reuse": reuse, "candidates": 1 if goal.stdout else candidates,
    }  # fmt: skip
    check_options(avoid=avoid_copies, **given)
    maker = _maker(found, model, backend, override)
    settings = _settings(maker, given, avoid_copies)
    edit = edits.make(found, maker.params)
    defaults = _defaults(maker, edit, goal.stdout, seed, negative, guidance, seconds)
    wanted, bad = _wanted(found, maker, text, prompts, limit, defaults, takes)
    asked = {
        "--steps": steps is not None, "--guidance": guidance is not None,
        "--guidance-interval": guidance_interval is not None, "--eta": eta is not None, "--reuse": reuse is not None,
        "--negative": negative is not None, "--avoid-copies": avoid_copies > 0,
        "a column guidance or negative": any((p.guidance, p.negative) != (defaults.guidance, None) for p in wanted),
    }  # fmt: skip
    count = _few_steps(maker, sampler, asked, edit)
    if count is not None:
        found.output.say(f"Sampler: few-steps ({count} steps, by the model's own weights for them).")
        settings = settings.in_few_steps(count)
        wanted = [replace(prompt, guidance=1.0) for prompt in wanted]
    wanted = goal.named([edits.worded(prompt) for prompt in wanted])
    if goal.stdout:
        _stream(found, maker, wanted[0], settings, goal.suffix)
    else:
        _files(found, maker, wanted, bad, goal, settings, plot, edit, gates)


def _check_stream(refused: dict[str, bool]) -> None:
    given = next((name for name, is_given in refused.items() if is_given), None)
    if given is not None:
        raise UsageError(f"--out - streams one PROMPT; it does not go with {given}.")
    if sys.stdout.isatty():
        raise UsageError("--out - writes sound, not text.", 'Pipe it: musicldm generate "calm piano" --out - | aplay')


@dataclass(frozen=True)
class _Maker:
    """The model's folder, the parameters it was trained with, how to sample with it, which keys of that were said
    here rather than by its card, the backend, its card, and the parameters of the folder one stands in."""

    folder: Path
    params: Params
    sampling: Generate
    said: set[str]
    backend: str
    card: dict[str, Any]
    here: Params

    @property
    def about(self) -> str:
        steps = f", {self.card['steps']} steps" if "steps" in self.card else ""
        return f"{self.folder} (preset {self.params.preset}{steps})"


def _maker(found: Session, name: str | None, backend: str, override: list[str] | None) -> _Maker:
    """Raises ModelError where there is no model, ParamsError for the parameters here, and what check_backend does."""
    from stages.generate.settings import check_backend
    from stages.store import model_card, model_params

    check_backend(backend)
    here = found.params(override)
    folder = _model_folder(found, name)
    params = model_params(folder, "ldm")
    return _Maker(folder, params, *found.sampling(folder, params, override), backend, model_card(folder), here)


def _settings(maker: _Maker, given: dict[str, Any], avoid: float) -> Settings:
    """The options that were given, and the model's defaults. Raises UsageError, also for what the model cannot do."""
    from stages.generate.settings import DDIM, Settings, automatic_reuse, check_steps, read_scheduler

    chosen = {key: getattr(maker.sampling, key) if value is None else value for key, value in given.items()}
    if chosen["reuse"] is None:
        chosen["reuse"] = automatic_reuse(chosen["steps"])
    if given["eta"] is None and chosen["sampler"] != DDIM:
        chosen["eta"] = 0.0
    del chosen["guidance"]  # of each prompt
    check_steps(chosen["steps"], read_scheduler(maker.folder))
    low, high = chosen.pop("guidance_interval")
    return Settings(**chosen, interval=(low, high), avoid=avoid)


def _few_steps(maker: _Maker, sampler: str | None, asked: dict[str, bool], edit: Edit | None) -> int | None:
    """How many of the model's few steps to take: where they are wanted, or the model has them and nothing else is.

    None for the sampler of the settings. Raises UsageError for what they cannot do, ModelError where there are none.
    """
    from stages.generate.settings import FEW_STEPS, few_steps

    refused = next((name for name, is_asked in asked.items() if is_asked), None)
    if (sampler or maker.sampling.sampler) != FEW_STEPS:
        other = sampler or refused or maker.said - {"candidates"} or edit
        return None if other else few_steps(maker.folder)
    if refused is not None:
        raise UsageError(f"{refused} does not go with the sampler few-steps: steps and guidance are in its weights.")
    count = few_steps(maker.folder)
    if count is None:
        raise ModelError(f"{maker.folder} has no weights for few steps.", "Train them: musicldm train few-steps")
    return count


def _model_folder(found: Session, model: str | None) -> Path:
    """One of the hub is fetched and imported at its first use, and its licence told."""
    from stages.weights.shipped import NAME, SHIPPED, default_pipeline

    if model in (None, NAME):
        folder = SHIPPED if model == NAME else default_pipeline(found.layout)
        if model is None and folder == SHIPPED:
            found.output.say(f"The model that comes with musicldm; none was trained at {found.layout.ldm}.")
        return folder
    from stages.weights.hub import resolve_model

    folder, licence = resolve_model(model, found.layout.models)
    if licence is not None:
        found.output.say(licence)
    return folder


def _defaults(
    maker: _Maker, edit: Edit | None, streamed: bool, seed: int | None, negative: str | None,
    guidance: float | None, seconds: float | None,
) -> Defaults:  # fmt: skip
    """What a clip is unless its row says otherwise. Raises UsageError for a length that cannot be."""
    from stages.generate.prompts import Defaults
    from stages.generate.settings import LONGEST_SECONDS, LONGEST_STREAM_SECONDS, length_check

    audio = maker.params.audio
    check = length_check(edit, audio.sample_rate, LONGEST_STREAM_SECONDS if streamed else LONGEST_SECONDS)
    if seconds is not None:
        check(seconds)
    elif edit is not None:
        seconds = edit.seconds(None, audio.clip_seconds)
    return Defaults(
        maker.sampling.seed if seed is None else seed,
        negative,
        maker.sampling.guidance if guidance is None else guidance,
        audio.clip_seconds if seconds is None else seconds,
        check,
    )


def _load(found: Session, maker: _Maker, settings: Settings) -> Pipeline:
    from stages.generate.backends import choose_backend, default_cache, use_backend
    from stages.generate.memory import shelve
    from stages.generate.pipeline import Pipeline
    from stages.generate.settings import FEW_STEPS

    found.output.say(f"Model: {maker.about}.")
    pipeline, cache = Pipeline.load(maker.folder, few_steps=settings.sampler == FEW_STEPS), default_cache()
    backend = choose_backend(maker.backend, pipeline, cache)
    use_backend(pipeline, backend, cache, shelve(pipeline, maker.folder, backend.channels_last))
    found.output.say(f"Backend: {backend.name} ({backend.why}).")
    return pipeline


def _wanted(
    found: Session, maker: _Maker, text: str | None, file: Path | None, limit: int | None, defaults: Defaults,
    count: int,
) -> tuple[list[Prompt], list[BadRow]]:  # fmt: skip
    from stages.generate.prompts import read_prompts, takes, typed_prompt

    if text is not None:
        if file is not None or limit is not None:
            raise UsageError("A PROMPT stands alone: leave out --prompts and --limit.")
        return [typed_prompt(text, replace(defaults, seed=defaults.seed + take)) for take in range(count)], []
    tests = found.layout.captions / "prompts.csv"
    if file is None and not tests.exists():
        raise UsageError(f"There is no prompt, and no {tests}.", 'Type one: musicldm generate "dramatic trailer"')
    of_tests = file is None or file.resolve() == tests.resolve()
    wanted, bad = read_prompts(file or tests, defaults, of_tests)
    if limit is None and of_tests:
        limit = maker.sampling.max_prompts
    return takes(wanted[:limit], count), bad


def _files(
    found: Session, maker: _Maker, wanted: list[Prompt], bad: list[BadRow], goal: Target,
    settings: Settings, plot: bool, edit: Edit | None, gates: GateOptions,
) -> None:  # fmt: skip
    from stages.generate.manifest import output_folder, plan_clips
    from stages.store import model_digest

    index = gates.find_index(found, maker.here, maker.folder)
    also = ({} if edit is None else edit.identity()) | gates.identity(index)
    digest = model_digest(maker.folder)
    plan = plan_clips(wanted, settings, goal.folder, goal.suffix, plot, digest, also)
    rows, taken = [plan.rows.get(prompt.id, {}) for prompt in wanted], 0.0
    made: list[dict[str, Any]] = []
    cut: list[str] = []
    if plan.todo:  # else no network is loaded, which takes most of a short command's time
        with output_folder(goal.folder):
            from stages.generate.batch import generate_files

            gate = gates.make(found, index, maker.folder, maker.params.audio)
            pipeline = _load(found, maker, settings)
            cut = _warn_of_cut(found, pipeline, plan.todo)
            started = time.perf_counter()
            with found.output.progress() as progress:
                rows, made = generate_files(
                    pipeline, wanted, settings, goal.folder, goal.suffix, plot, maker.sampling.batch_size, progress,
                    edit, gate,
                )  # fmt: skip
        taken = time.perf_counter() - started
    model = {"model": str(maker.folder), "model_digest": digest}
    show(found, rows, made, cut, bad, goal.folder, plot, taken, model)


def _stream(found: Session, maker: _Maker, prompt: Prompt, settings: Settings, suffix: str) -> None:
    pipeline = _load(found, maker, settings)
    _warn_of_cut(found, pipeline, [prompt])
    write_stream(found, pipeline, prompt, settings, suffix)


def _warn_of_cut(found: Session, pipeline: Pipeline, prompts: list[Prompt]) -> list[str]:
    """Say which prompts are longer than what CLAP reads; returns their ids."""
    cut = [prompt.id for prompt in prompts if pipeline.truncated(prompt.prompt)]
    if cut:
        limit = pipeline.params.clap.text.max_tokens
        found.output.say(f"The model reads {limit} tokens of a prompt; the rest was left out of: {', '.join(cut[:5])}.")
    return cut
