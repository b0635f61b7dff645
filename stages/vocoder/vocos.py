"""A vocoder that predicts spectra, not samples: all its layers work at the mel's own rate.

Vocos (Siuzdak 2023, arXiv 2306.00814): ConvNeXt blocks over mel frames, then magnitude and phase of each bin, then the
inverse STFT. The magnitudes begin from those that the mel filters' pseudo-inverse gives, and the network only
corrects them (FreeV, Lv et al. 2024, arXiv 2406.08196). After minutes of training on a processor it is nearer to
real music than a HiFi-GAN after an hour: docs/LOG.md.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from stages.audio.mel import MelSpectrogram

KERNEL = 7
MOST_LOG_MAGNITUDE = 8.0  # above that of any clip of full scale; early in training exp() would overflow


class VocosConfig(PretrainedConfig):
    """Sizes of a `Vocos`."""

    model_type = "vocos"

    def __init__(
        self, n_mels: int = 64, bins: int = 513, dim: int = 256, intermediate_dim: int = 640, num_layers: int = 8,
        **others: Any,
    ) -> None:  # fmt: skip
        self.n_mels, self.bins = n_mels, bins
        self.dim, self.intermediate_dim, self.num_layers = dim, intermediate_dim, num_layers
        super().__init__(**others)


class ConvNeXtBlock(nn.Module):
    """x (B, T, C) + a depthwise convolution in time, layer norm, and two pointwise layers, scaled by channel."""

    def __init__(self, dim: int, intermediate_dim: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(dim, dim, KERNEL, padding=KERNEL // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.widen, self.narrow = nn.Linear(dim, intermediate_dim), nn.Linear(intermediate_dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor) -> Tensor:
        around = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return x + self.scale * self.narrow(F.gelu(self.widen(self.norm(around))))


class Vocos(PreTrainedModel):
    """Log-mel (B, T, F) -> (B, T, 2 * bins): corrections of each bin's log-magnitude, then phases in radians."""

    config_class = VocosConfig
    config: VocosConfig

    def __init__(self, config: VocosConfig) -> None:
        super().__init__(config)
        self.embed = nn.Conv1d(config.n_mels, config.dim, KERNEL, padding=KERNEL // 2)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(config.dim, config.intermediate_dim, 1 / config.num_layers) for _ in range(config.num_layers)
        )
        self.last_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.head = nn.Linear(config.dim, 2 * config.bins)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv1d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.norm(self.embed(mel.transpose(1, 2)).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.head(self.last_norm(x))
        return found


class InverseStft(nn.Module):
    """What `Vocos` found (B, T, 2 * bins), and its log-mel (B, T, F) -> waveform (B, T * hop_length), in float32."""

    inverse: Tensor

    def __init__(self, front_end: MelSpectrogram) -> None:
        super().__init__()
        self.mel = front_end
        self.register_buffer("inverse", torch.linalg.pinv(front_end.filters), persistent=False)  # (F, bins)

    def forward(self, found: Tensor, mel: Tensor) -> Tensor:
        with torch.autocast(found.device.type, enabled=False):
            corrections, phases = found.float().chunk(2, -1)
            first = (mel.float().exp() @ self.inverse).clamp(min=self.mel.floor).log()
            magnitudes = (first + corrections).clamp(max=MOST_LOG_MAGNITUDE).exp()
            spectrum = torch.polar(magnitudes, phases).transpose(1, 2)
            whole = torch.cat([spectrum, spectrum[..., -1:]], -1)  # the front-end drops the last frame
            front, length = self.mel, mel.shape[1] * self.mel.hop_length
            return torch.istft(
                whole, front.n_fft, front.hop_length, front.win_length, front.window, center=True, length=length
            )
