"""Where a training computes what: group norms of a CPU's bf16 training in float32."""

from types import SimpleNamespace

import torch
from torch import nn

from stages.training.devices import float_norms


def network():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))
    return layers.to(memory_format=torch.channels_last)


def accelerator(precision):
    return SimpleNamespace(device=torch.device("cpu"), mixed_precision=precision)


def seen_by_the_norm(layers, image):
    seen = []
    hook = layers[1].register_forward_hook(lambda _norm, given, made: seen.extend([given[0].dtype, made.dtype]))
    with torch.autocast("cpu", torch.bfloat16):
        made = layers(image)
    hook.remove()
    return seen, made


def test_norms_of_a_bf16_training_see_float32_and_only_meanwhile():
    layers, image = network(), torch.randn(2, 1, 16, 8)
    with float_norms([layers], accelerator("bf16")):
        seen, made = seen_by_the_norm(layers, image)
        assert seen == [torch.float32, torch.float32]
    after, plain = seen_by_the_norm(layers, image)
    assert after == [torch.bfloat16, torch.bfloat16]
    exact = layers(image)
    assert (made - exact).abs().max() <= 1.5 * (plain - exact).abs().max() < 0.05


def test_fp32_is_left_alone():
    layers = network()
    with float_norms([layers], accelerator("no")):
        assert not layers[1]._forward_pre_hooks
