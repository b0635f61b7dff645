"""`musicldm model import`: public checkpoints into model folders, every tensor accounted for."""

from pathlib import Path
from typing import Annotated, Any

import typer

from musicldm_cli.session import Session, session

app = typer.Typer(no_args_is_help=True, help="Bring public checkpoints in, strictly.")

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Checkpoints as their authors published them.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Default: work/models/ and the first file's name.")]
Like = Annotated[
    str, typer.Option(metavar="NAME", help="Its sizes: musicldm, audioldm-s, audioldm-m, audioldm-l, or a preset.")
]
Tokenizer = Annotated[str, typer.Option(metavar="DIR", help="Its text tokenizer: a folder or hub id.")]
Override = Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Change one size.")]
Licence = Annotated[str | None, typer.Option(help="Its terms, for the model's card; known for --like's families.")]

DEFAULT_FAMILY = "musicldm"
DEFAULT_TOKENIZER = "roberta-base"


@app.command()
def pipeline(
    context: typer.Context, files: Files, out: Out = None, like: Like = DEFAULT_FAMILY,
    tokenizer: Tokenizer = DEFAULT_TOKENIZER, licence: Licence = None, override: Override = None,
) -> None:  # fmt: skip
    """Import MusicLDM's or AudioLDM's main checkpoint (.ckpt), and others (clap-ckpt.pt ...) for what it lacks."""
    from stages.weights.public import import_pipeline, sizes_of

    found, target = session(context), _target(session(context), out, files[0])
    about = _about(like, licence)
    remarks = import_pipeline(files, target, sizes_of(like, override or []), tokenizer, about)
    _done(found, target, about, remarks)


@app.command()
def clap(
    context: typer.Context, file: Annotated[Path, typer.Argument(help="E.g. music_audioset_epoch_15_esc_90.14.pt.")],
    out: Out = None, like: Like = DEFAULT_FAMILY, tokenizer: Tokenizer = DEFAULT_TOKENIZER, licence: Licence = None,
    override: Override = None,
) -> None:  # fmt: skip
    """Import a CLAP checkpoint of LAION (HTSAT and RoBERTa, without fusion)."""
    from stages.weights.public import import_clap, sizes_of

    found, target, about = session(context), _target(session(context), out, file), {"licence": licence}
    _done(found, target, about, import_clap([file], target, sizes_of(like, override or []), tokenizer, about))


@app.command()
def vae(
    context: typer.Context, file: Annotated[Path, typer.Argument(help="E.g. vae-ckpt.ckpt.")], out: Out = None,
    scale: Annotated[float, typer.Option(help="Of its latents; the file does not hold it.")] = 1.0,
    like: Like = DEFAULT_FAMILY, licence: Licence = None, override: Override = None,
) -> None:  # fmt: skip
    """Import the autoencoder of MusicLDM or AudioLDM alone."""
    from stages.weights.public import import_vae, sizes_of

    found, target, about = session(context), _target(session(context), out, file), _about(like, licence)
    _done(found, target, about, import_vae([file], target, sizes_of(like, override or []), scale, about))


@app.command()
def vocoder(
    context: typer.Context, file: Annotated[Path, typer.Argument(help="E.g. hifigan-ckpt.ckpt or g_02500000.")],
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="The config.json published with it.")] = None,
    out: Out = None, like: Like = DEFAULT_FAMILY, licence: Licence = None, override: Override = None,
) -> None:  # fmt: skip
    """Import a HiFi-GAN generator, with weight norm or without."""
    from stages.weights.public import hifigan_sizes, import_vocoder, sizes_of

    found, target, about = session(context), _target(session(context), out, file), {"licence": licence}
    sizes = [] if config is None else hifigan_sizes(config)
    _done(found, target, about, import_vocoder([file], target, sizes_of(like, [*sizes, *(override or [])]), about))


@app.command("beat-transformer")
def beat_transformer(
    context: typer.Context, file: Annotated[Path, typer.Argument(help="E.g. fold_4_trf_param.pt.")], out: Out = None,
) -> None:  # fmt: skip
    """Import a published Beat Transformer; it listens to five stems, which the package demucs separates.

    Use it by -S beats.model=DIR in `prep beats`.
    """
    from stages.beats.convert import import_beat_transformer

    found, target = session(context), _target(session(context), out, file)
    import_beat_transformer(file, target)
    _done(found, target, {"licence": "MIT"}, [])


@app.command()
def diffusers(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A MusicLDMPipeline folder, or its name on the hub.")],
    out: Out = None,
) -> None:
    """Import a diffusers MusicLDMPipeline folder, e.g. ucsd-reach/musicldm."""
    from stages.weights.diffusers_folder import import_diffusers, licence_of
    from stages.weights.hub import import_from_hub

    found, folder = session(context), Path(source)
    if folder.is_dir():
        target = _target(found, out, folder)
        about = {"licence": licence_of(folder), "imported_from": [{"folder": folder.name}]}
        remarks: list[str] = []
        import_diffusers(folder, target, about, remarks.append)
        _done(found, target, about, remarks)
    else:
        target = out or found.layout.models / source.replace("/", "--")
        found.output.result(f"{import_from_hub(source, target)}", [target])


def _target(found: Session, out: Path | None, source: Path) -> Path:
    from stages.store import refuse_existing

    target = out or found.layout.models / source.resolve().stem
    refuse_existing(target)
    return target


def _about(like: str, licence: str | None) -> dict[str, Any]:
    from stages.weights.public import FAMILIES

    family = FAMILIES.get(like)
    if family is None:
        return {"licence": licence}
    return {"licence": licence or family.licence, "training_data": family.training_data}


def _done(found: Session, target: Path, about: dict[str, Any], remarks: list[str]) -> None:
    from stages.weights.describe import UNKNOWN

    for remark in remarks:
        found.output.say(remark)
    terms = about.get("licence") or UNKNOWN
    text = f"{target} is imported, every tensor accounted for. Its licence: {terms}."
    found.output.result(text, [target], licence=about.get("licence"), remarks=remarks)
