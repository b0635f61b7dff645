"""The inner blocks of the UNet at every n-th denoising step only.

From one of many steps to the next what the inner blocks give hardly changes, and they are most of the work. Between
two whole steps only the outermost level is computed, on what they gave last (DeepCache, Ma et al. 2024).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Split(Protocol):
    """A UNet in two: z (B, C, H, W), t (), condition (B, D) -> the prediction (B, C, H, W)."""

    def whole(self, z: Tensor, t: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """The prediction, and what the inner blocks gave to the outermost level: (B, C', H, W)."""
        ...

    def outer(self, z: Tensor, t: Tensor, condition: Tensor, inner: Tensor) -> Tensor:
        """The prediction by the outermost level alone, on what the inner blocks gave at another time."""
        ...


class SplitUnet(nn.Module):
    """diffusers' UNet, of the kind that `stages.ldm.model.build_unet` makes, in two; together the same numbers."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def whole(self, z: Tensor, t: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        embedding, x, outer_skips = self._down(z, t, condition)
        first, *others = self.unet.down_blocks
        skips: list[Tensor] = []
        for downsampler in first.downsamplers or ():
            x = downsampler(x)
            skips.append(x)
        for block in others:
            x, made = block(x, embedding)
            skips += made
        x = self.unet.mid_block(x, embedding)
        uneven = any(size % 2**self.unet.num_upsamplers for size in z.shape[-2:])  # as loops may be
        for block in self.unet.up_blocks[:-1]:
            count = len(block.resnets)
            used, skips = skips[-count:], skips[:-count]
            size = (skips or outer_skips)[-1].shape[2:] if uneven else None
            x = block(x, tuple(used), embedding, upsample_size=size)
        return self._up(x, outer_skips, embedding), x

    def outer(self, z: Tensor, t: Tensor, condition: Tensor, inner: Tensor) -> Tensor:
        embedding, _, skips = self._down(z, t, condition)
        return self._up(inner, skips, embedding)

    def _down(self, z: Tensor, t: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Embedding (B, E) of time and condition; the outermost level on the way down, and its skip connections."""
        unet = self.unet
        time = unet.time_embedding(unet.get_time_embed(sample=z, timestep=t))
        embedding = torch.cat([time, unet.class_embedding(condition)], dim=-1)
        x = unet.conv_in(z)
        skips = [x]
        for resnet, attention in _layers(unet.down_blocks[0]):
            x = attention(resnet(x, embedding))
            skips.append(x)
        return embedding, x, skips

    def _up(self, x: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        unet = self.unet
        for (resnet, attention), skip in zip(_layers(unet.up_blocks[-1]), reversed(skips), strict=True):
            x = attention(resnet(torch.cat([x, skip], dim=1), embedding))
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))


def _layers(block: Any) -> Iterable[tuple[Any, Any]]:
    """The residual layers of a block, each with the attention behind it, or with nothing."""
    attentions = getattr(block, "attentions", None)
    if attentions is None:
        return ((resnet, _same) for resnet in block.resnets)
    return ((resnet, _Attention(each)) for resnet, each in zip(block.resnets, attentions, strict=True))


def _same(x: Tensor) -> Tensor:
    return x


class _Attention:
    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer

    def __call__(self, x: Tensor) -> Tensor:
        return self.transformer(x, return_dict=False)[0]


@dataclass(frozen=True)
class _Kept:
    """What the inner blocks gave at a step, and the conditions (B, D) they were computed for."""

    step: int
    condition: Tensor
    inner: Tensor


class Reuse:
    """A denoiser that computes the whole network at every `every`-th step of a sampling.

    The calls at one time are windows of one long piece; each has its own inner features. They are also computed where
    there are none that fit: none of the last `every` steps, or none for the same conditions, as when guidance began
    to add a branch or to steer away from another clip.
    """

    def __init__(self, unet: Split, every: int) -> None:
        self.unet, self.every = unet, every
        self.step, self.call, self.time = -1, -1, 0.0
        self.kept: dict[int, _Kept] = {}

    def __call__(self, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        if float(t) > self.time:  # times only fall: this is the next sampling
            self.step = -1
            self.kept.clear()
        if float(t) != self.time or self.step < 0:
            self.step, self.call, self.time = self.step + 1, -1, float(t)
        self.call += 1
        kept = self.kept.get(self.call)
        if kept is not None and self._fits(kept, condition):
            return self.unet.outer(z, t, condition, kept.inner)
        result, inner = self.unet.whole(z, t, condition)
        self.kept[self.call] = _Kept(self.step, condition, inner)
        return result

    def _fits(self, kept: _Kept, condition: Tensor) -> bool:
        recent = self.step % self.every and self.step - kept.step < self.every
        return bool(recent) and torch.equal(kept.condition, condition)
