"""Every backend makes the sound that float32 eager makes, within a bound that is measured on the log-mel."""

import sys

import pytest
import torch

from stages.audio.mel import clip_mel
from stages.errors import MissingDependencyError, UsageError
from stages.generate import backends
from stages.generate.backends import Backend, choose_backend, use_backend
from stages.generate.pipeline import Pipeline
from stages.generate.prompts import Prompt
from stages.generate.settings import Settings

QUICK = Settings("ddim", 4, 0.0, 1)
# Mean |difference| of natural-log mels. Measured: 1.3e-6 with channels last, 1.7e-6 with OpenVINO, 0.016 in bfloat16;
# two prompts of the toy, whose random vocoder hardly heeds its mel, differ by 0.010.
BOUNDS = {False: 2e-5, True: 0.05}


def prompt(text="dramatic trailer"):
    return Prompt("a", text, 1, None, 2.0, 1.28)


@pytest.fixture(scope="module")
def reference(toy_models):
    """The reference's sound, another prompt's, and the log-mel front-end; kept for every backend."""
    pipeline = Pipeline.load(toy_models / "ldm", "cpu")
    ours, other = (pipeline.waveforms([prompt(text)], [0], QUICK) for text in ("dramatic trailer", "quiet flute"))
    return ours, other, clip_mel(pipeline.params)


def log_mel_l1(mel, first, second):
    return float((mel(first) - mel(second)).abs().mean())


@pytest.mark.parametrize(("name", "half"), [("eager", False), ("bf16", True), ("openvino", False), ("openvino", True)])
def test_sound_is_the_references(name, half, toy_models, reference, tmp_path, monkeypatch):
    if name == "openvino":
        pytest.importorskip("openvino")
    monkeypatch.setattr(backends, "has_fast_bfloat16", lambda device: half)
    expected, other, mel = reference
    pipeline = Pipeline.load(toy_models / "ldm", "cpu")
    use_backend(pipeline, Backend(name, half, ""), tmp_path)
    found = pipeline.waveforms([prompt()], [0], QUICK)
    assert log_mel_l1(mel, found, expected) < BOUNDS[half]
    assert log_mel_l1(mel, other, expected) > 100 * BOUNDS[False]
    assert torch.equal(found, pipeline.waveforms([prompt()], [0], QUICK))  # the same seed, the same sound
    assert len(list(tmp_path.rglob("*.xml"))) == (3 if name == "openvino" else 0)
    if name == "openvino":
        assert sys.modules["openvino_telemetry"] is None  # installed with it, and kept from running
        monkeypatch.setattr(backends._openvino(), "convert_model", None)  # a second process takes what is there
        again, chosen = Pipeline.load(toy_models / "ldm", "cpu"), Backend(name, half, "this model was compiled before")
        assert choose_backend("auto", again, tmp_path) == chosen
        use_backend(again, chosen, tmp_path)
        assert torch.equal(found, again.waveforms([prompt()], [0], QUICK))


@pytest.mark.parametrize("name", ["eager", "bf16", "openvino"])
def test_backends_reuse_inner_blocks_alike(name, toy_models, tmp_path):
    """What a plain pipeline makes with inner blocks at every second step, each backend makes as well."""
    if name == "openvino":
        pytest.importorskip("openvino")
    settings, half = Settings("ddim", 4, 0.0, 1, reuse=2), name == "bf16"
    pipeline = Pipeline.load(toy_models / "ldm", "cpu")
    mel = clip_mel(pipeline.params)
    expected = pipeline.waveforms([prompt()], [0], settings)
    use_backend(pipeline, Backend(name, half, ""), tmp_path)
    assert log_mel_l1(mel, pipeline.waveforms([prompt()], [0], settings), expected) < BOUNDS[half]


def test_the_choice(toy_models, tmp_path, monkeypatch):
    pipeline = Pipeline.load(toy_models / "ldm", "cpu")
    for half, expected in ((False, "eager"), (True, "bf16")):
        monkeypatch.setattr(backends, "has_fast_bfloat16", lambda device, half=half: half)
        chosen = choose_backend("auto", pipeline, tmp_path)
        assert (chosen.name, chosen.half) == (expected, half)
    assert choose_backend("eager", pipeline, tmp_path) == Backend("eager", False, "as asked for")
    monkeypatch.setattr("stages.generate.settings.find_spec", lambda name: name)
    assert choose_backend("openvino", pipeline, tmp_path).half
    monkeypatch.setattr("stages.generate.settings.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="OpenVINO is not installed"):
        choose_backend("openvino", pipeline, tmp_path)
    with pytest.raises(UsageError, match="--backend tpu is none of auto, eager"):
        choose_backend("tpu", pipeline, tmp_path)
