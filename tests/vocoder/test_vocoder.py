import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from stages.audio.mel import clip_mel
from stages.data.dataset import ClipDataset
from stages.data.shards import ShardReader
from stages.errors import ModelError, UsageError
from stages.params import preset, resolve
from stages.store import model_card, verify_model
from stages.training.clips import mel_segments
from stages.vae.train import train_vae
from stages.vocoder import discriminators as d
from stages.vocoder.model import ExactLength, Vocoder, build, load_vocoder, remove_weight_norm
from stages.vocoder.train import VocoderTask, train_vocoder
from tests.training.demo import demo_shards

TOY = [
    "vocoder.initial_channels=32", "vocoder.resblock_kernel_sizes=[3]", "vocoder.resblock_dilations=[1]",
    "vocoder.segment_frames=16", "vocoder.periods=[2]", "vocoder.scales=1", "vocoder.discriminator_channels=16",
    "vocoder.adversarial_start=2", "vocoder.train.steps=6", "vocoder.train.batch_size=4",
    "vocoder.train.valid_every=3", "vocoder.train.valid_batches=1", "vocoder.train.checkpoint_every=2",
    "vocoder.train.workers=0", "vae.train.workers=0", "vae.train.steps=1", "vae.segment_frames=16",
    "vae.block_out_channels=[8,8]", "vae.norm_num_groups=4", "mel.n_mels=32", "audio.clip_seconds=1.28",
    "ldm.block_out_channels=[8]", "ldm.attention=[false]",
]  # fmt: skip


def toy(*more):
    return resolve({"preset": "tiny"}, [*TOY, *more])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return demo_shards(tmp_path_factory.mktemp("demo"), toy(), seconds=3.0)


@pytest.mark.parametrize("name", ["paper", "released", "tiny"])
def test_length_is_exact_in_every_preset_with_a_hifigan(name):
    params = preset(name)
    with torch.device("meta"):
        network = build(params)
        mel = torch.empty(2, params.clip_frames, params.mel.n_mels)
        raw = network(mel)
        assert ExactLength(params.mel.hop_length)(raw, mel).shape == (2, params.audio.clip_samples)
        assert Vocoder(network, params)(mel[:, :7]).shape == (2, 7 * params.mel.hop_length)
    assert raw.shape[1] - params.audio.clip_samples == (32 if name == "released" else 0)
    sizes = {name: p.shape for name, p in network.named_parameters()}
    assert sizes["conv_pre.weight"] == (params.vocoder.initial_channels, params.mel.n_mels, 7)


def test_removing_weight_norm_changes_nothing():
    torch.manual_seed(0)
    network = build(toy())
    network.apply_weight_norm()
    mel = torch.randn(1, 5, 32)
    with torch.no_grad():
        before = network(mel)
        remove_weight_norm(network)
        torch.testing.assert_close(network(mel), before)
    assert set(network.state_dict()) == set(build(toy()).state_dict())


def test_paper_discriminators_have_the_papers_widths():
    vocoder = preset("paper").vocoder
    with torch.device("meta"):
        judge = d.Discriminators(vocoder.periods, vocoder.scales, vocoder.discriminator_channels)
        judgements = judge(torch.empty(2, 8160))
    assert [p.period for p in judge.periods] == [2, 3, 5, 7, 11]
    assert len(judgements) == 8
    # 41.1 M and 29.6 M in the paper's released discriminators, whose weight norm keeps one more number a channel
    periods, scales = (sum(p.numel() for p in part.parameters()) for part in (judge.periods, judge.scales))
    assert periods == pytest.approx(41.1e6, rel=0.01)
    assert scales == pytest.approx(29.6e6, rel=0.01)


def test_losses_by_hand():
    real = [(torch.tensor([1.0, 0.5]), [torch.tensor([1.0, 2.0])]), (torch.tensor([2.0]), [torch.tensor([0.0])])]
    made = [(torch.tensor([0.0, 0.5]), [torch.tensor([2.0, 4.0])]), (torch.tensor([-1.0]), [torch.tensor([3.0])])]
    assert d.judge_loss(real, made) == pytest.approx((0.25 / 2 + 0.25 / 2) + (1.0 + 1.0))
    assert d.maker_loss(made) == pytest.approx((1.0 + 0.25) / 2 + 4.0)
    assert d.feature_loss(real, made) == pytest.approx(1.5 + 3.0)


def normed(layer):
    """A weight-normed layer's weight from its magnitude and direction (Salimans & Kingma 2016, equation 2)."""
    magnitude, direction = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    return magnitude * direction / direction.flatten(1).norm(dim=1).view_as(magnitude)


def test_period_discriminators_see_each_phase_by_itself():
    """Kong et al. 2020, section 2.3: kernels 5 x 1, four of stride 3, on every p-th sample; here as 1-D sequences."""
    torch.manual_seed(0)
    judge, sound = d.PeriodDiscriminator(3, 64), torch.randn(2, 1, 400)
    scores, features = judge(sound)
    padded = torch.cat([sound, sound[..., -3:-1].flip(-1)], -1)  # 402 = 3 x 134, by reflection
    with torch.no_grad():
        rows = torch.stack([padded[..., phase::3] for phase in range(3)], 1).flatten(0, 1)
        for layer, stride, feature in zip(judge.layers, (3, 3, 3, 3, 1), features, strict=False):
            rows = F.leaky_relu(F.conv1d(rows, normed(layer)[..., 0], layer.bias, stride, 2), 0.1)
            torch.testing.assert_close(feature, rows.unflatten(0, (2, 3)).permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
        last = F.conv1d(rows, normed(judge.last)[..., 0], judge.last.bias, 1, 1).unflatten(0, (2, 3))
    torch.testing.assert_close(scores, last[:, :, 0].transpose(1, 2).flatten(1), rtol=1e-4, atol=1e-5)
    assert len(features) == 6


def test_scale_discriminators_see_the_means_of_neighbours():
    """Section 2.3: grouped layers on the sound and on its average-pooled halves, the first one spectrally normed."""
    torch.manual_seed(0)
    judge, sound = d.Discriminators([], 2, 64), torch.randn(2, 800)
    for _ in range(200):  # of the power iteration
        judge(sound)
    judge.eval()
    half = F.pad(sound, (2, 2)).unfold(-1, 4, 2).mean(-1)
    recipe = [(15, 1), (41, 2), (41, 2), (41, 4), (41, 4), (41, 1), (5, 1)]
    with torch.no_grad():
        for number, (x, scale, found) in enumerate(zip((sound, half), judge.scales, judge(sound), strict=True)):
            x = x[:, None]
            for layer, (kernel, stride), feature in zip(scale.layers, recipe, found[1], strict=False):
                weight = normed(layer) if number else layer.parametrizations.weight.original
                if not number:
                    weight = weight / torch.linalg.svdvals(weight.flatten(1))[0]
                x = F.leaky_relu(F.conv1d(x, weight, layer.bias, stride, kernel // 2, groups=layer.groups), 0.1)
                torch.testing.assert_close(feature, x, rtol=1e-3, atol=1e-4)
    assert [layer.groups for layer in d.Discriminators([], 1, 1024).scales[0].layers] == [1, 4, 16, 16, 16, 16, 1]


def test_halves_are_what_each_half_gives_alone():
    judge = d.Discriminators([2, 3], 2, 32).eval()  # in training the spectral norm moves at every call
    sound = torch.randn(4, 1600)
    for both, alone in zip(d.halves(judge(sound)), (judge(sound[:2]), judge(sound[2:])), strict=True):
        for (scores, features), (own_scores, own_features) in zip(both, alone, strict=True):
            torch.testing.assert_close(scores, own_scores)
            for feature, own in zip(features, own_features, strict=True):
                torch.testing.assert_close(feature, own)


def test_segments_are_cut_from_the_clips_own_mel_and_its_sound():
    front_end = clip_mel(preset("tiny"))
    audio = 0.1 * torch.randn(6, 100 * 160, generator=torch.Generator().manual_seed(0))
    starts = [0, 1, 3, 40, 83, 84]
    whole = front_end(audio)
    for frames, chosen in ((16, starts), (100, [0] * 6)):
        wanted = torch.stack([mel[start : start + frames] for mel, start in zip(whole, chosen, strict=True)])
        torch.testing.assert_close(mel_segments(front_end, audio, chosen, frames), wanted, rtol=1e-4, atol=1e-4)


def test_a_trained_folder_loads_and_measures_the_same(shards, tmp_path):
    params = toy()
    history = train_vocoder(params, shards, tmp_path / "vocoder", tmp_path / "ck")
    assert {"mel", "discriminator", "adversarial", "features"} <= history.losses.keys()
    card = model_card(tmp_path / "vocoder", "vocoder")
    assert verify_model(tmp_path / "vocoder") == []
    assert card["losses"] == history.valid
    vocoder = load_vocoder(tmp_path / "vocoder")
    test = ClipDataset(ShardReader(shards), "test", params.audio.clip_samples, params.audio.peak)
    mel = clip_mel(params)
    clips = [test[i, 0]["audio"].unsqueeze(0) for i in range(len(test))]
    errors = [float(F.l1_loss(mel(vocoder(mel(clip))), mel(clip))) for clip in clips]
    assert card["test"] == {"log_mel_l1": pytest.approx(sum(errors) / len(errors), rel=1e-4), "clips": len(test)}
    file = tmp_path / "vocoder/vocoder/model.safetensors"
    weights = load_file(file)
    save_file(weights | {"extra": torch.zeros(1)}, file)
    with pytest.raises(ModelError, match="extra"):
        load_vocoder(tmp_path / "vocoder")


def test_fine_tuning_on_the_vae_hears_its_mels_and_starts_from_a_vocoder(shards, tmp_path):
    params = toy("vocoder.adversarial_start=1000", "vocoder.train.steps=1")
    train_vae(params, shards, tmp_path / "vae", tmp_path / "ck")
    train_vocoder(params, shards, tmp_path / "first", tmp_path / "ck")
    tuned = toy("vocoder.train_on=vae", f"vocoder.init_from={tmp_path / 'first'}", "vocoder.train.steps=1")
    with pytest.raises(UsageError, match="no VAE folder"):
        train_vocoder(tuned, shards, tmp_path / "tuned", tmp_path / "ck")
    train_vocoder(tuned, shards, tmp_path / "tuned", tmp_path / "ck", vae=tmp_path / "vae")
    card = model_card(tmp_path / "tuned")
    assert set(card["origin"]) == {"data", "vae", "init_from"}
    from stages.vae.model import load_vae

    vae, first = load_vae(tmp_path / "vae"), load_vocoder(tmp_path / "first")
    task = VocoderTask(tuned, ShardReader(shards), vae, first)
    audio = torch.stack([task.dataset[i, 0]["audio"] for i in range(2)])
    mel, real = task._segments(audio, [torch.Generator().manual_seed(seed) for seed in (3, 4)])
    starts = [int(torch.randint(128 - 16 + 1, (), generator=torch.Generator().manual_seed(s))) for s in (3, 4)]
    decoded = vae.decode(vae.encode(clip_mel(tuned)(audio))[0])  # a clip of 128 frames is all its surroundings
    for n, start in enumerate(starts):
        torch.testing.assert_close(mel[n], decoded[n, start : start + 16])
        assert torch.equal(real[n], audio[n, start * 160 : (start + 16) * 160])
    with torch.no_grad():
        torch.testing.assert_close(task.generator(mel), first.network(mel))


def test_it_overfits_four_real_clips(tmp_path):
    params = toy("vocoder.train.steps=60", "vocoder.adversarial_start=1000", "vocoder.train.learning_rate=5e-3",
                 "vocoder.train.valid_every=60", "vocoder.train.checkpoint_every=60",
                 "vocoder.train.schedule=constant")  # fmt: skip
    history = train_vocoder(params, demo_shards(tmp_path / "demo", params, 1.3), tmp_path / "v", tmp_path / "ck")
    assert history.losses["mel"] < 1.2  # a silent generator stays at 7.6
