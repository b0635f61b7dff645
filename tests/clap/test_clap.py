"""CLAP: fixed windows, its mel front-end against transformers', its loss, its tokenizer."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

from stages.audio.mel import clap_mel
from stages.clap import train as training
from stages.clap.model import Clap, build, load_clap, load_pretrained, windows
from stages.clap.tokenizer import SPECIAL_TOKENS, train_tokenizer
from stages.errors import DataError, ModelError
from stages.params import preset, resolve

DEMO = Path(__file__).parents[2] / "data" / "demo"
CAPTIONS = ["dramatic trailer with drums", "slow dramatic piano", "fast techno with drums and piano"]


def music(name="flare_battle_theme", seconds=12.0):
    samples, rate = soundfile.read(DEMO / f"{name}.ogg", frames=int(seconds * 16_000), dtype="float32")
    assert rate == 16_000
    return torch.from_numpy(samples)


@pytest.fixture(scope="module")
def clap():
    params = preset("tiny")
    torch.manual_seed(0)
    return Clap(params, build(params), train_tokenizer(CAPTIONS, 400, 77)).eval()


def test_the_paper_size_is_the_public_model():
    with torch.device("meta"):
        model = build(preset("paper"))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    # music_audioset_epoch_15_esc_90.14.pt: HTSAT-base and RoBERTa-base
    assert shapes["audio_model.audio_encoder.patch_embed.proj.weight"] == (128, 1, 4, 4)
    assert shapes["audio_model.audio_encoder.layers.2.blocks.11.attention.self.query.weight"] == (512, 512)
    assert shapes["audio_projection.linear1.weight"] == (512, 1024)
    assert shapes["text_model.embeddings.word_embeddings.weight"] == (50265, 768)
    assert shapes["text_model.embeddings.position_embeddings.weight"] == (514, 768)
    assert shapes["text_projection.linear2.weight"] == (512, 512)


def test_windows_cover_a_clip_and_are_fixed():
    ramp = torch.arange(25.0)[None]
    cut = windows(ramp, 10)
    assert cut[0, :, 0].tolist() == [0, 8, 15]  # 7.5 rounds to the even 8; the last is flush with the end
    assert cut[0, -1, -1] == 24
    assert torch.unique(cut).numel() == 25
    assert windows(ramp[:, :10], 10).shape == (1, 1, 10)
    assert windows(ramp[:, :4], 10)[0, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 0]
    with pytest.raises(DataError, match="without samples"):
        windows(ramp[:, :0], 10)


@pytest.mark.parametrize("seconds", [10.0, 3.7])
def test_mel_is_that_of_the_clap_feature_extractor(seconds):
    """At the paper's 48 kHz, whole and repeat-padded windows, of real music."""
    params = preset("paper")
    wave = np.repeat(music().numpy(), 3)[: int(48_000 * seconds)]  # any 48 kHz signal will do
    extractor = ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc", padding="repeatpad")
    wanted = extractor(wave, sampling_rate=48_000, return_tensors="np")["input_features"][0, 0]
    window = windows(torch.from_numpy(wave)[None], params.clap.window_samples)
    ours = clap_mel(params)(window[:, 0])[0].numpy()
    assert ours.shape == wanted.shape == (1001, 64)
    loud = wanted > -60  # float32 STFT noise shows in near-silent bins only
    assert loud.mean() > 0.5
    assert np.abs(ours - wanted)[loud].max() < 0.01
    assert np.abs(ours - wanted).mean() < 0.05


def test_embeddings_are_normalised_and_equal_to_the_bit(clap):
    audio = torch.stack([music(), music("flare_cave_theme")])
    first = clap.embed_audio(audio, 16_000)
    assert first.shape == (2, 64)
    assert torch.equal(first, clap.embed_audio(audio.clone(), 16_000))
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(clap.embed_audio(audio[:1], 16_000), first[:1], rtol=0, atol=1e-5)
    text = clap.embed_text(CAPTIONS)
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(clap.embed_text(CAPTIONS[1:2])[0], text[1], rtol=0, atol=1e-5)


def test_a_long_clip_is_the_mean_of_its_windows(clap):
    wave, size = music()[None], clap.params.clap.window_samples
    parts = torch.cat([clap.embed_audio(wave[:, :size], 16_000), clap.embed_audio(wave[:, -size:], 16_000)])
    torch.testing.assert_close(clap.embed_audio(wave, 16_000)[0], F.normalize(parts.mean(0), dim=-1), atol=1e-5, rtol=0)


def test_loss_against_the_formula():
    generator = torch.Generator().manual_seed(1)
    audio, text = (F.normalize(torch.randn(5, 8, generator=generator), dim=-1) for _ in range(2))
    found = training.contrastive_loss(audio, text, torch.tensor(7.0), torch.tensor(11.0))
    a, t, total = audio.double().numpy(), text.double().numpy(), 0.0
    for i in range(5):
        total -= math.log(math.exp(7 * a[i] @ t[i]) / sum(math.exp(7 * a[i] @ t[j]) for j in range(5)))
        total -= math.log(math.exp(11 * t[i] @ a[i]) / sum(math.exp(11 * t[i] @ a[j]) for j in range(5)))
    assert float(found) == pytest.approx(total / 10, rel=1e-5)


def test_loss_of_indistinguishable_pairs_is_log_n():
    same = F.normalize(torch.ones(6, 4), dim=-1)
    assert float(training.contrastive_loss(same, same, torch.tensor(100.0), torch.tensor(3.0))) == pytest.approx(
        math.log(6)
    )


def test_recall_counts_ranks():
    answers = torch.eye(12)
    queries = torch.eye(12)
    queries[0] = 0.5 * answers[0] + 0.6 * answers[1]  # its own answer comes second
    queries[1] = sum((2 - 0.1 * i) * answers[i] for i in range(2, 9)) + 0.5 * answers[1]  # and here eighth
    assert {k: round(float(v) * 12) for k, v in training.recall(queries, answers).items()} == {1: 10, 5: 11, 10: 12}


def test_scales_are_limited(clap):
    with torch.no_grad():
        clap.model.logit_scale_a.fill_(9.0)
    training.limit_scales(clap)
    assert clap.model.logit_scale_a.exp().item() == pytest.approx(100.0)
    assert float(clap.model.logit_scale_t.detach()) == pytest.approx(math.log(1 / 0.07))


def test_tokenizer_is_robertas_and_deterministic(tmp_path):
    tokenizer = train_tokenizer(CAPTIONS, 400, 16)
    again = train_tokenizer([*reversed(CAPTIONS), CAPTIONS[0], ""], 400, 16)
    assert tokenizer.get_vocab() == again.get_vocab()
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(["dramatic drums", "été 🎵 " * 20], padding=True, truncation=True)["input_ids"]
    assert loaded(["dramatic drums", "été 🎵 " * 20], padding=True, truncation=True)["input_ids"] == ids
    assert ids[0][0] == 0
    assert ids[0][-1] == 1
    assert 3 not in ids[1]  # bytes leave nothing unknown
    assert len(ids[1]) == loaded.model_max_length == 16
    assert loaded.decode(loaded("slow piano").input_ids, skip_special_tokens=True) == "slow piano"
    assert len(loaded(" drums").input_ids) == 3  # a common word became one token


def test_saved_and_loaded_by_us_and_by_transformers(clap, tmp_path):
    folder = tmp_path / "clap"
    training.save(clap, folder, {"data_digest": "0" * 12, "steps": 0, "losses": {}})
    wave = music()[None]
    assert torch.equal(load_clap(folder).embed_audio(wave, 16_000), clap.embed_audio(wave, 16_000))
    theirs = ClapModel.from_pretrained(folder / "text_encoder").eval()
    tokens = AutoTokenizer.from_pretrained(folder / "tokenizer")(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = theirs.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(clap.embed_text(CAPTIONS), found, atol=1e-5, rtol=0)
    assert torch.equal(load_pretrained(clap.params, str(folder))[0].embed_text(CAPTIONS), clap.embed_text(CAPTIONS))
    other = resolve({"preset": "tiny", "clap": {"projection_dim": 32}})
    with pytest.raises(ModelError, match="projection"):
        load_pretrained(other, str(folder))
    with pytest.raises(ModelError, match=r"nothing is no folder here and cannot be had from the hub"):
        load_pretrained(clap.params, str(tmp_path / "nothing"))


@pytest.mark.slow
def test_a_hub_id_is_a_start(clap, tmp_path):
    """From the hub's own cache, as a download leaves it, and without a network; a pickle there is not read."""
    hub = tmp_path / "hub" / "models--somebody--clap"
    snapshot = hub / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("0" * 40)
    clap.model.save_pretrained(snapshot)
    clap.tokenizer.save_pretrained(snapshot)
    script = (
        "import sys, torch; from stages.params import Params; from stages.clap.model import load_pretrained\n"
        "clap = load_pretrained(Params.model_validate_json(sys.argv[1]), 'somebody/clap')[0].eval()\n"
        "torch.save(clap.embed_text(sys.argv[3:]), sys.argv[2])"
    )
    call = [sys.executable, "-c", script, clap.params.model_dump_json(), str(tmp_path / "found.pt"), *CAPTIONS]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    subprocess.run(call, check=True, env=environment)
    assert torch.equal(torch.load(tmp_path / "found.pt", weights_only=True), clap.embed_text(CAPTIONS))
    (snapshot / "model.safetensors").unlink()
    torch.save(clap.model.state_dict(), snapshot / "pytorch_model.bin")
    refused = subprocess.run(call, env=environment, stderr=subprocess.PIPE, text=True)
    assert refused.returncode == 1
    assert "ModelError: No CLAP model can be read from" in refused.stderr
