"""The vocoder: log-mel (B, T, F) -> waveform (B, T * hop_length), exactly; HiFi-GAN's generator, or Vocos."""

from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig
from transformers.utils.logging import disable_progress_bar

from stages.audio.level import without_offset
from stages.audio.mel import clip_mel
from stages.params import Params
from stages.pretrained import model_config
from stages.store import model_params
from stages.training.checkpoint import load_weights
from stages.vocoder.vocos import InverseStft, Vocos, VocosConfig

FOLDER = "vocoder"  # inside a model folder
WEIGHTS = "model.safetensors"
REMEDY = "Make it with: musicldm train vocoder"

disable_progress_bar()  # of reading and writing weights; ours goes through stages.progress


Network: TypeAlias = SpeechT5HifiGan | Vocos


def build(params: Params) -> Network:
    """An untrained network of `params.vocoder.architecture` at its sizes, without weight norm."""
    return build_vocos(params) if params.vocoder.architecture == "vocos" else build_hifigan(params)


def build_vocos(params: Params) -> Vocos:
    vocoder = params.vocoder
    return Vocos(
        VocosConfig(
            params.mel.n_mels, params.mel.n_fft // 2 + 1, vocoder.dim, vocoder.intermediate_dim, vocoder.num_layers
        )
    )


def build_hifigan(params: Params) -> SpeechT5HifiGan:
    """HiFi-GAN's generator (Kong et al. 2020, V1)."""
    vocoder = params.vocoder
    config = SpeechT5HifiGanConfig(
        model_in_dim=params.mel.n_mels,
        sampling_rate=params.audio.sample_rate,
        upsample_initial_channel=vocoder.initial_channels,
        upsample_rates=list(vocoder.upsample_rates),
        upsample_kernel_sizes=list(vocoder.upsample_kernel_sizes),
        resblock_kernel_sizes=list(vocoder.resblock_kernel_sizes),
        resblock_dilation_sizes=[list(vocoder.resblock_dilations)] * len(vocoder.resblock_kernel_sizes),
        normalize_before=False,
    )
    network = SpeechT5HifiGan(config)
    for module in network.modules():  # its own N(0, 0.01) puts narrow networks below the log's floor: no gradient
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            module.reset_parameters()
    return network


def remove_weight_norm(network: Network) -> None:
    """Fold each layer's magnitude and direction, which training keeps apart, into one weight."""
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")


class ExactLength(nn.Module):
    """Cut what the upsampling made too much: nothing with kernel 15 at stride 5, 32 samples with kernel 16."""

    def __init__(self, hop_length: int) -> None:
        super().__init__()
        self.hop_length = hop_length

    def forward(self, waveform: Tensor, mel: Tensor) -> Tensor:
        return waveform[:, : mel.shape[1] * self.hop_length]


class Vocoder(nn.Module):
    """A network, and `finish`, which makes a waveform (B, T * hop_length) of what it gives and of its mel."""

    def __init__(self, network: Network, params: Params) -> None:
        super().__init__()
        self.network, self.params = network, params
        self.finish = (
            InverseStft(clip_mel(params)) if isinstance(network, Vocos) else ExactLength(params.mel.hop_length)
        )

    @torch.no_grad()
    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel (B, T, F) -> waveform (B, T * hop_length) without an offset, which no mel shows to the network."""
        return without_offset(self.finish(self.network(mel), mel).float(), self.params.audio.sample_rate)


def load_vocoder(folder: Path) -> Vocoder:
    """The vocoder of a `vocoder` or `ldm` model folder, in eval mode. Raises ModelError when it is not whole."""
    params = model_params(folder)
    model_config(folder / FOLDER / "config.json", REMEDY)  # sizes are in params; diffusers needs it, and whole
    with torch.device("meta"):  # see load_weights
        network = build(params)
    load_weights(network, folder / FOLDER / WEIGHTS, REMEDY)
    return Vocoder(network, params).eval()
