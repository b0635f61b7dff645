"""A pipeline that ends in a Vocos instead of a HiFi-GAN."""

import re

import pytest
import torch

from stages import params as parameters
from stages.errors import ModelError
from stages.generate.backends import Backend, use_backend
from stages.generate.pipeline import Pipeline
from stages.generate.prompts import Prompt
from stages.generate.settings import Settings
from stages.generate.windows import vocode
from stages.ldm.folder import save_pipeline
from stages.ldm.model import load_ldm
from stages.store import model_card, model_folder
from stages.vocoder.model import build
from stages.weights.diffusers_folder import export_diffusers, import_diffusers

SMALL = ("vocoder.architecture=vocos", "vocoder.dim=32", "vocoder.intermediate_dim=64", "vocoder.num_layers=8")


@pytest.fixture(scope="module")
def pipeline_folder(toy_models, tmp_path_factory):
    """The toy pipeline with another vocoder, of random weights; as many layers as preset small has."""
    root = tmp_path_factory.mktemp("vocos")
    card = model_card(toy_models / "ldm")
    params = parameters.resolve(card["params"], SMALL)
    torch.manual_seed(0)
    with model_folder(root / "vocoder", "vocoder", card | {"params": params.model_dump(mode="json")}) as folder:
        build(params).save_pretrained(folder / "vocoder")
    model = load_ldm(toy_models / "ldm")
    model.params = params
    save_pipeline(model, toy_models / "clap", toy_models / "vae", root / "vocoder", root / "ldm", {"steps": 0})
    return root / "ldm"


def test_it_sounds_the_same_in_pieces_as_in_one(pipeline_folder):
    """stages.generate.windows gives each piece enough context for eight blocks and the inverse STFT."""
    vocoder = Pipeline.load(pipeline_folder, "cpu").vocoder
    mel = torch.randn(1, 700, 64, generator=torch.Generator().manual_seed(1)) - 4
    whole = vocoder(mel)
    assert whole.shape == (1, 700 * 160)
    torch.testing.assert_close(vocode(vocoder, mel, 256), whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("name", ["bf16", "eager"])
def test_a_clip_is_made_with_it_by_each_backend(pipeline_folder, tmp_path, name):
    reference, pipeline = (Pipeline.load(pipeline_folder, "cpu") for _ in range(2))
    use_backend(pipeline, Backend(name, name == "bf16", "for this test"), tmp_path)
    wanted = Prompt("a", "dramatic trailer", 1, None, 2.0, 1.28)
    settings = Settings("ddim", 2, 0.0, 1)
    expected, made = (one.waveforms([wanted], [0], settings) for one in (reference, pipeline))
    assert made.shape == (1, round(1.28 * 16_000))
    if name == "eager":
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    spectra = [torch.stft(x, 512, window=torch.hann_window(512), return_complex=True).abs() for x in (made, expected)]
    assert (spectra[0] - spectra[1]).abs().mean() < 0.1 * spectra[1].mean()


def test_what_has_no_place_for_it_says_so(pipeline_folder, toy_models, tmp_path):
    said = f"diffusers' MusicLDMPipeline has a HiFi-GAN at its end; {pipeline_folder} has another vocoder."
    with pytest.raises(ModelError, match=re.escape(said)):
        export_diffusers(pipeline_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError):
        import_diffusers(pipeline_folder, tmp_path / "out", {})
