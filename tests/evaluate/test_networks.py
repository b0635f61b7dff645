"""Cnn14, VGGish and MERT against the reference packages on the same random weights, and files that are not theirs.

The reference packages are no dependencies of ours: install them with
`pip install --no-deps --target DIR panns-inference torchvggish torchlibrosa` and put DIR on PYTHONPATH.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from stages import params as parameters
from stages.errors import ModelError
from stages.evaluate.backbones import load_backbone
from stages.evaluate.panns import FRONT_ENDS, Cnn14, load_cnn14
from stages.evaluate.vggish import LogMel, VGGish, load_vggish
from tests import DEMO

RATE = 16_000


def music(seconds=2.5, rate=RATE):
    samples, _ = soundfile.read(DEMO / "flare_battle_theme.ogg", frames=int(seconds * RATE), dtype="float32")
    return torch.from_numpy(samples)[None] if rate == RATE else torch.from_numpy(np.repeat(samples, 2))[None]


def lively(network, seed=0):
    """Random weights under which every layer is heard: its spread kept, its batch statistics not neutral."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.startswith(("spectrogram_extractor", "logmel_extractor")) or value.dtype == torch.long:
                continue
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0, generator=generator)
            elif value.ndim > 1:
                value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
            else:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return network.eval()


def reference(package, module):
    """A module of an installed reference package, without running the package's own start, which downloads."""
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"{package} is not installed, so there is nothing to compare with")
    folder = Path(found.origin).parent
    stub = types.ModuleType(package)
    stub.__path__ = [str(folder)]
    sys.modules[package] = stub
    try:
        return importlib.import_module(f"{package}.{module}")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [16_000, 32_000])
def test_cnn14_is_the_reference_packages_on_the_same_weights(rate, tmp_path):
    pytest.importorskip("torchlibrosa", reason="panns-inference needs it")
    models = reference("panns_inference", "models")
    front = FRONT_ENDS[rate]
    theirs = lively(models.Cnn14(rate, front.n_fft, front.hop_length, 64, int(front.f_min), int(front.f_max), 527))
    file = tmp_path / "Cnn14.pth"
    torch.save({"iteration": 1, "model": theirs.state_dict()}, file)
    ours = load_cnn14(file, rate)
    with torch.no_grad():
        wave = music(rate=rate)
        expected = theirs(wave)
        embedding, logits = ours(wave)
    assert expected["embedding"].std() > 0.05
    assert torch.allclose(embedding, expected["embedding"], atol=1e-4, rtol=1e-4)
    assert torch.allclose(logits.sigmoid(), expected["clipwise_output"], atol=1e-4)
    other = 48_000 - rate
    with pytest.raises(ModelError, match="n_fft"):
        load_cnn14(file, other)


@pytest.mark.slow
def test_vggish_is_the_reference_package_on_the_same_weights(tmp_path):
    vggish = reference("torchvggish", "torchvggish")
    mel = reference("torchvggish", "mel_features")
    theirs = lively(vggish.VGG(vggish.make_layers(), postprocess=False))
    file = tmp_path / "vggish.pth"
    torch.save(theirs.state_dict(), file)
    wave = music(seconds=3.0)
    logarithm = mel.log_mel_spectrogram(
        wave[0].double().numpy(), RATE, 0.01, 0.025, 0.01, num_mel_bins=64, lower_edge_hertz=125,
        upper_edge_hertz=7500,
    )  # fmt: skip
    patches = torch.from_numpy(mel.frame(logarithm, 96, 96)).float()
    assert torch.allclose(LogMel()(wave)[0], patches, atol=1e-5)
    theirs.embeddings = theirs.embeddings[:-1]  # as audioldm_eval removes the last ReLU
    with torch.no_grad():
        expected, found = theirs(patches[:, None]), load_vggish(file)(wave)[0]
    assert found.shape == (3, 128)
    assert expected.std() > 0.05
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture
def hubert(tmp_path):
    """A folder like MERT's, with a small network and 24 kHz."""
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, conv_dim=[16] * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    model = HubertModel(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"sampling_rate": 24000}')
    return tmp_path, model


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def resolved(backbone, weights, rate=RATE):
    raw = {"preset": "tiny", "evaluate": {"backbone": backbone, "weights": None if weights is None else str(weights)}}
    return parameters.resolve(raw)


def test_mert_is_transformers_hubert_without_its_repositorys_code(hubert):
    from transformers import AutoModel

    folder, _ = hubert
    expected_model = AutoModel.from_pretrained(folder).eval()
    change(folder, model_type="mert_model", auto_map={"AutoModel": "modeling_MERT.MERTModel"})
    (folder / "modeling_MERT.py").write_text("raise SystemExit('this code was run')")
    backbone = load_backbone(resolved("mert", folder), Path("none"))
    assert backbone.network.sample_rate == 24_000
    wave = music(1.0)
    from torchaudio.functional import resample

    at24 = resample(wave, RATE, 24_000)
    normal = (at24 - at24.mean()) / (at24.var(unbiased=False) + 1e-7).sqrt()
    with torch.no_grad():
        expected = expected_model(normal).last_hidden_state.mean(1)
    assert torch.allclose(backbone(wave)[0], expected, atol=1e-5)
    change(folder, feature_extractor_cqt=True)
    with pytest.raises(ModelError, match="constant-Q input, which is code of its own repository"):
        load_backbone(resolved("mert", folder), Path("none"))
    change(folder, feature_extractor_cqt=False, model_type="bert")
    with pytest.raises(ModelError, match="is a bert model"):
        load_backbone(resolved("mert", folder), Path("none"))


class Evil:
    def __reduce__(self):
        return (print, ("this code was run",))


@pytest.mark.parametrize(
    ("backbone", "content", "said"),
    [
        ("cnn14-16k", None, "needs its weights"),
        ("vggish", None, "needs its weights"),
        ("mert", None, "needs a model"),
        ("cnn14-16k", b"no checkpoint", "no checkpoint of tensors"),
        ("cnn14-16k", {"model": Evil()}, "no checkpoint of tensors"),
        ("cnn14-16k", {"model": {"bn0.weight": torch.ones(3)}}, "tensors differ"),
        ("vggish", {"a": 1}, "does not hold a table of tensors"),
        ("vggish", {"features.0.weight": torch.ones(3)}, "tensors differ"),
    ],
)
def test_weights_that_are_not_the_networks_are_refused_and_never_run(backbone, content, said, tmp_path, capsys):
    file = None
    if content is not None:
        file = tmp_path / "weights.pth"
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ModelError, match=said):
        load_backbone(resolved(backbone, file), Path("none"))
    assert "this code was run" not in capsys.readouterr().out


def test_a_missing_file_and_a_name_that_is_no_hub_file_are_told(tmp_path):
    with pytest.raises(ModelError, match="no weights file"):
        load_backbone(resolved("vggish", tmp_path / "nothing.pth"), Path("none"))


@pytest.mark.slow
def test_networks_measure_a_clip_at_its_own_level_and_one_row_for_each_patch(tmp_path):
    from stages.evaluate.embeddings import Segment, embed

    file = tmp_path / "vggish.pth"
    torch.save(lively(VGGish()).state_dict(), file)
    params = resolved("vggish", file)
    backbone = load_backbone(params, Path("none"))
    samples = music(10.24)[0].numpy()
    found = embed([Segment("a", 0.0, samples, RATE)], backbone, params.audio, "one")
    quiet = embed([Segment("a", 0.0, 0.1 * samples, RATE)], backbone, params.audio, "one")
    assert found.vectors.shape == (10, 128)
    assert found.starts[1] == pytest.approx(0.96)
    assert "own level" in found.preprocessing and "0.96 s" in found.preprocessing
    assert not np.allclose(found.vectors, quiet.vectors, rtol=0.01)
    file = tmp_path / "cnn14.pth"
    torch.save({"model": lively(Cnn14(FRONT_ENDS[16_000])).state_dict()}, file)
    params = resolved("cnn14-16k", file)
    both = embed([Segment("a", 0.0, samples, RATE)], load_backbone(params, Path("none")), params.audio, "one")
    assert both.vectors.shape == (1, 2048)
    assert both.logits.shape == (1, 527)
