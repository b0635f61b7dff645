"""`musicldm train`: one command for each network; they share options, the run, and the way results are shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from musicldm_cli.output import Output
from musicldm_cli.session import Session, session

if TYPE_CHECKING:
    from stages.ldm.preview import Preview
    from stages.training.estimate import Phased
    from stages.training.loop import History

app = typer.Typer(
    no_args_is_help=True,
    help="Train one of the networks. Every training goes on by itself where it was stopped; Ctrl-C saves first. "
    "On several GPUs or processes: accelerate launch -m musicldm_cli train ...",
)


class Tracker(StrEnum):
    """Who else is told of a training's figures."""

    TENSORBOARD = "tensorboard"
    DVCLIVE = "dvclive"
    WANDB = "wandb"


Shards = Annotated[Path | None, typer.Option(metavar="DIR", help="Shards to train on; default the work folder's.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Where the trained model goes; default the work folder.")]
Resume = Annotated[
    bool | None,
    typer.Option(
        "--resume/--no-resume",
        help="Insist on going on from a checkpoint, or start anew and delete it; default: go on if there is one "
        "of the same parameters and data.",
    ),
]
Preset = Annotated[
    str | None, typer.Option(metavar="NAME", help="paper, released, small or tiny, in place of params.yaml.")
]
Override = Annotated[
    list[str] | None,
    typer.Option("-S", metavar="KEY=VALUE", help="Change one key, e.g. -S vae.train.steps=2000; repeatable."),
]
Track = Annotated[
    list[Tracker] | None,
    typer.Option(help="Tell this tracker of figures and samples; repeatable; default: tensorboard if installed."),
]
OnlyEstimate = Annotated[
    bool, typer.Option("--estimate", help="Only measure a few steps: parameters, memory, time a step and in all.")
]


@app.callback()
def group() -> None:
    """Keep this a group even while it has one command."""


def run(
    found: Session, out: Path, build: Callable[[], Phased], train: Callable[..., History], only_estimate: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Train by `train(out, checkpoints, **options)`, or only estimate what that takes of what `build` makes."""
    from stages.training.devices import leave_processes
    from stages.training.estimate import estimate

    first = os.environ.get("RANK", "0") == "0"  # speaks for all processes
    output = found.output if first else Output("quiet")
    try:
        with output.progress() as progress:
            if only_estimate:
                figures = asdict(estimate(build(), progress))
            else:
                say = output.say
                history = train(out, found.layout.checkpoints, progress=progress, log=say, warn=say, **options)
    finally:
        leave_processes()
    if not first:
        return
    if only_estimate:
        found.output.result(estimate_text(figures), [], **figures)
    else:
        show(found, history, out)


def show(found: Session, history: History, out: Path) -> None:
    """The result of a training."""
    figures = {name: round(value, 6) for name, value in history.valid.items()}
    measured = "".join(f", {name} {value:.4g}" for name, value in figures.items())
    skipped = f" {history.skipped} steps had no finite loss and were skipped." if history.skipped else ""
    found.output.result(
        f"{out} was trained for {history.steps} steps ({history.seconds:.0f} s now{measured}).{skipped}",
        [out],
        steps=history.steps,
        resumed_at=history.resumed_at,
        skipped=history.skipped,
        seconds=round(history.seconds, 2),
        valid=figures,
        **history.figures,
    )


def estimate_text(figures: dict[str, Any]) -> str:
    """The estimate for people."""
    networks = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in figures["parameters"].items())
    steps = ", ".join(f"{seconds:.2f} s from step {first} on" for first, seconds in figures["step_seconds"].items())
    extra = f", and {figures['extra_seconds']:.2f} s for mixed clips" if figures["extra_seconds"] else ""
    return (
        f"Parameters: {networks}; {figures['trained'] / 1e6:.2f} M are trained.\n"
        f"Memory: {figures['state_bytes'] / 1e9:.2f} GB of weights, gradients and optimizer; "
        f"{figures['peak_bytes'] / 1e9:.2f} GB at the peak of steps and a validation ({figures['device']}, "
        f"precision {figures['precision']}, {figures['processes']} process(es)).\n"
        f"A step: {steps}{extra}; a validation: {figures['valid_seconds']:.1f} s.\n"
        f"All {figures['steps']} steps: {figures['total_seconds'] / 3600:.2f} h, "
        "without samples and checkpoints."
    )


def preview_text(pair: Preview) -> str:
    """One mixed pair for people."""
    grids = (("beats", pair.beats_apart), ("downbeats", pair.downbeats_apart))
    far = ", ".join(f"{name} {seconds * 1000:.0f} ms apart" for name, seconds in grids if seconds is not None)
    return f"{pair.wav} and .png: {pair.first} x {pair.weight:.2f} + {pair.second}; {far or 'no beats to compare'}"


@app.command()
def beats(
    context: typer.Context,
    scores: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of `data fetch score-beats`.")] = Path(
        "data/score-beats"
    ),
    distil: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also learn from madmom's networks on the music in this folder.")
    ] = None,
    out: Out = None,
    resume: Resume = None,
    preset: Preset = None,
    override: Override = None,
    track: Track = None,
    only_estimate: OnlyEstimate = False,
) -> None:
    """Train a Beat Transformer on rendered scores, whose beats are exact.

    Ends with the F-measure of beats and downbeats on test pieces. Use it by -S beats.model=DIR in `prep beats`.
    madmom's networks are not for commercial use, and neither is what learned from them.
    """
    found = session(context)
    params, cache = found.params(override, preset), found.layout.checkpoints / "beat-features"
    from stages.beats.train import BeatTask, train_beats

    run(
        found, out or found.layout.models / "beats", lambda: BeatTask(params, scores, cache, distil),
        lambda *places, **options: train_beats(params, scores, *places, distil=distil, **options), only_estimate,
        resume=resume, trackers=track or (),
    )  # fmt: skip


@app.command()
def vae(
    context: typer.Context,
    shards: Shards = None,
    out: Out = None,
    resume: Resume = None,
    preset: Preset = None,
    override: Override = None,
    track: Track = None,
    only_estimate: OnlyEstimate = False,
) -> None:
    """Train the autoencoder between mel-spectrograms and latents (reconstruction, KL, and a PatchGAN).

    Ends with the latents' scale factor and the reconstruction of the test split, both in the model's card.
    """
    found = session(context)
    params, source = found.params(override, preset), shards or found.layout.shards
    from stages.data.shards import ShardReader
    from stages.vae.train import VaeTask, train_vae

    run(
        found, out or found.layout.vae, lambda: VaeTask(params, ShardReader(source)),
        lambda *places, **options: train_vae(params, source, *places, **options), only_estimate,
        resume=resume, trackers=track or (),
    )  # fmt: skip


@app.command()
def vocoder(
    context: typer.Context,
    shards: Shards = None,
    vae: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The VAE whose mels to train on, for vocoder.train_on=vae or both."),
    ] = None,
    out: Out = None,
    resume: Resume = None,
    preset: Preset = None,
    override: Override = None,
    track: Track = None,
    only_estimate: OnlyEstimate = False,
) -> None:
    """Train the HiFi-GAN that turns mel-spectrograms into sound (multi-period and multi-scale discriminators).

    With -S vocoder.architecture=vocos, or preset small, a Vocos, which a processor trains in an hour.
    Fine-tune one on what the VAE decodes, so that it hides the VAE's faults:
    `musicldm train vocoder --out work/models/vocoder-vae -S vocoder.train_on=vae
    -S vocoder.init_from=work/models/vocoder`
    """
    found = session(context)
    params, source = found.params(override, preset), shards or found.layout.shards
    from stages.vocoder.train import build_task, train_vocoder

    decoder = vae or found.layout.vae
    run(
        found, out or found.layout.vocoder, lambda: build_task(params, source, decoder)[0],
        lambda *places, **options: train_vocoder(params, source, *places, vae=decoder, **options), only_estimate,
        resume=resume, trackers=track or (),
    )  # fmt: skip


@app.command()
def clap(
    context: typer.Context,
    shards: Shards = None,
    out: Out = None,
    resume: Resume = None,
    preset: Preset = None,
    override: Override = None,
    track: Track = None,
    only_estimate: OnlyEstimate = False,
) -> None:
    """Train the shared space of text and sound (contrastive loss between clips and captions).

    Start from a trained one with -S clap.init_from=DIR or a hub id, or only its text tower from a BERT or
    RoBERTa with -S clap.text_init=DIR. Ends with retrieval among all tracks of the valid split, also in the
    model's card.
    """
    found = session(context)
    params, source = found.params(override, preset), shards or found.layout.shards
    from stages.clap.train import ClapTask, train_clap
    from stages.data.shards import ShardReader

    run(
        found, out or found.layout.clap, lambda: ClapTask(ShardReader(source), params),
        lambda *places, **options: train_clap(params, source, *places, **options), only_estimate,
        resume=resume, trackers=track or (),
    )  # fmt: skip


@app.command()
def ldm(
    context: typer.Context,
    latents: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of `prep latents`.")] = None,
    shards: Shards = None,
    clap: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of `train clap`.")] = None,
    vae: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of `train vae`.")] = None,
    vocoder: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of `train vocoder`.")] = None,
    mixup: Annotated[
        Literal["none", "simple", "bam", "blm"] | None,
        typer.Option(help="Mix clips: any two, or beat-synchronous audio or latents; default ldm.mixup."),
    ] = None,
    condition: Annotated[
        Literal["audio", "text"] | None,
        typer.Option(help="Train on CLAP's embedding of the clip, or of its caption; default ldm.condition."),
    ] = None,
    init_from: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on from the weights of this pipeline folder.")
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(min=1, metavar="RANK", help="Train only low-rank updates of --init-from, on small devices."),
    ] = None,
    mixup_preview: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only write N mixed pairs as sound and pictures to --out.")
    ] = None,
    out: Out = None,
    resume: Resume = None,
    preset: Preset = None,
    override: Override = None,
    track: Track = None,
    only_estimate: OnlyEstimate = False,
) -> None:
    """Train the latent diffusion model, and put the whole text-to-music pipeline into one folder.

    The paper's text-finetune: `musicldm train ldm --condition text --init-from work/models/ldm --out DIR`.
    Fine-tune with little memory: `musicldm train ldm --lora 16 --init-from work/models/ldm --out DIR`.
    """
    found, layout = session(context), session(context).layout
    chosen: dict[str, Any] = {
        "ldm.mixup": mixup, "ldm.condition": condition, "ldm.init_from": init_from and str(init_from),
        "ldm.lora_rank": lora,
    }  # fmt: skip
    keys = [f"{key}={json.dumps(value)}" for key, value in chosen.items() if value is not None]
    params = found.params([*(override or []), *keys], preset)
    folders = (
        latents or layout.latents, shards or layout.shards, clap or layout.clap, vae or layout.vae,
        vocoder or layout.vocoder,
    )  # fmt: skip
    if mixup_preview is not None:
        from stages.ldm.preview import write_preview

        pairs = write_preview(params, *folders, out or layout.work / "mixup", mixup_preview)
        paths = [path for pair in pairs for path in (pair.wav, pair.png)]
        found.output.result("\n".join(map(preview_text, pairs)), paths, pairs=[
            {name: value for name, value in asdict(pair).items() if name not in ("wav", "png")} for pair in pairs
        ])  # fmt: skip
        return
    from stages.ldm.train import build_task, train_ldm

    run(
        found, out or layout.ldm, lambda: build_task(params, *folders),
        lambda *places, **options: train_ldm(params, *folders, *places, **options), only_estimate,
        resume=resume, trackers=track or (),
    )  # fmt: skip


@app.command("few-steps")
def few_steps(
    context: typer.Context,
    latents: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of `prep latents`.")] = None,
    shards: Shards = None,
    ldm: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of `train ldm`.")] = None,
    out: Out = None,
    resume: Resume = None,
    override: Override = None,
    track: Track = None,
    only_estimate: OnlyEstimate = False,
) -> None:
    """Teach a trained pipeline to make in few plain steps what takes many guided ones, by low-rank updates.

    `musicldm generate "..." --model DIR --sampler few-steps` uses them; everything else stays as it was. How many
    steps, and which guidance goes into them, says the section few_steps of params.yaml.
    """
    found, layout = session(context), session(context).layout
    params = found.params(override)
    folders = latents or layout.latents, shards or layout.shards, ldm or layout.ldm
    from stages.ldm.few_steps import build_task, train_few_steps

    run(
        found, out or layout.few_steps, lambda: build_task(params, *folders),
        lambda *places, **options: train_few_steps(params, *folders, *places, **options), only_estimate,
        resume=resume, trackers=track or (),
    )  # fmt: skip
