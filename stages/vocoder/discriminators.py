"""HiFi-GAN's two families of discriminators and the losses between them and the generator (Kong et al. 2020)."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

LEAK = 0.1
WIDEST = 1024  # of the paper's layers, to which the widths below belong
PERIOD_WIDTHS = (32, 128, 512, 1024, 1024)
SCALE_LAYERS = (  # channels, kernel, stride, groups
    (128, 15, 1, 1), (128, 41, 2, 4), (256, 41, 2, 16), (512, 41, 4, 16), (1024, 41, 4, 16), (1024, 41, 1, 16),
    (1024, 5, 1, 1),
)  # fmt: skip
Judgement = tuple[Tensor, list[Tensor]]
"""Scores (B, N), and the features of every layer."""


def scaled(width: int, channels: int) -> int:
    """A paper's layer width where the widest layer is to have `channels`."""
    return max(1, width * channels // WIDEST)


class PeriodDiscriminator(nn.Module):
    """Sees the waveform folded at one period (section 2.3): (B, 1, L) -> scores and features."""

    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, *(scaled(width, channels) for width in PERIOD_WIDTHS)]
        strides = (3, 3, 3, 3, 1)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(widths[n], widths[n + 1], (5, 1), (stride, 1), padding=(2, 0)))
            for n, stride in enumerate(strides)
        )
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform: Tensor) -> Judgement:
        short = -waveform.shape[-1] % self.period
        folded = F.pad(waveform, (0, short), "reflect").unflatten(-1, (-1, self.period))
        return _judge(self.layers, self.last, folded)


class ScaleDiscriminator(nn.Module):
    """Sees the waveform at one resolution (section 2.3): (B, 1, L) -> scores and features."""

    def __init__(self, channels: int, spectral: bool) -> None:
        super().__init__()
        norm = spectral_norm if spectral else weight_norm
        layers, before = [], 1
        for width, kernel, stride, groups in SCALE_LAYERS:
            after = scaled(width, channels)
            shared = math.gcd(groups, before, after)
            layers.append(norm(nn.Conv1d(before, after, kernel, stride, kernel // 2, groups=shared)))
            before = after
        self.layers, self.last = nn.ModuleList(layers), norm(nn.Conv1d(before, 1, 3, padding=1))

    def forward(self, waveform: Tensor) -> Judgement:
        return _judge(self.layers, self.last, waveform)


class Discriminators(nn.Module):
    """All of them: waveform (B, L) -> one judgement each. Each scale after the first sees half the rate before."""

    def __init__(self, periods: list[int], scales: int, channels: int) -> None:
        super().__init__()
        self.periods = nn.ModuleList(PeriodDiscriminator(period, channels) for period in periods)
        self.scales = nn.ModuleList(ScaleDiscriminator(channels, spectral=n == 0) for n in range(scales))

    def forward(self, waveform: Tensor) -> list[Judgement]:
        waveform = waveform.unsqueeze(1)
        judgements = [judge(waveform) for judge in self.periods]
        for judge in self.scales:
            judgements.append(judge(waveform))
            waveform = F.avg_pool1d(waveform, 4, 2, padding=2)
        return judgements


def halves(judgements: list[Judgement]) -> tuple[list[Judgement], list[Judgement]]:
    """Judgements of the first and of the second half of a batch."""
    parts = [(scores.chunk(2), [feature.chunk(2) for feature in features]) for scores, features in judgements]
    first, second = ([(scores[n], [f[n] for f in features]) for scores, features in parts] for n in (0, 1))
    return first, second


def judge_loss(real: Iterable[Judgement], made: Iterable[Judgement]) -> Tensor:
    """Equation 1, summed over discriminators: mean (D(x) - 1)^2 + mean D(G(s))^2."""
    terms = [(1 - x).square().mean() + g.square().mean() for (x, _), (g, _) in zip(real, made, strict=True)]
    return torch.stack(terms).sum()


def maker_loss(made: Iterable[Judgement]) -> Tensor:
    """Equation 2, summed over discriminators: mean (D(G(s)) - 1)^2."""
    return torch.stack([(1 - scores).square().mean() for scores, _ in made]).sum()


def feature_loss(real: Iterable[Judgement], made: Iterable[Judgement]) -> Tensor:
    """Equation 4, summed over discriminators and layers: mean |D_i(x) - D_i(G(s))|; no gradient into x's side."""
    pairs = [(x, g) for (_, xs), (_, gs) in zip(real, made, strict=True) for x, g in zip(xs, gs, strict=True)]
    return torch.stack([F.l1_loss(g, x.detach()) for x, g in pairs]).sum()


def _judge(layers: nn.ModuleList, last: nn.Module, x: Tensor) -> Judgement:
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), LEAK)
        features.append(x)
    x = last(x)
    return x.flatten(1), [*features, x]
