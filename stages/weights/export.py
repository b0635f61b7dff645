"""A pipeline folder as the public MusicLDM layout, the reverse of `stages.weights.public`."""

from pathlib import Path

import torch
from torch import Tensor

from stages.clap.model import load_clap
from stages.errors import ModelError
from stages.ldm.diffusion import alphas_cumprod
from stages.ldm.model import load_ldm
from stages.params import Params
from stages.store import atomic_file, model_params
from stages.vae.model import load_vae
from stages.vocoder.model import load_vocoder
from stages.weights import names
from stages.weights.ledger import COMPUTED
from stages.weights.tensors import join_qkv, to_convolutions

MAIN = "musicldm-ckpt.ckpt"


def export_public(model: Path, out: Path) -> Path:
    """Write `musicldm-ckpt.ckpt` with all networks of a pipeline folder into `out`; returns its path.

    The learned null condition goes along as `null_condition`, which the public loader passes over: it guides
    away from the empty prompt. Raises ModelError for networks that the public layout has no place for.
    """
    params = model_params(model, "ldm")
    require_hifigan(model, "The public layout")
    _check_attention(params)
    ldm, clap, vae, vocoder = load_ldm(model), load_clap(model), load_vae(model), load_vocoder(model)
    state = {names.UNET + names.unet_name(name, params.ldm): t for name, t in ldm.unet.state_dict().items()}
    state |= {names.VAE + names.vae_name(name, params.vae): t for name, t in vae.network.state_dict().items()}
    generator = {name: t for name, t in vocoder.network.state_dict().items() if name not in ("mean", "scale")}
    state |= {names.VOCODER + names.vocoder_name(name): t for name, t in generator.items()}
    towers = {name: t for name, t in clap.model.state_dict().items() if not name.endswith(COMPUTED)}
    state |= {names.CLAP + names.clap_name(name): t for name, t in towers.items()}
    state |= _schedule(params) | {names.SCALE: torch.tensor(vae.scale), names.NULL: ldm.null.detach()}
    whole = {name: t.detach().contiguous().clone() for name, t in to_convolutions(join_qkv(state)).items()}
    path = out / MAIN
    with atomic_file(path) as temporary:
        torch.save({"state_dict": whole}, temporary)
    return path


def _schedule(params: Params) -> dict[str, Tensor]:
    alpha_bar = alphas_cumprod(params.ldm)
    previous = torch.cat([torch.ones(1), alpha_bar[:-1]])
    return {"betas": 1 - alpha_bar / previous, "alphas_cumprod": alpha_bar, "alphas_cumprod_prev": previous}


def require_hifigan(model: Path, layout: str) -> None:
    """Raise ModelError for a pipeline folder with another vocoder, for which `layout` has no place."""
    if model_params(model).vocoder.architecture != "hifigan":
        raise ModelError(
            f"{layout} has a HiFi-GAN at its end; {model} has another vocoder.",
            "Train one with -S vocoder.architecture=hifigan, then this model again with it.",
        )


def _check_attention(params: Params) -> None:
    """The public networks have attention in the middle, else left with random weights there."""
    if not params.vae.mid_attention or not params.ldm.attention[-1]:
        raise ModelError(
            f"The public layout has attention in the middle of VAE and UNet; this model ({params.preset}) has not.",
            "Export it for diffusers: musicldm model export --to diffusers",
        )
