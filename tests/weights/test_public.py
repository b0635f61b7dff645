"""Public checkpoints: what is imported computes what its source computes, and nothing is passed over in silence."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stages.audio.level import without_offset
from stages.clap.model import load_clap
from stages.errors import ModelError
from stages.generate.pipeline import Pipeline
from stages.ldm.model import load_ldm
from stages.store import model_card, sha256, verify_model
from stages.tensors import read_tensors
from stages.vae.model import load_vae
from stages.vocoder.model import load_vocoder
from stages.weights.public import hifigan_sizes, import_clap, import_pipeline, import_vae, import_vocoder, sizes_of
from tests.weights.conftest import SCALE

CLOSE = 1e-4  # of the output's standard deviation; a wrong tensor moves it by more than 1e-2


@pytest.fixture(scope="module")
def imported(source, main_file, tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / "ldm"
    assert import_pipeline([main_file], out, source.params, tokenizer, {"licence": "test"}) == []
    return out


def same(ours, theirs):
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01
    return float((ours - theirs).abs().max() / theirs.std())


@torch.no_grad()
def test_the_unet_computes_what_its_source_does_from_the_moving_average(source, imported):
    torch.manual_seed(0)
    z, t = torch.randn(2, *source.params.latent_shape), torch.tensor([7, 930])
    y = F.normalize(torch.randn(2, source.params.clap.projection_dim), dim=-1)
    expected, ldm = source.unet(z, t, y), load_ldm(imported)
    assert same(ldm(z, t, y), expected) < CLOSE
    assert same(ldm(z, t, y.flip(0)), expected) > 0.05  # else the condition's way would not be tested


@torch.no_grad()
def test_the_vae_computes_what_its_source_does(source, imported):
    torch.manual_seed(0)
    vae, mel = load_vae(imported), torch.randn(2, 128, 64)
    expected = source.vae.moments(mel)
    assert same(torch.cat(vae.encode(mel), 1), expected) < CLOSE
    z = torch.randn(2, *source.params.latent_shape)
    assert same(vae.decode(z), source.vae.decode(z)) < CLOSE
    assert vae.scale == pytest.approx(SCALE)


@torch.no_grad()
def test_the_vocoder_computes_what_its_source_does(source, imported):
    torch.manual_seed(0)
    mel = 3 * torch.randn(2, 40, 64)
    assert same(load_vocoder(imported)(mel), without_offset(source.vocoder(mel)[:, : 40 * 160], 16_000)) < CLOSE


@torch.no_grad()
def test_clap_computes_what_its_source_does(source, imported):
    torch.manual_seed(0)
    clap, texts = load_clap(imported), ["dramatic trailer", "calm piano with strings", ""]
    text = source.clap.text(clap.tokenize(texts, "max_length"))
    assert same(clap.embed_text(texts), text) < CLOSE
    assert same(clap.embed_text(texts).flip(0), text) > 0.01
    audio = 0.1 * torch.randn(2, source.params.clap.window_samples)
    heard = source.clap.audio(clap.mel(audio))
    assert same(clap.embed_audio(audio, source.params.clap.sample_rate), heard) < CLOSE
    assert same(clap.embed_audio(audio.flip(-1), source.params.clap.sample_rate), heard) > 0.002
    assert float(clap.model.logit_scale_t) == pytest.approx(2.7)


def test_the_folder_is_sealed_says_where_it_comes_from_and_generates(source, imported, main_file, typed):
    assert verify_model(imported) == []
    card = model_card(imported, "ldm")
    assert card["licence"] == "test"
    assert card["imported_from"][0]["file"] == main_file.name
    code, told, _ = typed(imported.parent, "model", "info", imported.name)
    assert code == 0
    assert f"file {main_file.name}, sha256 {sha256(main_file)}" in told
    pipeline = Pipeline.load(imported, "cpu")
    assert torch.allclose(pipeline.ldm.null, pipeline.embed([""])[0])  # the public code's unconditional branch
    assert pipeline.decode(torch.randn(1, *source.params.latent_shape)).isfinite().all()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: s.pop("model.diffusion_model.out.2.bias"), "model.diffusion_model.out.2.bias is missing"),
        (
            lambda s: s.update({"first_stage_model.surplus": torch.zeros(2, 3)}),
            "first_stage_model.surplus 2 x 3 has no",
        ),
        (lambda s: s.update({"betas": torch.full((1000,), 0.01)}), "betas has other values than ldm.beta_start"),
        (lambda s: s.pop("scale_factor"), "scale_factor, the scale of the latents, is missing"),
        (
            lambda s: s.update({"cond_stage_model.model.logit_scale_a": torch.zeros(1)}),
            "cond_stage_model.model.logit_scale_a is 1, it should be a scalar",
        ),
        (
            lambda s: s.update({"first_stage_model.quant_conv.weight": torch.zeros(16, 16)}),
            "first_stage_model.quant_conv.weight is 16 x 16, it should be 16 x 16 x 1 x 1",
        ),
    ],
)
def test_every_tensor_is_accounted_for(source, tokenizer, tmp_path, spoil, said):
    state = {name: t for name, t in source.state.items() if not name.startswith("model_ema.")}
    spoil(state)
    torch.save({"state_dict": state}, tmp_path / "main.ckpt")
    with pytest.raises(ModelError) as caught:
        import_pipeline([tmp_path / "main.ckpt"], tmp_path / "out", source.params, tokenizer, {})
    assert said in caught.value.message
    assert "(1 tensors)" in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["main.ckpt"]  # nothing half-written


def test_an_average_that_lacks_a_weight_is_refused(source, tokenizer, tmp_path):
    state = dict(source.state)
    for name in ("out2bias", "time_embed0weight"):
        state.pop(f"model_ema.diffusion_model{name}")
    torch.save({"state_dict": state}, tmp_path / "main.ckpt")
    with pytest.raises(ModelError, match=r"time_embed.0.weight, model.diffusion_model.out.2.bias\.$"):
        import_pipeline([tmp_path / "main.ckpt"], tmp_path / "out", source.params, tokenizer, {})


def test_sizes_that_differ_are_listed(main_file, tokenizer, tmp_path):
    with pytest.raises(ModelError, match=r"does not fit \(\d+ tensors\):\n  model\.diffusion_model\..* it should be"):
        import_pipeline([main_file], tmp_path / "out", sizes_of("tiny"), tokenizer, {})


@torch.no_grad()
def test_parts_come_from_their_own_files_where_the_main_one_lacks_them(source, imported, tokenizer, tmp_path):
    vocoder = {"generator": source.vocoder.state_dict()}  # with weight norm
    clap = {f"module.{name}": t for name, t in source.clap.state_dict().items()}
    lacking = {
        n: t for n, t in source.state.items() if not n.startswith(("cond_stage_model.", "first_stage_model.voc"))
    }
    files = {
        "hifigan-ckpt.ckpt": vocoder, "clap-ckpt.pt": {"epoch": np.int64(15), "state_dict": clap},
        "vae-ckpt.ckpt": {"state_dict": {name: 0 * t for name, t in source.vae.state_dict().items()}},
        "musicldm-ckpt.ckpt": {"state_dict": lacking},
    }  # fmt: skip
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    paths = [tmp_path / name for name in files]
    remarks = import_pipeline(paths, tmp_path / "ldm", source.params, tokenizer, {})
    assert len(remarks) == 1
    assert "The VAE of" in remarks[0]  # the main checkpoint's goes before it
    whole, ours = Pipeline.load(imported, "cpu"), Pipeline.load(tmp_path / "ldm", "cpu")
    for (name, wanted), found in zip(whole.state_dict().items(), ours.state_dict().values(), strict=True):
        assert torch.allclose(wanted, found, atol=1e-6), name

    import_vocoder(paths[:1], tmp_path / "vocoder", source.params, {})
    mel = torch.randn(1, 20, 64)
    assert torch.equal(load_vocoder(tmp_path / "vocoder")(mel), ours.vocoder(mel))
    import_clap(paths[1:2], tmp_path / "clap", source.params, tokenizer, {})
    assert torch.equal(load_clap(tmp_path / "clap").embed_text(["x"]), ours.clap.embed_text(["x"]))
    import_vae(paths[2:3], tmp_path / "vae", source.params, 1.5, {})
    assert load_vae(tmp_path / "vae").scale == 1.5


def test_a_learned_null_condition_is_kept(source, tokenizer, tmp_path):
    """As files have it that earlier versions exported."""
    null = torch.randn(source.params.clap.projection_dim)
    torch.save({"state_dict": source.state | {"null_condition": null}}, tmp_path / "main.ckpt")
    import_pipeline([tmp_path / "main.ckpt"], tmp_path / "ldm", source.params, tokenizer, {})
    assert torch.equal(load_ldm(tmp_path / "ldm").null, null)


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path(os.environ["MUSICLDM_TEST_MARK"]),))


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    monkeypatch.setenv("MUSICLDM_TEST_MARK", str(mark))
    for number, content in enumerate((Hostile(), {"state_dict": {"x": torch.zeros(1), "y": Hostile()}})):
        path = tmp_path / f"{number}.ckpt"
        torch.save(content, path)
        with pytest.raises(ModelError, match="is no checkpoint of tensors"):
            read_tensors(path)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match="is no checkpoint of tensors"):
        read_tensors(path)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"no checkpoint at all"])
def test_other_files_are_refused_in_one_sentence(tmp_path, content):
    for name in ("x.ckpt", "x.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match="is no checkpoint of tensors"):
            read_tensors(tmp_path / name)
    with pytest.raises(ModelError, match="There is no"):
        read_tensors(tmp_path / "absent.ckpt")


def test_families_are_of_their_published_sizes():
    large = sizes_of("audioldm-l")
    assert large.ldm.attention_heads == [4, 8, 12, 20]
    assert large.clap.audio.embed_dim == 96
    assert sizes_of("musicldm").latent_shape == (8, 256, 16)
    with pytest.raises(ModelError, match="--like audioldm2 is none of musicldm, audioldm-s"):
        sizes_of("audioldm2")


def test_sizes_of_a_vocoder_come_from_its_published_config(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(
        '{"resblock": "1", "upsample_rates": [8,8,2,2], "upsample_kernel_sizes": [16,16,4,4], "fmax": 8000,'
        '"upsample_initial_channel": 512, "resblock_kernel_sizes": [3,7,11], "num_mels": 80, "n_fft": 1024, "fmin": 0,'
        '"resblock_dilation_sizes": [[1,3,5],[1,3,5],[1,3,5]], "hop_size": 256, "win_size": 1024,'
        '"sampling_rate": 22050}'
    )
    params = sizes_of("released", hifigan_sizes(config))
    assert (params.mel.n_mels, params.vocoder.initial_channels, params.audio.sample_rate) == (80, 512, 22_050)
    config.write_text('{"resblock": "2"}')
    with pytest.raises(ModelError, match=r"is not the config.json of a HiFi-GAN"):
        hifigan_sizes(config)
