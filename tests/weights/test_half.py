"""A model at half its size on disk."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stages.generate.pipeline import Pipeline
from stages.generate.prompts import Prompt
from stages.generate.settings import Settings
from stages.store import model_card, model_digest, verify_model
from stages.weights.describe import describe
from stages.weights.half import export_half
from tests.conftest import CLIP_SECONDS


@pytest.fixture(scope="module")
def half(toy_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("half") / "ldm"
    export_half(toy_models / "ldm", folder)
    return folder


def test_it_is_sealed_half_as_large_and_says_whose_half_it_is(toy_models, half):
    assert verify_model(half) == []
    whole = toy_models / "ldm"
    card, before = model_card(half, "ldm"), model_card(whole, "ldm")
    assert card["half_of"] == model_digest(whole) != model_digest(half)
    assert card["files"].keys() == before["files"].keys()
    assert card["params"] == before["params"] and card["made_of"] == before["made_of"]
    sizes = [sum(f["bytes"] for name, f in c["files"].items() if name.endswith("safetensors")) for c in (card, before)]
    assert 0.45 < sizes[0] / sizes[1] < 0.6


def test_every_number_is_the_nearest_half_and_the_names_stay(toy_models, half):
    for name in ("unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model", "vocoder/model"):
        before, after = (load_file(folder / f"{name}.safetensors") for folder in (toy_models / "ldm", half))
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            assert torch.equal(after[key], tensor.half() if tensor.dtype == torch.float32 else tensor), key


def test_it_is_read_as_float32_and_sounds_the_same(toy_models, half):
    made = []
    for folder in (toy_models / "ldm", half):
        pipeline = Pipeline.load(folder)
        assert {parameter.dtype for parameter in pipeline.parameters()} == {torch.float32}
        prompt = Prompt("clip", "calm piano", 3, None, 2.0, CLIP_SECONDS)
        made.append(pipeline.waveforms([prompt], [0], Settings("ddim", 3, 0.0, 1))[0].numpy())
    assert np.abs(made[0]).max() > 0.01
    assert np.abs(made[0] - made[1]).max() < 0.05 * np.abs(made[0]).max()
    assert not np.array_equal(made[0], made[1])


def test_the_command_writes_it(toy_models, tmp_path, typed):
    export = ("--json", "model", "export", toy_models / "vae", tmp_path / "vae", "--licence", "CC-BY-SA-4.0")
    code, out, _ = typed(tmp_path, *export, "--to", "half")
    assert code == 0 and json.loads(out)["paths"] == [str(tmp_path / "vae")]
    assert verify_model(tmp_path / "vae") == []
    assert describe(tmp_path / "vae")["licence"] == "CC-BY-SA-4.0"
    assert typed(tmp_path, *export)[0] == 2  # a diffusers folder says what the model's card says
