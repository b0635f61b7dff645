"""Reading the public checkpoints of MusicLDM, AudioLDM, LAION's CLAP and HiFi-GAN into our model folders."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import SpeechT5HifiGan

from stages import params as parameters
from stages.audio.mel import clap_mel
from stages.clap.model import Clap
from stages.clap.model import build as build_clap
from stages.errors import ModelError
from stages.ldm.diffusion import alphas_cumprod
from stages.ldm.model import LatentDiffusion, build_unet
from stages.params import Params
from stages.store import sha256
from stages.vae.model import build as build_vae
from stages.vocoder.model import build_hifigan
from stages.weights import names, tensors
from stages.weights.files import read_public
from stages.weights.folders import (
    Parts,
    load_tokenizer,
    save_clap,
    save_pipeline_of,
    save_vae,
    save_vocoder,
    set_epsilon,
)
from stages.weights.ledger import Ledger

ROBERTA = "roberta-base"  # whose tokenizer every public checkpoint uses
ROBERTA_EPSILON = 1e-5  # of its layer norms; transformers' CLAP has 1e-12
# What public files hold beside the weights: values computed from the noise schedule, the discriminator of the VAE's
# training, CLAP's classifier and projections that only its training used, and its own STFT.
OF_NO_USE = (
    r"(sqrt_|log_|posterior_|alphas_)\w+|lvlb_weights|logvar|model_ema\.(decay|num_updates)"
    r"|first_stage_model\.loss\..+"
    r"|cond_stage_model\.model\.(audio|text)_transform\..+"
    r"|cond_stage_model\.model\.audio_branch\.((tscam_conv|head|spectrogram_extractor)\..+|.+\.attn_mask)"
)
_CLAP_TINY = {"audio": {"embed_dim": 96, "depths": [2, 2, 6, 2]}}  # HTSAT-tiny of LAION's code


@dataclass(frozen=True)
class Family:
    """A family of public checkpoints: what its sizes change in the preset `released`, terms and training data."""

    licence: str
    training_data: str
    sizes: dict[str, Any] = field(default_factory=dict)


_AUDIOLDM_DATA = "AudioSet, AudioCaps, Freesound, BBC Sound Effects"
_LICENCE = "CC BY-NC-SA 4.0"
FAMILIES = {
    "musicldm": Family(_LICENCE, "Audiostock, 9,000 tracks"),
    "audioldm-s": Family(_LICENCE, _AUDIOLDM_DATA, {"clap": _CLAP_TINY}),
    "audioldm-m": Family(_LICENCE, _AUDIOLDM_DATA, {"ldm": {"block_out_channels": [192, 384, 576, 960]}}),
    "audioldm-l": Family(
        _LICENCE, _AUDIOLDM_DATA,
        {"clap": _CLAP_TINY, "ldm": {"block_out_channels": [256, 512, 768, 1280], "head_dim": 64}},
    ),
}  # fmt: skip


def sizes_of(like: str, overrides: Sequence[str] = ()) -> Params:
    """Parameters of a family of public checkpoints, or of one of our presets. Raises ParamsError."""
    if like in FAMILIES:
        return parameters.resolve({"preset": "released", **FAMILIES[like].sizes}, overrides, origin=like)
    if like in parameters.PRESETS:
        return parameters.resolve({"preset": like}, overrides, origin=like)
    known = ", ".join([*FAMILIES, *parameters.PRESETS])
    raise ModelError(f"--like {like} is none of {known}.", "Take the nearest, and correct it: -S section.key=value")


def import_pipeline(
    files: Sequence[Path], out: Path, params: Params, tokenizer: str, about: dict[str, Any]
) -> list[str]:
    """The whole of MusicLDM or AudioLDM from its main checkpoint, and from others for parts that it lacks.

    The UNet's moving average is taken where there is one. The null condition is the empty prompt's embedding, as
    in the public code, unless an earlier version of ours exported the file with a learned one. `about` goes into the
    model's card. Returns remarks. Raises ModelError.
    """
    ledger, remarks = _open(files)
    ldm = LatentDiffusion(params, build_unet(params))
    ledger.fill(ldm.unet, names.UNET, lambda name: names.unet_name(name, params.ldm))
    alpha_bar = alphas_cumprod(params.ldm)
    previous = torch.cat([torch.ones(1), alpha_bar[:-1]])
    ledger.check("betas", 1 - alpha_bar / previous, "ldm.beta_start and ldm.beta_end")
    vae, vocoder, clap = _vae(ledger, params), _vocoder(ledger, params), _clap(ledger, params, tokenizer)
    null = ledger.take(names.NULL)
    ledger.close(OF_NO_USE)
    with torch.no_grad():
        ldm.null.copy_(clap.eval().embed_text([""])[0] if null is None else null)
    save_pipeline_of(Parts(ldm, clap, vae, vocoder), out, _card(files, about))
    return remarks


def import_clap(files: Sequence[Path], out: Path, params: Params, tokenizer: str, about: dict[str, Any]) -> list[str]:
    """One of LAION's CLAP checkpoints (HTSAT and RoBERTa, without fusion). Raises ModelError."""
    ledger, remarks = _open(files)
    clap = _clap(ledger, params, tokenizer)
    ledger.close(OF_NO_USE)
    save_clap(clap, out, _card(files, about))
    return remarks


def import_vae(files: Sequence[Path], out: Path, params: Params, scale: float, about: dict[str, Any]) -> list[str]:
    """A VAE alone; its file does not hold the scale of its latents. Raises ModelError."""
    ledger, remarks = _open(files)
    vae = _vae(ledger, params, scale)
    ledger.close(rf"{OF_NO_USE}|first_stage_model\.vocoder\..+")
    save_vae(vae, params, out, _card(files, about))
    return remarks


def import_vocoder(files: Sequence[Path], out: Path, params: Params, about: dict[str, Any]) -> list[str]:
    """A HiFi-GAN generator alone, with weight norm or without. Raises ModelError."""
    ledger, remarks = _open(files)
    vocoder = _vocoder(ledger, params)
    ledger.close(OF_NO_USE)
    save_vocoder(vocoder, params, out, _card(files, about))
    return remarks


def hifigan_sizes(config: Path) -> list[str]:
    """`-S` overrides for the config.json that HiFi-GAN's authors and followers publish with a generator.

    The clip's length becomes the multiple of the networks' strides nearest to 10.24 s. Raises ModelError.
    """
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        rate, hop = int(found["sampling_rate"]), int(found["hop_size"])
        dilations = found["resblock_dilation_sizes"]
        if found["resblock"] not in ("1", 1) or any(row != dilations[0] for row in dilations):
            raise ModelError(f"{config} is of a HiFi-GAN with other residual blocks than V1's.", "Give a V1 or V2.")
        frames = round(10.24 * rate / hop / 32) * 32
        values: dict[str, Any] = {
            "audio.sample_rate": rate, "audio.clip_seconds": frames * hop / rate,
            "mel.n_fft": found["n_fft"], "mel.win_length": found["win_size"], "mel.hop_length": hop,
            "mel.n_mels": found["num_mels"], "mel.f_min": float(found["fmin"]),
            "mel.f_max": float(found["fmax"] or rate / 2),
            "vocoder.architecture": "hifigan", "vocoder.upsample_rates": found["upsample_rates"],
            "vocoder.upsample_kernel_sizes": found["upsample_kernel_sizes"],
            "vocoder.initial_channels": found["upsample_initial_channel"],
            "vocoder.resblock_kernel_sizes": found["resblock_kernel_sizes"],
            "vocoder.resblock_dilations": dilations[0], **_fewer_blocks(found["num_mels"]),
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelError(f"{config} is not the config.json of a HiFi-GAN: {error!r}.", "Leave it out.") from error
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _fewer_blocks(n_mels: int) -> dict[str, Any]:
    """UNet blocks that the usual 80 mel bins can be halved by; the default four ask for a multiple of 32."""
    ldm, positions = parameters.Ldm(), n_mels // parameters.preset("released").vae.downsampling
    blocks = len(ldm.block_out_channels)
    while blocks > 1 and positions % 2 ** (blocks - 1):
        blocks -= 1
    return {"ldm.block_out_channels": ldm.block_out_channels[:blocks], "ldm.attention": ldm.attention[:blocks]}


def _open(files: Sequence[Path]) -> tuple[Ledger, list[str]]:
    found, remarks = read_public(files)
    found = tensors.fold_weight_norm(tensors.without_ema(found))
    return Ledger(tensors.to_matrices(tensors.split_qkv(found)), ", ".join(map(str, files))), remarks


def _vae(ledger: Ledger, params: Params, scale: float | None = None) -> AutoencoderKL:
    vae = build_vae(params)
    ledger.fill(vae, names.VAE, lambda name: names.vae_name(name, params.vae))
    if scale is None:
        stored = ledger.take(names.SCALE)
        if stored is None or stored.numel() != 1:
            ledger.problems.append(f"{names.SCALE}, the scale of the latents, is missing")
        scale = 1.0 if stored is None or stored.numel() != 1 else float(stored)
    vae.register_to_config(scaling_factor=scale)
    return vae.eval()


def _vocoder(ledger: Ledger, params: Params) -> SpeechT5HifiGan:
    if params.vocoder.architecture != "hifigan":
        raise ModelError(
            f"The file's vocoder is a HiFi-GAN, vocoder.architecture is {params.vocoder.architecture}.",
            "Import it with -S vocoder.architecture=hifigan and its sizes, or another --preset.",
        )
    vocoder = build_hifigan(params)
    ledger.fill(vocoder, names.VOCODER, names.vocoder_name, own=("mean", "scale"))
    return vocoder.eval()


def _clap(ledger: Ledger, params: Params, tokenizer: str) -> Clap:
    model = build_clap(params)
    set_epsilon(model, ROBERTA_EPSILON)
    ledger.fill(model, names.CLAP, names.clap_name)
    ledger.check(
        f"{names.CLAP}audio_branch.logmel_extractor.melW", clap_mel(params).filters,
        "clap.n_mels, clap.f_min and clap.f_max",
    )  # fmt: skip
    return Clap(params, model.eval(), load_tokenizer(tokenizer, params))


def _card(files: Sequence[Path], about: dict[str, Any]) -> dict[str, Any]:
    return {**about, "imported_from": [{"file": path.name, "sha256": sha256(path)} for path in files]}
