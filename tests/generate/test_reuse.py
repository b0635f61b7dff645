"""A UNet in two parts is the UNet, and inner blocks at every n-th step change little between many steps."""

import pytest
import torch
from torch.nn.functional import normalize

from stages.audio.mel import clip_mel
from stages.generate.gate import steered
from stages.generate.pipeline import Pipeline
from stages.generate.prompts import Prompt
from stages.generate.reuse import Reuse, SplitUnet
from stages.generate.samplers import Away, Diffusion, guided
from stages.generate.settings import Settings, automatic_reuse
from stages.ldm.model import build_unet
from stages.params import resolve


@pytest.mark.parametrize(
    ("ldm", "size"),
    [
        ({}, (16, 4)),
        ({}, (15, 3)),  # a loop may have any length
        ({"block_out_channels": [32], "attention": [True]}, (8, 4)),  # one level, which attends
        ({"block_out_channels": [32, 32, 64], "attention": [True, False, True], "layers_per_block": 2}, (16, 4)),
    ],
)
def test_the_two_parts_are_diffusers_unet(ldm, size):
    params = resolve({"preset": "tiny", "ldm": ldm})
    torch.manual_seed(0)
    unet = build_unet(params).eval()
    z, t = torch.randn(2, params.latent_shape[0], *size), torch.tensor([500.0])
    condition = normalize(torch.randn(2, params.clap.projection_dim), dim=1)
    with torch.no_grad():
        expected = unet(z, t, encoder_hidden_states=None, class_labels=condition, return_dict=False)[0]
        found, inner = SplitUnet(unet).whole(z, t, condition)
        again = SplitUnet(unet).outer(z, t, condition, inner)
        other = SplitUnet(unet).outer(z, t, condition, inner.flip(0))
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)
    assert not torch.allclose(other, expected, atol=1e-3)


class _Counting:
    """Tells which part was called with how many rows."""

    def __init__(self):
        self.calls = []

    def whole(self, z, t, condition):
        self.calls.append(("whole", len(z)))
        return z, z + 1

    def outer(self, z, t, condition, inner):
        self.calls.append(("outer", len(z)))
        assert torch.equal(inner, self.first + 1)
        return z


def test_every_nth_step_is_whole_for_each_window_and_each_sampling():
    unet = _Counting()
    denoise = Reuse(unet, 3)
    unet.first = torch.zeros(2, 1, 1, 1)
    windows = [torch.zeros(2, 1, 1, 1)] * 2
    for _sampling in range(2):
        for time in (900.0, 700.0, 500.0, 300.0, 100.0):
            for window in windows:
                denoise(window, torch.tensor(time), torch.zeros(2, 4))
    kinds = [kind for kind, _ in unet.calls]
    assert kinds == (["whole"] * 2 + ["outer"] * 4 + ["whole"] * 2 + ["outer"] * 2) * 2
    denoise(windows[0][:1], torch.tensor(50.0), torch.zeros(1, 4))  # guidance ended: the kept features do not fit
    assert unet.calls[-1] == ("whole", 1)


class _Dated:
    """Its inner features say when and for which conditions they were computed; `outer` notes how old they are."""

    def __init__(self):
        self.ages, self.strange = [], 0

    def whole(self, z, t, condition):
        return torch.zeros_like(z), torch.cat([t.expand(len(z), 1), condition], dim=1)

    def outer(self, z, t, condition, inner):
        self.ages.append(float(inner[0, 0] - t))
        self.strange += not torch.equal(inner[:, 1:], condition)
        return torch.zeros_like(z)


def test_steering_away_takes_no_features_of_long_ago_or_of_another_neighbour():
    """Where the neighbour is looked up a time is predicted twice, and the second pass has no features of its own
    from the step before: it must not take those of the look-up before."""
    unet, process = _Dated(), Diffusion(torch.linspace(0.99, 0.01, 1000), "epsilon")
    away, times, looked = Away(1.0), torch.arange(990, -1, -10), []

    def like(clean):
        looked.append(len(looked))
        return torch.full((1, 4), float(len(looked)))

    predict = guided(Reuse(unet, 4), torch.ones(1, 4), torch.zeros(1, 4), torch.tensor([2.0]), away=away)
    predict = steered(predict, away, like, process, times)
    for time in times:
        predict(torch.zeros(1, 1, 1, 1), time)
    assert looked == [0, 1, 2]
    assert max(unet.ages) <= 30  # three steps of ten
    assert unet.strange == 0
    assert len(unet.ages) > 60


def test_published_recipes_sample_exactly():
    paper, released = (resolve({"preset": name}).generate for name in ("paper", "released"))
    assert (paper.sampler, paper.steps, paper.reuse, paper.eta, paper.candidates) == ("ddim", 200, 1, 0.0, 1)
    assert (released.sampler, released.reuse, released.eta, released.candidates) == ("ddim", 1, 1.0, 5)


def test_how_often_nobody_says():
    assert [automatic_reuse(steps) for steps in (1, 20, 50, 99, 100, 200, 1000)] == [1, 1, 1, 1, 2, 4, 4]


def test_reused_inner_blocks_are_nearer_than_half_the_steps(toy_models):
    """To all blocks at every one of 40 steps; mean |difference| of log-mels. Measured: 0.008 and 0.031, where another
    seed's clip is at 0.34."""
    pipeline = Pipeline.load(toy_models / "ldm", "cpu")
    mel = clip_mel(pipeline.params)

    def made(steps, reuse):
        wanted = Prompt("a", "dramatic trailer", 1, None, 2.0, 1.28)
        return mel(pipeline.waveforms([wanted], [0], Settings("ddim", steps, 0.0, 1, reuse=reuse)))

    exact = made(40, 1)
    reused, half = ((made(*way) - exact).abs().mean() for way in ((40, 2), (20, 1)))
    assert 0 < reused < 0.5 * half
