from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from stages.audio.mel import clip_mel
from stages.data.dataset import ClipDataset
from stages.data.shards import ShardReader
from stages.errors import ModelError, ParamsError
from stages.params import preset, resolve
from stages.store import model_card, verify_model
from stages.vae import losses
from stages.vae.model import Vae, build, load_vae, sharpened
from stages.vae.train import VaeTask, posterior_statistics, train_vae
from tests.training.demo import demo_shards
from tests.training.toy import batch_of

TOY = [
    "vae.block_out_channels=[8,8]", "vae.norm_num_groups=4", "vae.latent_channels=4", "vae.segment_frames=32",
    "vae.adversarial_start=2", "vae.discriminator_channels=4", "vae.discriminator_layers=1", "mel.n_mels=32",
    "ldm.block_out_channels=[8]", "ldm.attention=[false]", "vae.train.steps=6", "vae.train.batch_size=4",
    "vae.train.valid_every=3", "vae.train.valid_batches=1", "vae.train.checkpoint_every=2", "vae.train.workers=0",
    "vae.train.ema_decay=0.9", "audio.clip_seconds=1.28",
]  # fmt: skip


def toy(*more):
    return resolve({"preset": "tiny"}, [*TOY, *more])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return demo_shards(tmp_path_factory.mktemp("demo"), toy(), seconds=3.0)


@pytest.mark.parametrize("name", ["paper", "released", "small", "tiny"])
def test_shapes_of_every_preset(name):
    params = preset(name)
    with torch.device("meta"):
        vae = build(params)
        mel = torch.empty(2, 1, params.clip_frames, params.mel.n_mels)
        posterior = vae.encode(mel).latent_dist
        assert posterior.mean.shape == (2, *params.latent_shape)
        assert vae.decode(posterior.mean).sample.shape == mel.shape
    if name == "paper":
        assert params.latent_shape == (16, 128, 16)
    if name == "released":
        assert params.latent_shape == (8, 256, 16)


def test_kl_equals_torch_distributions():
    mean, logvar = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    unit = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    wanted = torch.distributions.kl_divergence(posterior, unit).sum() / 3
    torch.testing.assert_close(losses.kl_to_unit_gaussian(mean, logvar), wanted)
    assert losses.kl_to_unit_gaussian(torch.zeros(1, 2), torch.zeros(1, 2)) == 0


def test_hinge_losses_by_hand():
    real, made = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert losses.hinge_judge_loss(real, made) == pytest.approx(0.5 * (0.5 / 2 + 1.0 / 2))
    assert losses.hinge_maker_loss(made) == pytest.approx(1.5)
    assert losses.hinge_judge_loss(torch.tensor([1.0]), torch.tensor([-1.0])) == 0


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    first, second = (weight * torch.tensor([3.0, 4.0])).sum(), (weight * torch.tensor([0.0, 2.0])).sum()
    gradients = [losses.last_layer_gradient(loss, weight) for loss in (first, second)]
    assert losses.adaptive_weight(*gradients, bins=1) == pytest.approx(5.0 / (2.0 + 1e-4))
    assert losses.adaptive_weight(gradients[0], torch.zeros(2), bins=50) == 1e4 / 50
    assert weight.grad is None


@pytest.mark.parametrize("gain", [1.0, 1e-6])
def test_the_decoders_loss_is_the_published_one_divided_by_the_bins(gain):
    """Latent diffusion's: sums over a clip, and a weight of at most 1e4; a nearly blind critic (gain) reaches it."""
    torch.manual_seed(0)
    mel, layer, critic = torch.randn(3, 1, 16, 8), torch.nn.Linear(8, 8), gain * torch.randn(8)
    made = layer(torch.randn(3, 1, 16, 8))
    mean, logvar = layer.weight.expand(3, 8, 8), 0.1 * layer.weight.expand(3, 8, 8)

    def gradient(loss):
        return torch.autograd.grad(loss, layer.weight, retain_graph=True)[0]

    nll, scores = (mel - made).abs().sum() / 3, made @ critic
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum() / 3
    ratio = min(float(gradient(nll).norm() / (gradient(-scores.mean()).norm() + 1e-4)), 1e4)
    published = nll + kl + 0.5 * ratio * -scores.mean()

    reconstruction, divergence = losses.vae_loss(mel, made, mean, logvar, 1.0)
    adversarial = losses.hinge_maker_loss(scores)
    gradients = [losses.last_layer_gradient(loss, layer.weight) for loss in (reconstruction, adversarial)]
    ours = reconstruction + divergence + 0.5 * losses.adaptive_weight(*gradients, bins=128) * adversarial
    assert (ratio == 1e4) == (gain < 1)
    torch.testing.assert_close(gradient(ours) * 128, gradient(published), rtol=1e-5, atol=1e-4)


def test_a_patch_score_depends_on_its_own_clip_only():
    judge = losses.PatchDiscriminator(8, 3)
    images = torch.randn(3, 1, 64, 64)
    torch.testing.assert_close(judge(images)[1:2], judge(images[1:2]))
    assert judge(images).shape == (3, 1, 6, 6)  # three halvings of 64, then two convolutions without stride
    assert [m.out_channels for m in judge.body if isinstance(m, torch.nn.Conv2d)] == [8, 16, 32, 64, 1]


def test_patch_discriminator_against_its_structure():
    """Isola et al. 2017: kernels of 4, two of stride 2, then two of stride 1; group norm written out."""
    torch.manual_seed(0)
    judge, image = losses.PatchDiscriminator(16, 2), torch.randn(2, 1, 32, 32)
    convolutions = [m for m in judge.body if isinstance(m, torch.nn.Conv2d)]
    norms = iter([m for m in judge.body if isinstance(m, torch.nn.GroupNorm)])
    x = image
    with torch.no_grad():
        for number, (layer, stride) in enumerate(zip(convolutions, (2, 2, 1, 1), strict=True)):
            patches = F.unfold(x, 4, padding=1, stride=stride)
            size = (x.shape[-1] + 2 - 4) // stride + 1
            x = (layer.weight.flatten(1) @ patches).unflatten(-1, (size, size))
            if layer.bias is not None:
                x = x + layer.bias[:, None, None]
            if number in (1, 2):
                norm = next(norms)
                groups = x.unflatten(1, (norm.num_groups, -1))
                mean = groups.mean((2, 3, 4), keepdim=True)
                variance = groups.var((2, 3, 4), correction=0, keepdim=True)
                x = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
            if number < 3:
                x = torch.where(x > 0, x, 0.2 * x)
        torch.testing.assert_close(judge(image), x, rtol=1e-4, atol=1e-5)


def test_a_step_moves_judge_and_maker_by_their_own_loss(shards):
    class Backward:
        def __call__(self, name, loss):
            loss.backward(retain_graph=True)
            self.after = getattr(self, "after", {}) | {name: gradients()}

        def mean(self, value):
            return value

    task = VaeTask(toy(), ShardReader(shards))

    def gradients():
        return [None if p.grad is None else p.grad.clone() for m in task.state.modules.values() for p in m.parameters()]

    batch = batch_of(task.dataset, [(0, 0), (1, 1)])
    backward = Backward()
    early = task.step(batch, 1, backward)
    assert set(early) == {"loss", "reconstruction", "kl"}
    assert all(p.grad is None for p in task.judge.parameters())
    task.vae.zero_grad()
    late = task.step(batch, 2, backward)
    assert set(late) == {"loss", "reconstruction", "kl", "discriminator", "adversarial", "adversarial_weight"}
    wanted = late["reconstruction"] + late["kl"] + late["adversarial_weight"] * late["adversarial"]
    torch.testing.assert_close(late["loss"], wanted)
    n_maker = len(list(task.state.modules["vae"].parameters()))
    assert all(g is None for g in backward.after["discriminator"][:n_maker])  # the judge's loss leaves the maker alone
    for before, after in zip(backward.after["discriminator"][n_maker:], backward.after["vae"][n_maker:], strict=True):
        assert torch.equal(before, after)  # and the maker's leaves the judge alone


def test_a_trained_folder_loads_and_measures_the_same(shards, tmp_path):
    params = toy()
    history = train_vae(params, shards, tmp_path / "vae", tmp_path / "ck")
    card = model_card(tmp_path / "vae", "vae")
    assert verify_model(tmp_path / "vae") == []
    assert card["steps"] == 6
    assert card["losses"]["log_mel_l1"] == history.valid["log_mel_l1"]
    reader = ShardReader(shards)
    assert card["data_digest"] == reader.digest
    vae = load_vae(tmp_path / "vae")
    assert not vae.training
    assert vae.scale == card["scaling_factor"] > 0
    test = ClipDataset(reader, "test", params.audio.clip_samples, params.audio.peak)
    mels = [clip_mel(params)(test[i, 0]["audio"].unsqueeze(0)) for i in range(len(test))]
    errors = [float(F.l1_loss(vae.decode(vae.encode(mel)[0]), mel)) for mel in mels]
    assert card["test"] == {"log_mel_l1": pytest.approx(sum(errors) / len(errors), rel=1e-5), "clips": len(test)}
    mean, logvar = vae.encode(mels[0])
    assert mean.shape == logvar.shape == (1, *params.latent_shape)
    torch.manual_seed(0)
    drawn = mean + (0.5 * logvar).exp() * torch.randn(400, *mean.shape[1:])
    found = posterior_statistics(vae, iter(mels[:1]))
    assert found["std"] == pytest.approx(float(drawn.std()), rel=0.01)
    assert found["channel_std"] == pytest.approx(drawn.std((0, 2, 3)).tolist(), rel=0.02)
    assert found["channel_mean"] == pytest.approx(drawn.mean((0, 2, 3)).tolist(), abs=0.02)
    assert found["width"] == pytest.approx(float((0.5 * logvar).exp().mean()))
    assert card["posterior"]["clips"] == 8  # four tracks of 3 s, two clips each
    assert card["scaling_factor"] == pytest.approx(1 / card["posterior"]["std"])
    file = tmp_path / "vae/vae/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.pop("encoder.conv_in.bias")
    save_file(weights, file)
    with pytest.raises(ModelError, match=r"encoder\.conv_in\.bias"):
        load_vae(tmp_path / "vae")


def test_it_overfits_four_real_clips(tmp_path):
    params = toy("vae.train.steps=60", "vae.train.learning_rate=5e-3", "vae.adversarial_start=1000",
                 "vae.train.valid_every=60", "vae.train.checkpoint_every=60", "vae.train.ema_decay=0")  # fmt: skip
    history = train_vae(params, demo_shards(tmp_path / "demo", params, 1.3), tmp_path / "vae", tmp_path / "ck")
    assert history.losses["reconstruction"] < 0.9  # of nats; all-zero output has 6


def test_a_segment_longer_than_the_clip_is_refused():
    with pytest.raises(ParamsError, match=r"vae.segment_frames: 4096 must be a multiple"):
        resolve({"preset": "tiny"}, ["vae.segment_frames=4096"])


def test_files_are_where_diffusers_reads_them(shards, tmp_path):
    from diffusers import AutoencoderKL

    train_vae(toy("vae.train.steps=1"), shards, tmp_path / "vae", tmp_path / "ck")
    network = AutoencoderKL.from_pretrained(str(Path(tmp_path / "vae")), subfolder="vae", local_files_only=True)
    ours = load_vae(tmp_path / "vae")
    for a, b in zip(network.parameters(), ours.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_goes_on_from_another_vae(shards, tmp_path):
    train_vae(toy("vae.train.steps=2"), shards, tmp_path / "first", tmp_path / "ck")
    further = toy(f"vae.init_from={tmp_path / 'first'}", "vae.kl_weight=0.5", "vae.train.steps=1")
    for a, b in zip(VaeTask(further, ShardReader(shards)).vae.parameters(),
                    load_vae(tmp_path / "first").network.parameters(), strict=True):  # fmt: skip
        assert torch.equal(a, b)
    train_vae(further, shards, tmp_path / "second", tmp_path / "ck")
    assert set(model_card(tmp_path / "second")["origin"]) == {"data", "init_from"}
    wider = toy(f"vae.init_from={tmp_path / 'first'}", "vae.latent_channels=6")
    with pytest.raises(ModelError, match="cannot be loaded"):
        VaeTask(wider, ShardReader(shards))


def test_sharpening_moves_bins_away_from_their_neighbourhood():
    mel = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    found = sharpened(mel, 0.25, 0.5)
    for b, t, f in ((0, 0, 0), (1, 2, 4), (0, 1, 7)):
        before, beside = mel[b, max(0, t - 2) : t + 3, f], mel[b, t, max(0, f - 2) : f + 3]
        expected = 1.75 * mel[b, t, f] - 0.25 * before.mean() - 0.5 * beside.mean()
        assert float(found[b, t, f]) == pytest.approx(float(expected), abs=1e-5)
    assert sharpened(mel, 0.0, 0.0) is mel
    flat = torch.full((1, 2, 8), -3.0)
    torch.testing.assert_close(sharpened(flat, 0.7, 0.7), flat)


def test_decoding_sharpens_by_the_models_own_parameter(shards, tmp_path):
    train_vae(toy("vae.train.steps=1"), shards, tmp_path / "vae", tmp_path / "ck")
    plain = load_vae(tmp_path / "vae")
    sharp = Vae(plain.network, toy("vae.sharpening=[0.2,0.3]"))
    z = torch.randn(1, 4, 64, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sharp.decode(z), sharpened(plain.decode(z), 0.2, 0.3))
    assert not torch.allclose(sharp.decode(z), plain.decode(z))
