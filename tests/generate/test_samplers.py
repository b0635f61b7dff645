"""Samplers on a diffusion whose answer is known, and guidance by its formula."""

import pytest
import torch
from torch import Generator

from stages.errors import UsageError
from stages.generate.samplers import guided, make_scheduler, normal, sample
from stages.generate.settings import SAMPLERS, Settings
from stages.ldm.folder import scheduler as saved_scheduler
from stages.params import Ldm

CONFIG = dict(saved_scheduler(Ldm()).config)


def generators(*seeds):
    return [Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_every_sampler_draws_from_a_gaussian_with_the_exact_denoiser(name, prediction):
    """For data N(mu, s^2) the best prediction is known in closed form; samples must have that mean and spread."""
    mu, s = 2.0, 0.5
    scheduler = make_scheduler(name, CONFIG | {"prediction_type": prediction}, 50)
    alphas = scheduler.alphas_cumprod

    def predict(x, t):
        a = torch.as_tensor(alphas)[int(t)]
        if name == "euler":  # scale_model_input brought it to the variance-preserving x_t
            sigma = ((1 - a) / a) ** 0.5
            a = 1 / (1 + sigma**2)
        noise = (1 - a).sqrt() * (x - a.sqrt() * mu) / (a * s * s + 1 - a)
        clean = (x - (1 - a).sqrt() * noise) / a.sqrt()
        return noise if prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * clean

    noise = normal((4, 32, 8), generators(0, 1))
    found = sample(predict, noise, scheduler, generators(0, 1))
    assert found.mean().item() == pytest.approx(mu, abs=0.1)
    assert found.std().item() == pytest.approx(s, rel=0.12)


def test_guidance_is_its_formula_and_is_skipped_at_weight_one():
    seen = []

    def denoise(x, t, condition):
        seen.append(len(x))
        return x + condition.sum(1).view(-1, 1, 1, 1)

    x, condition, null = torch.zeros(2, 1, 1, 1), torch.tensor([[1.0], [2.0]]), torch.tensor([[10.0], [20.0]])
    found = guided(denoise, condition, null, torch.tensor([3.0, 0.0]))(x, torch.tensor(1))
    assert found.flatten().tolist() == [10 + 3 * (1 - 10), 20]
    assert guided(denoise, condition, null, torch.ones(2))(x, torch.tensor(1)).flatten().tolist() == [1, 2]
    assert seen == [4, 2]


def test_with_eta_each_clip_has_its_own_noise():
    def predict(x, t):
        return 0.1 * x

    def run(*seeds):
        scheduler = make_scheduler("ddim", CONFIG, 10)
        drawn = generators(*seeds)
        return sample(predict, normal((2, 3, 4), drawn), scheduler, drawn, eta=1.0)

    assert torch.equal(run(5, 6)[1], run(6)[0])
    still = sample(predict, normal((2, 3, 4), generators(6)), make_scheduler("ddim", CONFIG, 10), generators(6))
    assert not torch.allclose(run(6), still, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("plms", 10, 0.0, 1), "none of ddim"), (("ddim", 0, 0.0, 1), "--steps 0 is less than 1"),
     (("euler", 10, 0.5, 1), "belongs to the sampler ddim"), (("ddim", 10, 1.5, 1), "between 0 and 1"),
     (("ddim", 10, 0.0, 0), "--candidates 0 is less"), (("ddim", 10, 0.0, 1, (0.8, 0.2)), "the lower first"),
     (("ddim", 10, 0.0, 1, (0.0, 1.0), float("nan")), "--avoid-copies nan"),
     (("ddim", 10, 0.0, 1, (0.0, 1.0), 0.0, 0), "--reuse 0 is less")],
)  # fmt: skip
def test_impossible_settings_are_usage_errors(arguments, said):
    with pytest.raises(UsageError, match=said):
        Settings(*arguments)


def test_a_diffusion_has_so_many_steps_and_no_more():
    assert len(make_scheduler("unipc", CONFIG, 1000).timesteps) == 1000
    with pytest.raises(UsageError, match="1001 is more than the model's 1000"):
        make_scheduler("unipc", CONFIG, 1001)
