"""The Beat Transformer against an attention over all frames, written for this test; and its published layout."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torch.nn import functional as F

from stages.beats import features, model
from stages.beats.convert import import_beat_transformer
from stages.beats.transformer import BeatTransformer, DilatedAttention, Sizes, widen
from stages.errors import ModelError
from stages.store import model_folder

SMALL = Sizes(stems=1, channels=(4, 8), width=16, feedforward=24, layers=5)


def attend_everywhere(layer: DilatedAttention, x: torch.Tensor) -> torch.Tensor:
    """The same attention from a T x T matrix, frame by frame and head by head."""
    batch, frames, width = x.shape
    size = width // 8
    query, key, value = (
        (x @ part.weight.T + part.bias).view(batch, frames, 8, size) for part in (layer.query, layer.key, layer.value)
    )
    out = torch.zeros_like(query)
    for head, shift in enumerate([0, 0, 0, 0, -2, -1, 1, 2]):
        of_key = 6 if head == 7 else head  # what the published weights were trained with
        allowed = torch.full((frames, frames), -torch.inf)
        bias = torch.zeros(batch, frames, frames)
        for frame in range(frames):
            for place in range(5):
                other = frame + (place - 2 + shift) * layer.dilation
                if 0 <= other < frames:
                    allowed[frame, other] = 0
                    bias[:, frame, other] = query[:, frame, head] @ layer.Er[head, :, place]
        scores = (query[:, :, head] @ key[:, :, of_key].transpose(1, 2) + bias) / math.sqrt(size) + allowed
        out[:, :, head] = scores.softmax(-1) @ value[:, :, head]
    return out.reshape(batch, frames, width)


@pytest.mark.parametrize("dilation", [1, 2, 8])
def test_attention_is_that_of_the_whole_matrix(dilation):
    torch.manual_seed(dilation)
    layer = DilatedAttention(32, dilation)
    x = torch.randn(2, 21, 32)
    torch.testing.assert_close(layer(x), attend_everywhere(layer, x), atol=1e-5, rtol=1e-5)


def test_the_gradient_that_is_written_out_is_right():
    torch.manual_seed(0)
    layer = DilatedAttention(8, 2).double()
    x = torch.randn(1, 7, 8, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *_: layer(x), (x, layer.Er, layer.key.weight))


def test_a_layer_of_the_published_size_is_the_published_layer():
    """Normalised first, GELU, no projection after attention: recomputed here from the state dict alone."""
    torch.manual_seed(0)
    network = BeatTransformer(Sizes(), dropout=0.1).eval()
    layer = network.Transformer_layers["time_attention_1"]
    state, x = layer.state_dict(), torch.randn(1, 30, 256)

    def norm(number: int, value: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(value, (256,), state[f"norm{number}.weight"], state[f"norm{number}.bias"], 1e-5)

    attended = attend_everywhere(layer.self_attn, norm(1, x))
    hidden = norm(2, x + attended) @ state["linear1.weight"].T + state["linear1.bias"]
    wanted = x + attended + F.gelu(hidden) @ state["linear2.weight"].T + state["linear2.bias"]
    found, skip = layer(x)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(skip, attended, atol=1e-4, rtol=1e-4)


def published_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names and shapes of the published checkpoints, listed independently."""
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (32, 1, 5, 3), "conv1.bias": (32,), "conv2.weight": (64, 32, 1, 12), "conv2.bias": (64,),
        "conv3.weight": (256, 64, 3, 6), "conv3.bias": (256,), "out_linear.weight": (2, 256), "out_linear.bias": (2,),
        "out_linear_t.weight": (300, 256), "out_linear_t.bias": (300,),
    }  # fmt: skip
    common = {"linear1.weight": (1024, 256), "linear1.bias": (1024,), "linear2.weight": (256, 1024),
              "linear2.bias": (256,), "norm1.weight": (256,), "norm1.bias": (256,), "norm2.weight": (256,),
              "norm2.bias": (256,)}  # fmt: skip
    for layer in range(9):
        name = f"Transformer_layers.time_attention_{layer}."
        shapes |= {name + key: shape for key, shape in common.items()} | {name + "self_attn.Er": (8, 32, 5)}
        for part in ("key", "value", "query"):
            shapes |= {f"{name}self_attn.{part}.weight": (256, 256), f"{name}self_attn.{part}.bias": (256,)}
    for layer in (3, 4, 5):
        name = f"Transformer_layers.instr_attention_{layer}."
        shapes |= {name + key: shape for key, shape in common.items()} | {
            name + "self_attn.in_proj_weight": (768, 256), name + "self_attn.in_proj_bias": (768,),
            name + "self_attn.out_proj.weight": (256, 256), name + "self_attn.out_proj.bias": (256,),
        }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}


def test_a_published_checkpoint_is_imported_strictly(tmp_path):
    state = published_state()
    torch.save({"state_dict": state, "epoch": 12}, tmp_path / "fold_0_trf_param.pt")
    assert import_beat_transformer(tmp_path / "fold_0_trf_param.pt", tmp_path / "imported") == 9_294_446
    tracker = model.load_tracker(tmp_path / "imported")
    assert (tracker.front_end, tracker.scaled) == (features.PUBLISHED, False)
    direct = BeatTransformer(Sizes()).eval()
    direct.load_state_dict(state)
    stems = [np.random.default_rng(n).uniform(-80, 0, (64, 128)).astype(np.float32) for n in range(5)]
    with torch.inference_mode():
        wanted, _ = direct(torch.from_numpy(np.stack(stems)).unsqueeze(0))
        found, _ = tracker.network(torch.from_numpy(np.stack(stems)).unsqueeze(0))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)  # nothing is lost on the way, as halving would
    assert np.abs(tracker(stems) - wanted[0].sigmoid().numpy()).max() < 1e-5
    assert wanted.sigmoid().std() > 0.02  # the input matters, or anything would do
    assert {t.dtype for t in load_file(tmp_path / "imported" / model.WEIGHTS).values()} == {torch.float32}

    torch.save({"state_dict": {**state, "extra": torch.zeros(1)}}, tmp_path / "extra.pt")
    with pytest.raises(ModelError, match="extra has no place"):
        import_beat_transformer(tmp_path / "extra.pt", tmp_path / "none")
    torch.save({"state_dict": {**state, "out_linear.bias": torch.zeros(1)}}, tmp_path / "shape.pt")
    with pytest.raises(ModelError, match=r"out_linear\.bias is 1, it should be 2"):
        import_beat_transformer(tmp_path / "shape.pt", tmp_path / "none")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ModelError, match="is no checkpoint of tensors"):
        import_beat_transformer(tmp_path / "text.pt", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_windows_give_the_probabilities_of_the_whole(monkeypatch):
    torch.manual_seed(0)
    tracker = model.Tracker(BeatTransformer(SMALL).eval(), features.MIX)
    mel = np.random.default_rng(0).uniform(-80, 0, (400, 128)).astype(np.float32)
    whole = tracker([mel])
    monkeypatch.setattr(model, "WINDOW_SECONDS", 3.0)
    monkeypatch.setattr(model, "CONTEXT_SECONDS", 4.0)  # all that five layers can see: 4 * 31 frames
    assert whole.shape == (400, 2)
    assert np.abs(tracker([mel]) - whole).max() < 1e-5


def test_what_is_saved_is_loaded(tmp_path):
    torch.manual_seed(1)
    tracker = model.Tracker(BeatTransformer(SMALL).eval(), features.MIX)
    model.save_tracker(tracker, tmp_path / "beats", {"preset": "tiny"})
    again = model.load_tracker(tmp_path / "beats")
    mel = np.random.default_rng(0).uniform(-80, 0, (100, 128)).astype(np.float32)
    assert np.abs(tracker([mel]) - again([mel])).max() < 1e-3


def alter(file, how):
    data = bytearray(file.read_bytes())
    how(data)
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("name", [model.CONFIG, model.WEIGHTS])
@pytest.mark.parametrize("how", [lambda data: data.clear(), lambda data: data.__setitem__(-1, data[-1] ^ 1),
                                 lambda data: data.__delitem__(slice(len(data) // 2, None))])  # fmt: skip
def test_a_tracker_that_differs_from_its_seal_is_refused(tmp_path, name, how):
    model.save_tracker(model.Tracker(BeatTransformer(SMALL).eval(), features.MIX), tmp_path / "beats", {})
    alter(tmp_path / "beats" / name, how)
    with pytest.raises(ModelError, match=f"differs from its seal: {name} was altered"):
        model.load_tracker(tmp_path / "beats")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (model.CONFIG, b"{}", "is not a beat tracker's"),
        (model.CONFIG, b"[1]", "holds a list, not an object"),
        (model.CONFIG, b"{", "config.json cannot be read"),
        (model.WEIGHTS, b"", "is no checkpoint of tensors"),
        (model.WEIGHTS, b"\xff" * 8 + b"{}", "is no checkpoint of tensors"),
        (model.WEIGHTS, save({"extra": torch.zeros(3)}), "cannot be loaded as BeatTransformer"),
    ],
)
def test_a_sealed_folder_that_lies_is_refused(tmp_path, name, content, message):
    model.save_tracker(model.Tracker(BeatTransformer(SMALL).eval(), features.MIX), tmp_path / "beats", {})
    with model_folder(tmp_path / "liar", model.KIND, {}) as folder:
        for file in (model.CONFIG, model.WEIGHTS):
            (folder / file).write_bytes(content if file == name else (tmp_path / "beats" / file).read_bytes())
    with pytest.raises(ModelError, match=message):
        model.load_tracker(tmp_path / "liar")


def test_features_do_not_depend_on_blocks_level_or_length(monkeypatch):
    generator = np.random.default_rng(0)
    sound = (generator.normal(0, 0.1, 16_000 * 7) * np.linspace(0.1, 1, 16_000 * 7)).astype(np.float32)
    whole = features.log_mel([sound], features.MIX)
    assert whole.shape == (280, 128)
    assert whole.max() == 0
    monkeypatch.setattr(features, "CHUNK_SECONDS", 2)
    np.testing.assert_allclose(features.log_mel(np.array_split(sound, 9), features.MIX), whole, atol=1e-3)
    np.testing.assert_allclose(features.log_mel([sound * 0.01], features.MIX), whole, atol=0.05)
    assert (features.log_mel([np.zeros(16_000, np.float32)], features.MIX) == features.FLOOR_DB).all()
    assert features.log_mel([], features.MIX).shape == (0, 128)


def test_an_impulse_is_in_the_frame_of_its_time():
    """Of the published front end two frames later, as Spleeter's spectrograms have it."""
    for front_end in (features.MIX, features.PUBLISHED):
        sound = np.zeros(front_end.sample_rate * 3, dtype=np.float32)
        sound[front_end.hop_length * 50] = 1
        frame = features.log_mel([sound], front_end).mean(axis=1).argmax()
        assert frame == 50 + front_end.lag_frames


@pytest.mark.parametrize("more", [{}, {"width": 48, "feedforward": 48}, {"channels": (8, 8), "width": 32}])
def test_a_widened_network_computes_the_same_and_its_channels_come_to_differ(more):
    torch.manual_seed(0)
    start = BeatTransformer(SMALL, dropout=0.0)
    network = BeatTransformer(replace(SMALL, **more), dropout=0.0)
    widen(start, network)
    mel = torch.randn(2, 1, 40, 128)
    start.eval()
    for found, wanted in zip(network.eval()(mel), start(mel), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    if "width" in more:
        logits, _ = network(mel)
        F.binary_cross_entropy_with_logits(logits, torch.rand_like(logits)).backward()
        gradient = network.conv3.weight.grad.view(8, -1, 2, *network.conv3.weight.shape[1:])[:, 0]
        assert not torch.allclose(gradient[:, 0], gradient[:, 1], rtol=1e-2)


def test_what_does_not_widen_is_refused():
    start = BeatTransformer(SMALL)
    for sizes in (replace(SMALL, layers=6), replace(SMALL, width=24), replace(SMALL, width=8), replace(SMALL, stems=5)):
        with pytest.raises(ValueError, match="does not widen"):
            widen(start, BeatTransformer(sizes))
