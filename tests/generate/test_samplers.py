"""Samplers on a diffusion whose answer is known, and guidance by its formula."""

import pytest
import torch
from torch import Generator

from stages.errors import UsageError
from stages.generate.samplers import SAMPLERS, guided, make_scheduler, normal, sample
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
    scheduler = make_scheduler(name, CONFIG | {"prediction_type": prediction}, 50, 0.0)
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
        scheduler = make_scheduler("ddim", CONFIG, 10, 1.0)
        drawn = generators(*seeds)
        return sample(predict, normal((2, 3, 4), drawn), scheduler, drawn, eta=1.0)

    assert torch.equal(run(5, 6)[1], run(6)[0])
    still = sample(predict, normal((2, 3, 4), generators(6)), make_scheduler("ddim", CONFIG, 10, 0.0), generators(6))
    assert not torch.allclose(run(6), still, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("plms", 10, 0.0), "none of ddim"), (("ddim", 0, 0.0), "between 1 and"), (("ddim", 1001, 0.0), "1000"),
     (("euler", 10, 0.5), "belongs to the sampler ddim"), (("ddim", 10, 1.5), "between 0 and 1")],
)  # fmt: skip
def test_impossible_settings_are_usage_errors(arguments, said):
    name, steps, eta = arguments
    with pytest.raises(UsageError, match=said):
        make_scheduler(name, CONFIG, steps, eta)
