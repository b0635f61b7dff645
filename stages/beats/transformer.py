"""Beat Transformer: beats and downbeats from spectrograms by dilated self-attention.

Zhao, Xia and Wang, "Beat Transformer: Demixed Beat and Downbeat Tracking with Dilated Self-Attention" (ISMIR
2022). With the default sizes it is the published network, parameter by parameter, so that its checkpoints load
strictly. With one stem, the mix alone, there is no attention between instruments; that is what we train.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

N_MELS = 128  # the three convolutions and poolings take exactly these down to one
HEADS = 8
PLACES = 5  # that each head looks at, a dilation apart
SKEW = (0, 0, 0, 0, -2, -1, 1, 2)  # of each head's places, in dilations: four look both ways, two back, two ahead
KEY_OF_HEAD = (0, 1, 2, 3, 4, 5, 6, 6)  # the published weights were trained with the seventh head's key for the last
INSTRUMENT_LAYERS = (3, 4, 5)  # followed by attention between the stems
TEMPO_BINS = 300


@dataclass(frozen=True)
class Sizes:
    """What a Beat Transformer's shape follows from; the defaults are the published network."""

    stems: int = 5
    channels: tuple[int, int] = (32, 64)  # of the first two convolutions
    width: int = 256
    feedforward: int = 1024
    layers: int = 9


class BeatTransformer(nn.Module):
    """Log-mel (B, S, T, 128) -> beat and downbeat logits (B, T, 2), tempo logits (B, 300), 1 BPM a bin.

    Time and memory are linear in T: layer n attends to five frames, 2**n apart.
    """

    def __init__(self, sizes: Sizes, dropout: float = 0.1) -> None:
        super().__init__()
        self.sizes = sizes
        first, second = sizes.channels
        self.conv1 = nn.Conv2d(1, first, (5, 3), padding=(2, 0))
        self.conv2 = nn.Conv2d(first, second, (1, 12))
        self.conv3 = nn.Conv2d(second, sizes.width, (3, 6), padding=(1, 0))
        self.dropout = nn.Dropout(dropout)
        self.Transformer_layers = nn.ModuleDict()
        for layer in range(sizes.layers):
            block = DilatedLayer(sizes.width, sizes.feedforward, 2**layer, dropout)
            self.Transformer_layers[f"time_attention_{layer}"] = block
            if sizes.stems > 1 and layer in INSTRUMENT_LAYERS:
                self.Transformer_layers[f"instr_attention_{layer}"] = nn.TransformerEncoderLayer(
                    sizes.width, HEADS, sizes.feedforward, dropout, batch_first=True, norm_first=True
                )
        self.out_linear = nn.Linear(sizes.width, 2)
        self.dropout_t = nn.Dropout(0.5)
        self.out_linear_t = nn.Linear(sizes.width, TEMPO_BINS)

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        batch, stems, frames, _ = mel.shape
        x = self.embed(mel.reshape(batch * stems, frames, N_MELS))
        skips = x.new_zeros(())
        for layer in range(self.sizes.layers):
            x, attended = self.Transformer_layers[f"time_attention_{layer}"](x)
            skips = skips + attended.view(batch, stems, frames, -1).mean(1)
            name = f"instr_attention_{layer}"
            if name in self.Transformer_layers:
                across = x.view(batch, stems, frames, -1).transpose(1, 2).reshape(batch * frames, stems, -1)
                across = self.Transformer_layers[name](across).view(batch, frames, stems, -1)
                x = across.transpose(1, 2).reshape(batch * stems, frames, -1)
        logits = self.out_linear(x.relu().view(batch, stems, frames, -1).mean(1))
        tempo = self.out_linear_t(self.dropout_t(skips.relu()).mean(1))
        return logits, tempo

    def embed(self, mel: Tensor) -> Tensor:
        """(N, T, 128) -> (N, T, width): the spectrum of each frame and its three neighbours."""
        x = mel.unsqueeze(1)
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = self.dropout(F.max_pool2d(convolution(x), (1, 3)).relu())
        return x.squeeze(3).transpose(1, 2)


def widen(start: BeatTransformer, network: BeatTransformer) -> None:
    """Set `network`, of one stem, to compute what the narrower `start` does (Net2WiderNet, Chen et al. 2016).

    Every channel of `start` becomes as many of `network`'s as fit; what hears them divides its weights among them by
    chance, so that they can come to differ. Raises ValueError when a size is no multiple or the depths differ.
    """
    old, new = start.sizes, network.sizes
    pairs = [*zip(old.channels, new.channels, strict=True), (old.width, new.width), (old.feedforward, new.feedforward)]
    if (old.stems, old.layers) != (new.stems, new.layers) or old.stems != 1 or any(b % a for a, b in pairs):
        raise ValueError(f"{old} does not widen to {new}")
    first, second = (torch.arange(b) % a for a, b in pairs[:2])
    width = torch.cat([torch.arange(new.width // HEADS) % (old.width // HEADS) + head * (old.width // HEADS)
                       for head in range(HEADS)])  # fmt: skip
    inner = torch.arange(new.feedforward) % old.feedforward
    into = {"conv1": (first, None), "conv2": (second, first), "conv3": (width, second), "linear1": (inner, width),
            "linear2": (width, inner), "key": (width, width), "value": (width, width), "query": (width, width),
            "norm1": (width, None), "norm2": (width, None), "out_linear": (None, width),
            "out_linear_t": (None, width)}  # fmt: skip
    state = {}
    for name, value in start.state_dict().items():
        *_, layer, kind = name.split(".")
        if kind == "Er":
            value = value[:, torch.arange(new.width // HEADS) % value.shape[1]]
        else:
            rows, columns = into[layer]
            value = value if rows is None else value[rows]
            if kind == "weight" and columns is not None:
                value = value[:, columns] * _shares(value[:, columns], columns)
            if layer == "query":  # the products are sums over more channels, divided by their root
                value = value * (old.width / new.width) ** 0.5
        state[name] = value
    network.load_state_dict(state)


def _shares(like: Tensor, columns: Tensor) -> Tensor:
    """Random weights of the shape of `like`, whose sum over the columns made of the same one is 1."""
    drawn = torch.rand_like(like) + 0.5
    total = torch.zeros_like(like).index_add_(1, columns, drawn)
    return drawn / total[:, columns]


class DilatedLayer(nn.Module):
    """One layer over time (N, T, width), normalised first; returns its output and what its attention added."""

    def __init__(self, width: int, feedforward: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = DilatedAttention(width, dilation)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attended = self.dropout(self.self_attn(self.norm1(x)))
        x = x + attended
        return x + self.dropout(self.linear2(self.dropout(F.gelu(self.linear1(self.norm2(x)))))), attended


class DilatedAttention(nn.Module):
    """Eight heads (N, T, width) -> (N, T, width), each on five frames a dilation apart, with a learned bias a place.

    A frame's places outside the sound do not count. There is no projection of the output.
    """

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.key, self.value, self.query = (nn.Linear(width, width) for _ in range(3))
        self.Er = nn.Parameter(torch.randn(HEADS, width // HEADS, PLACES))

    def forward(self, x: Tensor) -> Tensor:
        batch, frames, width = x.shape
        query, key, value = (
            projection(x).view(batch, frames, HEADS, width // HEADS)
            for projection in (self.query, self.key, self.value)
        )
        keys, values = _spread(key, KEY_OF_HEAD, self.dilation), _spread(value, range(HEADS), self.dilation)
        bias = torch.einsum("bthc,hcp->bthp", query, self.Er)
        bias = bias.masked_fill(_outside(frames, self.dilation, x.device), -torch.inf)
        return _Mix.apply(query, keys, values, bias, self.dilation).view(batch, frames, width)


class _Mix(torch.autograd.Function):
    """softmax((query . keys + bias) / sqrt(C)) . values over the places, without a tensor of all places' vectors.

    query (N, T, H, C), keys and values (N, T + 4 dilation, H, C), bias (N, T, H, 5) -> (N, T, H, C). The gradient
    is written out because that of slices, taken one by one, costs a tensor of zeros for each.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, dilation: int) -> Tensor:
        frames, scale = query.shape[1], query.shape[3] ** -0.5
        scores = torch.stack([(query * part).sum(-1) for part in _places(keys, frames, dilation)], dim=-1)
        weights = ((scores + bias) * scale).softmax(-1)
        mixed = torch.zeros_like(query)
        for place, part in enumerate(_places(values, frames, dilation)):
            mixed.addcmul_(weights[..., place, None], part)
        ctx.save_for_backward(query, keys, values, weights)
        ctx.dilation = dilation
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, values, weights = ctx.saved_tensors
        frames, scale = query.shape[1], query.shape[3] ** -0.5
        to_query, to_keys, to_values = torch.zeros_like(query), torch.zeros_like(keys), torch.zeros_like(values)
        to_weights = torch.stack([(gradient * part).sum(-1) for part in _places(values, frames, ctx.dilation)], dim=-1)
        to_scores = weights * (to_weights - (weights * to_weights).sum(-1, keepdim=True)) * scale
        parts = zip(*(_places(x, frames, ctx.dilation) for x in (keys, to_keys, to_values)), strict=True)
        for place, (key, to_key, to_value) in enumerate(parts):
            to_query.addcmul_(to_scores[..., place, None], key)
            to_key.addcmul_(to_scores[..., place, None], query)
            to_value.addcmul_(weights[..., place, None], gradient)
        return to_query, to_keys, to_values, to_scores, None


def _places(spread: Tensor, frames: int, dilation: int) -> list[Tensor]:
    """Views (N, T, H, C) of what every frame sees at each of its places."""
    return [spread[:, place * dilation : place * dilation + frames] for place in range(PLACES)]


def _spread(x: Tensor, heads: Sequence[int], dilation: int) -> Tensor:
    """(N, T, H, C) -> (N, T + 4 dilation, H, C) in which every head's places start at the frame's own index."""
    batch, frames, _, size = x.shape
    spread = x.new_zeros(batch, frames + (PLACES - 1) * dilation, HEADS, size)
    for skew, group in groupby(range(HEADS), key=SKEW.__getitem__):
        mine = list(group)
        start = (PLACES // 2 - skew) * dilation
        first, last = heads[mine[0]], heads[mine[-1]]
        spread[:, start : start + frames, mine[0] : mine[-1] + 1] = x[:, :, first : last + 1]
    return spread


def _outside(frames: int, dilation: int, device: torch.device) -> Tensor:
    """(T, H, 5) bool: which places lie before the first or after the last frame."""
    steps = torch.arange(PLACES, device=device) - PLACES // 2 + torch.tensor(SKEW, device=device)[:, None]
    place = torch.arange(frames, device=device)[:, None, None] + steps * dilation
    return (place < 0) | (place >= frames)
