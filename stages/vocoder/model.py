"""HiFi-GAN's generator: log-mel (B, T, F) -> waveform (B, T * hop_length), exactly."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig
from transformers.utils.logging import disable_progress_bar

from stages.errors import ModelError
from stages.params import Params
from stages.store import model_card
from stages.training.checkpoint import load_weights

FOLDER = "vocoder"  # inside a model folder
WEIGHTS = "model.safetensors"
REMEDY = "Make it with: musicldm train vocoder"

disable_progress_bar()  # of reading and writing weights; ours goes through stages.progress


def build(params: Params) -> SpeechT5HifiGan:
    """An untrained generator at the sizes of `params.vocoder`, without weight norm (Kong et al. 2020, V1)."""
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


def remove_weight_norm(network: SpeechT5HifiGan) -> None:
    """Fold each layer's magnitude and direction, which training keeps apart, into one weight."""
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")


def exact_length(waveform: Tensor, mel: Tensor, hop_length: int) -> Tensor:
    """Cut what the upsampling made too much: nothing with kernel 15 at stride 5, 32 samples with kernel 16."""
    return waveform[:, : mel.shape[1] * hop_length]


class Vocoder(nn.Module):
    """A trained generator."""

    def __init__(self, network: SpeechT5HifiGan, params: Params) -> None:
        super().__init__()
        self.network, self.params = network, params

    @torch.no_grad()
    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel (B, T, F) -> waveform (B, T * hop_length) in [-1, 1]."""
        return exact_length(self.network(mel), mel, self.params.mel.hop_length)


def load_vocoder(folder: Path) -> Vocoder:
    """The vocoder of a `vocoder` or `ldm` model folder, in eval mode. Raises ModelError when it is not whole."""
    params = Params.model_validate(model_card(folder)["params"])
    try:
        config = SpeechT5HifiGanConfig.from_json_file(folder / FOLDER / "config.json")
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / FOLDER} has no usable config.json.", REMEDY) from error
    with torch.device("meta"):  # see load_weights
        network = SpeechT5HifiGan(config)
    load_weights(network, folder / FOLDER / WEIGHTS, REMEDY)
    return Vocoder(network, params).eval()
