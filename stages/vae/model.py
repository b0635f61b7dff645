"""The autoencoder between log-mels and latents: mel (B, T, F) -> z (B, C, T/P, F/P) -> mel (B, T, F)."""

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from stages.errors import ModelError
from stages.params import Params
from stages.pretrained import model_config
from stages.store import model_params
from stages.training.checkpoint import load_weights

FOLDER = "vae"  # inside a model folder
WEIGHTS = "diffusion_pytorch_model.safetensors"
REMEDY = "Make it with: musicldm train vae"
NEIGHBOURHOOD = 5  # frames, or mel bins


def build(params: Params) -> AutoencoderKL:
    """An untrained VAE at the sizes of `params.vae`, seeing a log-mel as an image of one channel (B, 1, T, F)."""
    vae, blocks = params.vae, len(params.vae.block_out_channels)
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=tuple(vae.block_out_channels),
        layers_per_block=vae.layers_per_block,
        latent_channels=vae.latent_channels,
        norm_num_groups=vae.norm_num_groups,
        mid_block_add_attention=vae.mid_attention,
        sample_size=params.clip_frames,
        scaling_factor=1.0,
    )


class Vae(nn.Module):
    """A trained VAE with batches of log-mels on one side and posteriors on the other, both unscaled.

    `scale` brings its latents to a standard deviation of 1, which is what diffusion works on.
    """

    def __init__(self, network: AutoencoderKL, params: Params) -> None:
        super().__init__()
        self.network, self.params = network.to(memory_format=torch.channels_last), params  # half the time on a CPU
        self.scale = float(network.config.scaling_factor)

    @torch.no_grad()
    def encode(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel (B, T, F), T and F multiples of P -> mean and log-variance, each (B, C, T/P, F/P)."""
        posterior = self.network.encode(_last(mel.unsqueeze(1))).latent_dist
        return posterior.mean.contiguous(), posterior.logvar.contiguous()

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, T/P, F/P) -> log-mel (B, T, F), with the contrast that `vae.sharpening` gives back."""
        return sharpened(self.network.decode(_last(z)).sample.squeeze(1), *self.params.vae.sharpening)


def sharpened(mel: Tensor, in_time: float, in_frequency: float) -> Tensor:
    """Each bin of log-mels (B, T, F) moved away from the means of its NEIGHBOURHOOD, by so much of each distance.

    An unsharp mask: what the L1 of the mel trains is the median of all that a latent may stand for, in which onsets
    and harmonics, and the valleys between them, are flatter than in any sound.
    """
    if in_time == in_frequency == 0:
        return mel
    return mel + in_time * (mel - _means(mel.mT).mT) + in_frequency * (mel - _means(mel))


def _means(rows: Tensor) -> Tensor:
    """Of each value's NEIGHBOURHOOD along the last axis; shorter at the ends."""
    return F.avg_pool1d(rows, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2, count_include_pad=False)


def _last(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)


def load_vae(folder: Path) -> Vae:
    """The VAE of a `vae` or `ldm` model folder, in eval mode. Raises ModelError when it is not whole."""
    params = model_params(folder)
    path = folder / FOLDER / "config.json"
    scale = scaling_factor(model_config(path, REMEDY, "AutoencoderKL"), path, REMEDY)
    with torch.device("meta"):  # see load_weights
        network = build(params)
    network.register_to_config(scaling_factor=scale)
    read_weights(network, folder)
    return Vae(network, params).eval()


def scaling_factor(config: dict[str, Any], path: Path, remedy: str) -> float:
    """What a VAE's config multiplies latents by. Raises ModelError unless it is a finite number above 0."""
    found = config.get("scaling_factor")
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < math.inf:
        raise ModelError(f"{path} has a scaling_factor of {found!r:.50}.", remedy)
    return float(found)


def read_weights(network: AutoencoderKL, folder: Path) -> None:
    """Fill `network` with the weights of a model folder. Raises ModelError when they are not all its own."""
    load_weights(network, folder / FOLDER / WEIGHTS, REMEDY)
