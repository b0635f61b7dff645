"""The sampler few-steps: DDIM at the student's times by the model's own weights, and when it is taken."""

import json
import shutil
from itertools import pairwise

import pytest
import soundfile
import torch

from stages.generate.pipeline import Pipeline
from stages.generate.prompts import Prompt
from stages.generate.samplers import make_scheduler, sample
from stages.generate.settings import Settings
from stages.ldm import diffusion, lora
from stages.ldm.folder import scheduler as saved_scheduler
from stages.ldm.model import load_ldm
from stages.params import Ldm
from stages.store import CARD, model_card, model_folder, verify_model
from tests import DEMO

SONG = str(DEMO / "flare_battle_theme.ogg")


@pytest.fixture(scope="module")
def model(toy_models, tmp_path_factory):
    """The toy pipeline with random updates for four steps."""
    source, out = toy_models / "ldm", tmp_path_factory.mktemp("few") / "few"
    card = model_card(source, "ldm")
    about = {key: value for key, value in card.items() if key not in ("schema", "kind", "musicldm", "files")}
    network = load_ldm(source)
    lora.add(network, 4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    with model_folder(out, "ldm", about | {"few_steps": {"params": {"steps": 4}}}) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CARD))
        lora.save(network, folder / lora.FEW_STEPS)
    return out


@pytest.fixture
def call(typed, tmp_path, model):
    def run(*words):
        code, out, err = typed(tmp_path, "generate", "--model", model, *words)
        return code, " ".join(out.split()), " ".join(err.split())

    return run


def row(folder):
    return json.loads((folder / "manifest.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_sampler_is_ddim_from_one_of_the_students_times_to_the_next(prediction):
    """And not at the even times of the DDIM of diffusers, of which the last is not that of clean latents."""
    config = dict(saved_scheduler(Ldm()).config) | {"prediction_type": prediction}
    alpha_bar = diffusion.alphas_cumprod(Ldm())
    times = diffusion.few_times(4, 1000)
    assert times.tolist() == [999, 749, 500, 250, 0]
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = make_scheduler("few-steps", config, 4)
    found = sample(lambda z, t: 0.3 * z.tanh() + 1e-3 * t, x, scheduler, [torch.Generator(), torch.Generator()])
    for now, then in pairwise(times):
        (signal, sigma), (kept, noise) = (diffusion.levels(alpha_bar, t.view(1), x) for t in (now, then))
        predicted = 0.3 * x.tanh() + 1e-3 * now
        if prediction == "epsilon":
            clean, drawn = (x - sigma * predicted) / signal, predicted
        else:
            clean, drawn = signal * x - sigma * predicted, sigma * x + signal * predicted
        x = kept * clean + noise * drawn
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


def test_they_are_the_default_of_a_model_that_has_them(call, tmp_path):
    code, _, err = call("calm", "--out", "a")
    assert (code, "Sampler: few-steps (4 steps" in err) == (0, True), err
    made = row(tmp_path / "a")
    assert [made[key] for key in ("sampler", "steps", "guidance")] == ["few-steps", 4, 1.0]
    assert "guidance_interval" not in made
    before = (tmp_path / "a" / "calm-0.wav").read_bytes()
    assert call("calm", "--out", "a", "--sampler", "few-steps")[0] == 0
    assert row(tmp_path / "a") == made  # nothing was to be made
    assert call("calm", "--out", "b", "--sampler", "few-steps", "--seconds", "3", "--candidates", "2")[0] == 0
    assert soundfile.info(tmp_path / "b" / "calm-0.wav").duration == pytest.approx(3)
    assert call("calm", "--out", "c.wav")[0] == 0
    assert (tmp_path / "c.wav").read_bytes()[-10_000:] == before[-10_000:]


@pytest.mark.parametrize(
    ("words", "sampler"),
    [(("--steps", "2"), "unipc"), (("--guidance", "3"), "unipc"), (("--negative", "slow"), "unipc"),
     (("--sampler", "ddim", "--steps", "2"), "ddim"), (("-S", "generate.steps=2"), "unipc"),
     (("-S", "generate.guidance=3", "-S", "generate.steps=2"), "unipc"),
     (("--continue", SONG, "--seconds", "62"), "unipc"), (("--loop", "--bars", "1"), "unipc")],
)  # fmt: skip
def test_they_give_way_to_whatever_they_cannot_do(call, tmp_path, words, sampler):
    code, _, err = call("calm", "--out", "a.wav", *words)
    assert (code, "few-steps" in err) == (0, False), err
    assert row(tmp_path)["sampler"] == sampler


@pytest.mark.parametrize(
    ("words", "told"),
    [(("--steps", "2"), "--steps does not go"), (("--guidance", "2"), "--guidance does not go"),
     (("--negative", "slow"), "--negative does not go"), (("--reuse", "2"), "--reuse does not go"),
     (("--avoid-copies", "1"), "--avoid-copies does not go")],
)  # fmt: skip
def test_asked_for_they_refuse_it(call, tmp_path, monkeypatch, words, told):
    monkeypatch.setattr(Pipeline, "load", None)
    for chosen in (("--sampler", "few-steps"), ("-S", "generate.sampler=few-steps")):
        code, _, err = call("calm", *chosen, *words)
        assert (code, told in err) == (2, True), err
    assert list(tmp_path.iterdir()) == []


def test_a_prompts_file_with_guidance_of_its_own(call, tmp_path):
    (tmp_path / "p.csv").write_text("prompt,guidance\ncalm,1.5\nfast,\n")
    code, _, err = call("--prompts", "p.csv", "--out", "a", "--sampler", "few-steps")
    assert (code, "a column guidance or negative does not go" in err) == (2, True), err
    assert call("--prompts", "p.csv", "--out", "a", "-S", "generate.steps=2")[0] == 0
    (tmp_path / "p.csv").write_text("prompt,guidance\ncalm,\nfast,\n")
    assert call("--prompts", "p.csv", "--out", "b")[0] == 0
    assert [row(tmp_path / name)["sampler"] for name in "ab"] == ["unipc", "few-steps"]


def test_a_model_without_them_says_so(call, toy_models):
    code, _, err = call("calm", "--sampler", "few-steps", "--model", toy_models / "ldm")
    assert (code, "has no weights for few steps" in err, "musicldm train few-steps" in err) == (5, True, True), err


def test_its_weights_are_added_only_for_it_and_go_with_the_folder(model, toy_models, tmp_path, typed):
    prompt = Prompt("p", "calm", 0, None, 1.0, 1.28)
    few, four = Settings("few-steps", 4, 0.0, 1), Settings("ddim", 4, 0.0, 1)
    with_them, without = Pipeline.load(model, "cpu", few_steps=True), Pipeline.load(model, "cpu")
    assert not torch.allclose(with_them.waveforms([prompt], [0], few)[0], without.waveforms([prompt], [0], four)[0])
    plain = Pipeline.load(toy_models / "ldm", "cpu")
    assert torch.equal(without.waveforms([prompt], [0], four)[0], plain.waveforms([prompt], [0], four)[0])
    for pipeline, settings in ((with_them, four), (without, few)):
        with pytest.raises(ValueError, match="loaded with few_steps"):
            pipeline.waveforms([prompt], [0], settings)

    code, told, err = typed(tmp_path, "model", "info", model)
    assert (code, "few_steps" in told) == (0, True), err
    assert typed(tmp_path, "model", "export", model, "half", "--to", "half")[0] == 0
    assert verify_model(tmp_path / "half") == []
    half = Pipeline.load(tmp_path / "half", "cpu", few_steps=True)
    assert half.waveforms([prompt], [0], few)[0].isfinite().all()
    assert typed(tmp_path, "model", "export", model, "theirs", "--to", "diffusers")[0] == 0
    assert not (tmp_path / "theirs" / lora.FEW_STEPS).exists()
