import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stages.audio.mel import clip_mel
from stages.data.shards import ShardReader
from stages.generate.backends import _halve
from stages.params import preset
from stages.store import model_card, verify_model
from stages.training.clips import mel_segments
from stages.vae.model import load_vae
from stages.vae.train import train_vae
from stages.vocoder.model import Vocoder, build, load_vocoder
from stages.vocoder.spectra import stft_loss
from stages.vocoder.train import VocoderTask, train_vocoder
from stages.vocoder.vocos import InverseStft
from tests.training.demo import demo_shards
from tests.vocoder.test_vocoder import toy

VOCOS = ("vocoder.architecture=vocos", "vocoder.dim=16", "vocoder.intermediate_dim=32", "vocoder.num_layers=2",
         "vocoder.stft_weight=20", "audio.clip_seconds=3.2")  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return demo_shards(tmp_path_factory.mktemp("demo"), toy(*VOCOS), seconds=5.0)


def test_true_magnitudes_and_phases_give_the_sound_back(shards):
    """The inverse of the front-end's own STFT: what the network would have to find."""
    params = toy(*VOCOS)
    front = clip_mel(params)
    audio = torch.from_numpy(ShardReader(shards).audio(0, 0, 320 * 160).copy())[None] / 32768
    spectrum = torch.stft(audio, front.n_fft, front.hop_length, front.win_length, front.window, center=True,
                          pad_mode="reflect", return_complex=True)[..., :320].transpose(1, 2)  # fmt: skip
    mel = front(audio)
    first = (mel.exp() @ torch.linalg.pinv(front.filters)).clamp(min=front.floor)
    found = torch.cat([(spectrum.abs().clamp(min=1e-12) / first).log(), spectrum.angle()], -1)
    made = InverseStft(front)(found, mel)
    assert made.shape == audio.shape
    inner = slice(0, -front.n_fft)  # the last frame, which the front-end drops, is the one before it again
    torch.testing.assert_close(made[:, inner], audio[:, inner], rtol=0, atol=2e-4 * float(audio.abs().max()))


def test_no_corrections_leave_the_pseudo_inverse_of_the_mel():
    """Zero corrections and phases: magnitudes from the filters' pseudo-inverse, as NumPy finds it."""
    front = clip_mel(toy(*VOCOS))
    mel = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(0)) - 4
    made = InverseStft(front)(torch.zeros(1, 40, 2 * 513), mel)
    bins = np.maximum(np.exp(mel[0].numpy()) @ np.linalg.pinv(front.filters.numpy()), front.floor)
    frames = np.fft.irfft(np.concatenate([bins, bins[-1:]]), axis=1) * np.hanning(1025)[:-1]
    total, weight = np.zeros(41 * 160 + 1024), np.zeros(41 * 160 + 1024)
    for n, frame in enumerate(frames):
        total[n * 160 : n * 160 + 1024] += frame
        weight[n * 160 : n * 160 + 1024] += np.hanning(1025)[:-1] ** 2
    expected = (total / np.maximum(weight, 1e-12))[512 : 512 + 40 * 160]
    np.testing.assert_allclose(made[0].numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_the_network_is_what_the_paper_says():
    """ConvNeXt blocks (Siuzdak 2023, section 3.3), written out in functions on the same weights."""
    torch.manual_seed(0)
    network = build(toy(*VOCOS)).eval()
    w = dict(network.named_parameters())
    mel = torch.randn(2, 30, 32)
    with torch.no_grad():
        for name, value in w.items():
            value.copy_(0.3 * torch.randn_like(value) + ("norm" in name and name.endswith("weight")))
        x = F.conv1d(mel.mT, w["embed.weight"], w["embed.bias"], padding=3).mT
        x = F.layer_norm(x, (16,), w["norm.weight"], w["norm.bias"], 1e-6)
        for block in ("blocks.0.", "blocks.1."):
            y = F.conv1d(x.mT, w[block + "depthwise.weight"], w[block + "depthwise.bias"], padding=3, groups=16).mT
            y = F.layer_norm(y, (16,), w[block + "norm.weight"], w[block + "norm.bias"], 1e-6)
            y = F.gelu(y @ w[block + "widen.weight"].T + w[block + "widen.bias"])
            x = x + w[block + "scale"] * (y @ w[block + "narrow.weight"].T + w[block + "narrow.bias"])
        x = F.layer_norm(x, (16,), w["last_norm.weight"], w["last_norm.bias"], 1e-6)
        torch.testing.assert_close(network(mel), x @ w["head.weight"].T + w["head.bias"], rtol=1e-4, atol=1e-4)
    assert len(w) == 4 + 2 * 9 + 4


def test_small_has_one_that_fits_the_package():
    params = preset("small")
    with torch.device("meta"):
        network = build(params)
        assert network(torch.empty(1, 1024, 64)).shape == (1, 1024, 2 * 513)
    assert 2 * sum(p.numel() for p in network.parameters()) < 6.2e6  # bytes in float16


def test_the_spectral_loss_by_hand():
    made, real = torch.randn(2, 4000, generator=torch.Generator().manual_seed(1)).mul(0.1).split(1)
    terms = []
    for size in (256, 512, 1024, 2048):
        window = np.hanning(size + 1)[:-1]
        cuts = [np.lib.stride_tricks.sliding_window_view(np.pad(x[0].numpy(), size // 2, "reflect"), size)
                for x in (made, real)]  # fmt: skip
        a, b = (np.abs(np.fft.rfft(cut[:: size // 4] * window)) for cut in cuts)
        logs = np.abs(np.log(a + 1e-3) - np.log(b + 1e-3)).mean()
        terms.append(logs + 0.3 * np.abs(a - b).mean() / (b.mean() + 1e-2))
    assert float(stft_loss(made, real)) == pytest.approx(np.mean(terms), rel=1e-4)
    assert float(stft_loss(real, real)) == 0


def test_training_on_both_makes_a_sealed_folder_that_sounds_the_same(shards, tmp_path):
    params = toy(*VOCOS, "vocoder.train_on=both", "vocoder.train.steps=4")
    train_vae(params, shards, tmp_path / "vae", tmp_path / "ck")
    history = train_vocoder(params, shards, tmp_path / "vocoder", tmp_path / "ck", vae=tmp_path / "vae")
    assert {"mel", "stft", "discriminator", "features"} <= set(history.losses)
    assert not verify_model(tmp_path / "vocoder")
    assert set(model_card(tmp_path / "vocoder")["origin"]) == {"data", "vae"}
    vae, vocoder = load_vae(tmp_path / "vae"), load_vocoder(tmp_path / "vocoder")
    task = VocoderTask(params, ShardReader(shards), vae, vocoder)
    mel = torch.randn(1, 24, 32)
    assert vocoder(mel).shape == (1, 24 * 160)
    assert torch.equal(vocoder(mel), Vocoder(task.generator.eval(), params)(mel))

    audio, front = torch.stack([task.dataset[i, 0]["audio"] for i in range(3)]), clip_mel(params)
    seeds = (3, 4, 5)
    heard, real = task._segments(audio, [torch.Generator().manual_seed(seed) for seed in seeds])
    starts = [int(torch.randint(320 - 16 + 1, (), generator=torch.Generator().manual_seed(s))) for s in seeds]
    for row, clip in enumerate((0, 2, 1)):  # those through the VAE come first
        start = starts[clip]
        assert torch.equal(real[row], audio[clip, start * 160 : (start + 16) * 160])
        if clip == 1:
            expected = front(audio[1:2])[0, start : start + 16]
        else:
            begin = min(max(start - 64, 0), 320 - 192)
            around = mel_segments(front, audio[clip : clip + 1], [begin], 192)
            expected = vae.decode(vae.encode(around)[0])[0, start - begin : start - begin + 16]
        torch.testing.assert_close(heard[row], expected, rtol=1e-4, atol=1e-4)


def test_it_overfits_four_real_clips(tmp_path):
    params = toy(*VOCOS, "vocoder.dim=64", "vocoder.intermediate_dim=128", "vocoder.train.steps=60",
                 "vocoder.adversarial_start=1000", "vocoder.train.learning_rate=2e-3", "vocoder.train.valid_every=60",
                 "vocoder.train.checkpoint_every=60", "vocoder.train.schedule=constant")  # fmt: skip
    history = train_vocoder(params, demo_shards(tmp_path / "demo", params, 5.0), tmp_path / "v", tmp_path / "ck")
    assert history.losses["mel"] < 0.7  # HiFi-GAN: 1.2


def test_in_half_precision_its_phases_keep_their_digits():
    torch.manual_seed(0)
    network = build(toy(*VOCOS)).eval()
    mel = torch.randn(1, 20, 32)
    with torch.no_grad():
        exact = network(mel)
        network.head.weight.mul_(50), exact.copy_(network(mel))
        _halve(network)
        found = network(mel.bfloat16())
    assert found.dtype == torch.float32
    assert network.blocks[0].widen.weight.dtype == torch.bfloat16
    assert float((found - exact).abs().mean() / exact.abs().mean()) < 0.02
