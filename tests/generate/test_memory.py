"""A large pipeline holds one network's weights at a time and sounds as if it held them all."""

import pytest
import torch

from stages.generate import memory
from stages.generate.backends import Backend, use_backend
from stages.generate.memory import shelve
from stages.generate.pipeline import Pipeline
from stages.generate.prompts import Prompt
from stages.generate.settings import Settings

QUICK = Settings("ddim", 3, 0.0, 1)
WANTED = Prompt("a", "calm piano", 1, "slow", 2.0, 1.28)


def held(pipeline):
    """Bytes of weights in memory, by network."""
    clap = pipeline.clap.model
    networks = {
        "text": clap.text_model, "audio": clap.audio_model, "unet": pipeline.ldm.unet,
        "encoder": pipeline.vae.network.encoder, "decoder": pipeline.vae.network.decoder,
        "vocoder": pipeline.vocoder.network,
    }  # fmt: skip
    return {name: sum(p.nbytes for p in network.parameters()) for name, network in networks.items()}


def made(pipeline):
    waveforms = pipeline.waveforms([WANTED], [0], QUICK)
    return waveforms, pipeline.ranked(WANTED, waveforms)[0].clap_score


def load(models, name, cache):
    pipeline, backend = Pipeline.load(models / "ldm", "cpu"), Backend(name, name == "bf16", "")
    shelf = shelve(pipeline, models / "ldm", backend.channels_last)
    use_backend(pipeline, backend, cache, shelf)
    return pipeline


def test_one_network_at_a_time_makes_the_same_sound(toy_models, tmp_path, monkeypatch):
    whole = load(toy_models, "eager", tmp_path)
    expected, score = made(whole)
    monkeypatch.setattr(memory, "LARGE_BYTES", 0)
    eager = load(toy_models, "eager", tmp_path)
    assert sum(held(eager).values()) == 0
    eager.embed(["x"])
    assert {name for name, size in held(eager).items() if size} == {"text"}
    assert held(eager)["text"] == held(whole)["text"]
    waveforms = eager.waveforms([WANTED], [0], QUICK)
    assert {name for name, size in held(eager).items() if size} == {"vocoder"}
    assert torch.equal(waveforms, expected)
    assert eager.ranked(WANTED, waveforms)[0].clap_score == score
    again, same = made(eager)
    assert torch.equal(again, expected)
    assert same == score


@pytest.mark.slow  # converts all networks
def test_compiled_networks_are_let_go_too(toy_models, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    eager, _ = made(load(toy_models, "eager", tmp_path))
    monkeypatch.setattr(memory, "LARGE_BYTES", 0)
    pipeline = load(toy_models, "openvino", tmp_path)
    expected, _ = made(pipeline)
    assert (expected - eager).abs().max() < 1e-3
    assert not pipeline.ldm.unet.engine.made
    assert {name for name, size in held(pipeline).items() if size} == {"text"}  # what was last at work
    assert torch.equal(expected, made(pipeline)[0])


def test_small_pipelines_are_left_whole(toy_models, tmp_path):
    assert all(held(load(toy_models, "eager", tmp_path)).values())
