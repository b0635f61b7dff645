"""Every backend makes the sound that float32 eager makes, within a bound that is measured on the log-mel."""

import sys

import pytest
import torch

from stages.audio.mel import clip_mel
from stages.errors import MissingDependencyError, UsageError
from stages.generate import backends
from stages.generate.backends import Backend, choose_backend, use_backend
from stages.generate.manifest import Settings
from stages.generate.pipeline import Pipeline
from stages.generate.prompts import Prompt

QUICK = Settings("ddim", 4, 0.0, 1)
# Mean |difference| of natural-log mels. Measured: 1.3e-6 with channels last, 1.7e-6 with OpenVINO, 0.016 in bfloat16;
# two prompts of the toy, whose random vocoder hardly heeds its mel, differ by 0.010.
BOUNDS = {"eager": 2e-5, "compile": 2e-5, "openvino": 2e-5, "bf16": 0.05}


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


COMPILE = pytest.param("compile", marks=pytest.mark.slow)  # a minute or more of C++


@pytest.mark.parametrize("name", ["eager", "bf16", COMPILE, "openvino"])
def test_sound_is_the_references(name, toy_models, reference, tmp_path, monkeypatch):
    if name == "openvino":
        pytest.importorskip("openvino")
    expected, other, mel = reference
    pipeline = Pipeline.load(toy_models / "ldm", "cpu")
    use_backend(pipeline, Backend(name, ""), tmp_path)
    found = pipeline.waveforms([prompt()], [0], QUICK)
    assert log_mel_l1(mel, found, expected) < BOUNDS[name]
    assert log_mel_l1(mel, other, expected) > 100 * BOUNDS["eager"]
    assert torch.equal(found, pipeline.waveforms([prompt()], [0], QUICK))  # the same seed, the same sound
    kept = sorted(path.name for path in tmp_path.rglob("*") if path.suffix in (".pt2", ".xml"))
    assert len(kept) == (3 if name in ("compile", "openvino") else 0)
    if name == "openvino":
        assert sys.modules["openvino_telemetry"] is None  # installed with it, and kept from running
    if kept:  # a second process compiles nothing: it takes what is there
        monkeypatch.setattr(torch.export, "export", None)
        if name == "openvino":
            monkeypatch.setattr(backends._openvino(), "convert_model", None)
        again = Pipeline.load(toy_models / "ldm", "cpu")
        assert choose_backend("auto", again, tmp_path).name == name
        use_backend(again, choose_backend("auto", again, tmp_path), tmp_path)
        assert torch.equal(found, again.waveforms([prompt()], [0], QUICK))


def test_the_choice(toy_models, tmp_path, monkeypatch):
    pipeline = Pipeline.load(toy_models / "ldm", "cpu")
    monkeypatch.setattr(backends, "has_fast_bfloat16", lambda device: False)
    assert choose_backend("auto", pipeline, tmp_path).name == "eager"
    monkeypatch.setattr(backends, "has_fast_bfloat16", lambda device: True)
    assert choose_backend("auto", pipeline, tmp_path).name == "bf16"
    assert choose_backend("eager", pipeline, tmp_path).name == "eager"
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="OpenVINO is not installed"):
        choose_backend("openvino", pipeline, tmp_path)
    with pytest.raises(UsageError, match="--backend tpu is none of auto, eager"):
        choose_backend("tpu", pipeline, tmp_path)
