from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import correlate2d

from stages.audio.musicnn import LABELS, load_musicnn
from stages.store import sha256

DEMO = Path(__file__).parents[2] / "data" / "demo"
WEIGHTS = Path(__file__).parents[2] / "stages" / "audio" / "weights"


def music(name, seconds=10.24, start=0):
    samples, rate = soundfile.read(
        DEMO / f"{name}.ogg", start=start * 16_000, frames=int(seconds * 16_000), dtype="float32"
    )
    assert rate == 16_000
    return torch.from_numpy(samples)[None]


@pytest.fixture(scope="module")
def tagger():
    return load_musicnn("MTT_musicnn")


@pytest.mark.parametrize("name", LABELS)
def test_weights_are_the_ones_described(name):
    note = (WEIGHTS / "README.md").read_text()
    assert f"{name}.safetensors | `{sha256(WEIGHTS / f'{name}.safetensors')}`" in note
    model = load_musicnn(name)
    assert len(model.labels) == len(set(model.labels)) == 50


def top(tagger, name, count):
    return [tagger.labels[i] for i in tagger(music(name, 9.0, start=20))[0][0].topk(count).indices]


def test_tags_suit_the_music(tagger):
    """Against titles and authors' own words: an orchestral battle, electronic war music, war drums."""
    assert {"classical", "violin", "strings"} <= set(top(tagger, "flare_battle_theme", 4))
    assert {"techno", "electronic"} <= set(top(tagger, "warzone_broken_dreams", 4))
    assert "drums" in top(tagger, "warzone_reclamation", 2)


def test_the_mel_is_librosas(tagger):
    import librosa

    waveform = music("flare_battle_theme", 3.5)
    power = librosa.feature.melspectrogram(
        y=waveform[0].numpy(), sr=16_000, n_fft=512, hop_length=256, n_mels=96, pad_mode="reflect"
    )
    np.testing.assert_allclose(tagger.mel(waveform)[0].numpy(), np.log10(1 + 10_000 * power).T, atol=1e-4)


def normalised(state, name, data, axis):
    """Batch normalisation in inference, in the order in which the paper's graph has it: on every value."""
    shape = [-1 if i == axis else 1 for i in range(data.ndim)]
    mean, var, gamma, beta = (
        state[f"{name}.{part}"].reshape(shape) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return gamma * (data - mean) / np.sqrt(var + 1e-3) + beta


def reference(state, patch):
    """The whole network on one patch (T, 96), by numpy and scipy's correlation in float64."""
    mel = normalised(state, "norm", patch[None], 0)[0]
    maps = []
    for number, (frames, bins) in enumerate([(7, 38), (7, 67), (128, 1), (64, 1), (32, 1)]):
        kernels = state[f"front.{number}.conv.weight"].reshape(-1, frames, bins)
        before = (frames - 1) // 2
        padded = np.pad(mel, ((before, frames - 1 - before), (0, 0)))
        found = np.stack([correlate2d(padded, kernel, mode="valid") for kernel in kernels])
        found = np.maximum(found + state[f"front.{number}.conv.bias"][:, None, None], 0)
        maps.append(normalised(state, f"front.{number}.norm", found, 0).max(axis=2))
    layers = [np.concatenate(maps)]
    for number in range(3):
        source = layers[0] if number == 0 else layers[-1]
        padded = np.pad(source, ((0, 0), (3, 3)))
        kernel = state[f"middle.{number}.conv.weight"]
        found = np.stack([np.einsum("oct,ct->o", kernel, padded[:, t : t + 7]) for t in range(len(patch))], axis=1)
        found = normalised(
            state, f"middle.{number}.norm", np.maximum(found + state[f"middle.{number}.conv.bias"][:, None], 0), 0
        )
        layers.append(found + (layers[-1] if number else 0))
    features = np.concatenate(layers)
    pooled = np.ravel(np.stack([features.max(axis=1), features.mean(axis=1)], axis=1))
    hidden = state["hidden.weight"] @ normalised(state, "pool_norm", pooled, 0) + state["hidden.bias"]
    embedding = normalised(state, "hidden_norm", np.maximum(hidden, 0), 0)
    return 1 / (1 + np.exp(-(state["tags.weight"] @ embedding + state["tags.bias"]))), embedding


def test_the_network_agrees_with_numpy(tagger):
    state = {name: value.double().numpy() for name, value in tagger.state_dict().items()}
    patch = tagger.mel(music("flare_battle_theme", 3.0))[:, :30]
    tags, embedding = reference(state, patch[0].double().numpy())
    found = tagger.patch_features(patch)
    np.testing.assert_allclose(found[0].numpy(), embedding, atol=1e-4)
    np.testing.assert_allclose(tagger.tags(found).sigmoid()[0].numpy(), tags, atol=1e-5)


def test_a_batch_is_its_items_and_the_mean_of_its_patches(tagger):
    first, second = music("flare_battle_theme", 6.5), music("warzone_broken_dreams", 6.5)
    tags, embedding = tagger(torch.cat([first, second]))
    assert (tags.shape, embedding.shape) == ((2, 50), (2, 200))
    assert torch.equal(tagger(first)[1], embedding[:1])
    mel = tagger.mel(second)
    halves = [tagger.patch_features(mel[:, start : start + 187]) for start in (0, 187)]
    torch.testing.assert_close(sum(halves) / 2, embedding[1:])


def test_short_and_silent_sound(tagger):
    second = music("flare_battle_theme", 1.0)
    whole = second.repeat(1, 4)[:, : 186 * 256]
    assert torch.equal(tagger(second)[0], tagger(whole)[0])
    assert torch.isfinite(tagger(torch.zeros(1, 16_000))[0]).all()
