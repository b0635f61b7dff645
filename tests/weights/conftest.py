"""A public MusicLDM checkpoint at toy size, made from random modules written anew, and what it was made from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages import params as parameters
from stages.ldm.diffusion import alphas_cumprod
from stages.params import Params
from tests.conftest import CLIP_SECONDS
from tests.weights.public import PublicClap, PublicHifiGan, PublicUNet, PublicVae

SCALE = 0.7
FILM_GAIN = 30.0  # FiLM of a normalised vector is weak: without this a mistake would hide behind rounding
TOY = {
    "preset": "tiny",
    "audio": {"clip_seconds": CLIP_SECONDS},
    "clap": {"window_seconds": CLIP_SECONDS, "audio": {"depths": [2, 2, 1, 1]}},
    "vae": {"block_out_channels": [16, 32, 32], "mid_attention": True, "layers_per_block": 2},
    "ldm": {"block_out_channels": [16, 32, 48], "attention": [False, True, True], "layers_per_block": 2, "head_dim": 8},
}


@dataclass
class Source:
    """The public networks, the average of the UNet, and the main checkpoint's state."""

    params: Params
    unet: PublicUNet
    vae: PublicVae
    vocoder: PublicHifiGan
    clap: PublicClap
    state: dict[str, Tensor]


def shaken(network: nn.Module) -> nn.Module:
    """Norms, biases and statistics too get values of their own, so that two of them cannot be mistaken unseen."""
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(0.3 * torch.rand_like(tensor))
    return network.eval()


@pytest.fixture(scope="session")
def source() -> Source:
    params = parameters.resolve(TOY)
    torch.manual_seed(3)
    unet, last = shaken(PublicUNet(params)), shaken(PublicUNet(params))
    vae, vocoder, clap = (shaken(make(params)) for make in (PublicVae, PublicHifiGan, PublicClap))
    with torch.no_grad():
        for weight in (unet.film_emb.weight, last.film_emb.weight):
            weight.mul_(FILM_GAIN)
        clap.text_branch.embeddings.word_embeddings.weight.mul_(20)
    state = {f"model.diffusion_model.{name}": t for name, t in last.state_dict().items()}
    state |= {f"model_ema.diffusion_model{name.replace('.', '')}": t for name, t in unet.state_dict().items()}
    state |= {f"first_stage_model.{name}": t for name, t in vae.state_dict().items()}
    state |= {f"first_stage_model.vocoder.{name}": t for name, t in folded(vocoder, params).items()}
    state |= {f"cond_stage_model.model.{name}": t for name, t in clap.state_dict().items()}
    state |= of_no_use(params)
    state["scale_factor"] = torch.tensor(SCALE)
    return Source(params, unet, vae, vocoder, clap, {name: t.detach().clone() for name, t in state.items()})


def folded(vocoder: PublicHifiGan, params: Params) -> dict[str, Tensor]:
    """Weight norm removed, by torch, as in the public main checkpoint."""
    plain = PublicHifiGan(params)
    plain.load_state_dict(vocoder.state_dict())
    for module in plain.modules():
        if hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
    return plain.state_dict()


def of_no_use(params: Params) -> dict[str, Tensor]:
    """What public files hold besides: noise schedule, EMA's state, discriminator, CLAP's training heads and mel."""
    alpha_bar = alphas_cumprod(params.ldm)
    betas = torch.linspace(params.ldm.beta_start**0.5, params.ldm.beta_end**0.5, 1000) ** 2
    clap = "cond_stage_model.model."
    return {
        "betas": betas, "alphas_cumprod": alpha_bar, "sqrt_alphas_cumprod": alpha_bar.sqrt(),
        "posterior_variance": betas, "logvar": torch.zeros(1000),
        "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "first_stage_model.loss.discriminator.main.0.weight": torch.zeros(8, 1, 4, 4),
        f"{clap}audio_transform.sequential.0.weight": torch.zeros(4, 4),
        f"{clap}text_branch.embeddings.position_ids": torch.arange(514)[None],
        f"{clap}audio_branch.tscam_conv.weight": torch.zeros(4, 4, 1, 3),
        f"{clap}audio_branch.head.weight": torch.zeros(4, 4),
        f"{clap}audio_branch.spectrogram_extractor.stft.conv_real.weight": torch.zeros(4, 1, 4),
    }  # fmt: skip


@pytest.fixture(scope="session")
def main_file(source, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("public") / "musicldm-ckpt.ckpt"
    torch.save({"epoch": np.float64(3.0), "state_dict": source.state}, path)
    return path


@pytest.fixture(scope="session")
def tokenizer(toy_models) -> str:
    return str(toy_models / "clap" / "tokenizer")
