"""`musicldm train`: one command for each network; they share options and the way results are shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from musicldm_cli.session import Session, session

if TYPE_CHECKING:
    from stages.training.loop import History

app = typer.Typer(
    no_args_is_help=True,
    help="Train one of the networks. Every training goes on by itself where it was stopped; Ctrl-C saves first. "
    "On several GPUs or processes: accelerate launch -m musicldm_cli train ...",
)

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


@app.callback()
def group() -> None:
    """Keep this a group even while it has one command."""


def show(found: Session, history: History, out: Path) -> None:
    """The result of a training, by the first of its processes only."""
    if os.environ.get("RANK", "0") != "0":
        return
    figures = {name: round(value, 6) for name, value in history.valid.items()}
    measured = "".join(f", {name} {value:.4g}" for name, value in figures.items())
    skipped = f" {history.skipped} steps had no finite loss and were skipped." if history.skipped else ""
    found.output.result(
        f"{out} was trained for {history.steps} steps ({history.seconds:.0f} s now{measured}).{skipped}",
        [out],
        steps=history.steps,
        resumed_at=history.resumed_at,
        skipped=history.skipped,
        valid=figures,
        **history.figures,
    )


@app.command()
def vae(
    context: typer.Context,
    shards: Shards = None,
    out: Out = None,
    resume: Resume = None,
    preset: Preset = None,
    override: Override = None,
) -> None:
    """Train the autoencoder between mel-spectrograms and latents (reconstruction, KL, and a PatchGAN).

    Ends with the latents' scale factor and the reconstruction of the test split, both in the model's card.
    """
    found = session(context)
    params = found.params(override, preset)
    from stages.vae.train import train_vae

    out = out or found.layout.vae
    with found.output.progress() as progress:
        history = train_vae(
            params, shards or found.layout.shards, out, found.layout.checkpoints,
            resume=resume, progress=progress, log=found.output.say, warn=found.output.say,
        )  # fmt: skip
    show(found, history, out)


@app.command()
def vocoder(
    context: typer.Context,
    shards: Shards = None,
    vae: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The VAE whose mels to train on, for vocoder.train_on=vae.")
    ] = None,
    out: Out = None,
    resume: Resume = None,
    preset: Preset = None,
    override: Override = None,
) -> None:
    """Train the HiFi-GAN that turns mel-spectrograms into sound (multi-period and multi-scale discriminators).

    Fine-tune one on what the VAE decodes, so that it hides the VAE's faults:
    `musicldm train vocoder --out work/models/vocoder-vae -S vocoder.train_on=vae
    -S vocoder.init_from=work/models/vocoder`
    """
    found = session(context)
    params = found.params(override, preset)
    from stages.vocoder.train import train_vocoder

    out = out or found.layout.vocoder
    with found.output.progress() as progress:
        history = train_vocoder(
            params, shards or found.layout.shards, out, found.layout.checkpoints, vae=vae or found.layout.vae,
            resume=resume, progress=progress, log=found.output.say, warn=found.output.say,
        )  # fmt: skip
    show(found, history, out)


@app.command()
def clap(
    context: typer.Context,
    shards: Shards = None,
    out: Out = None,
    resume: Resume = None,
    preset: Preset = None,
    override: Override = None,
) -> None:
    """Train the shared space of text and sound (contrastive loss between clips and captions).

    Start from a trained one with -S clap.init_from=DIR or a hub id. Ends with retrieval among all tracks of
    the valid split, also in the model's card.
    """
    found = session(context)
    params = found.params(override, preset)
    from stages.clap.train import train_clap

    out = out or found.layout.clap
    with found.output.progress() as progress:
        history = train_clap(
            params, shards or found.layout.shards, out, found.layout.checkpoints,
            resume=resume, progress=progress, log=found.output.say, warn=found.output.say,
        )  # fmt: skip
    show(found, history, out)


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
    mixup_preview: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only write N mixed pairs as sound and pictures to --out.")
    ] = None,
    out: Out = None,
    resume: Resume = None,
    preset: Preset = None,
    override: Override = None,
) -> None:
    """Train the latent diffusion model, and put the whole text-to-music pipeline into one folder.

    The paper's text-finetune: `musicldm train ldm --condition text --init-from work/models/ldm --out DIR`.
    """
    found, layout = session(context), session(context).layout
    chosen = {"ldm.mixup": mixup, "ldm.condition": condition, "ldm.init_from": init_from}
    keys = [f"{key}={json.dumps(str(value))}" for key, value in chosen.items() if value is not None]
    params = found.params([*(override or []), *keys], preset)
    folders = (
        latents or layout.latents, shards or layout.shards, clap or layout.clap, vae or layout.vae,
        vocoder or layout.vocoder,
    )  # fmt: skip
    if mixup_preview is not None:
        from stages.ldm.preview import write_preview

        paths = write_preview(params, *folders, out or layout.work / "mixup", mixup_preview)
        found.output.result("\n".join(map(str, paths)), paths, pairs=mixup_preview)
        return
    from stages.ldm.train import train_ldm

    out = out or layout.ldm
    with found.output.progress() as progress:
        history = train_ldm(
            params, *folders, out, layout.checkpoints,
            resume=resume, progress=progress, log=found.output.say, warn=found.output.say,
        )  # fmt: skip
    show(found, history, out)
