import json
import os
import signal
import subprocess
import sys
import time
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
from stages.training.checkpoint import steps_on_disk
from stages.vae import losses
from stages.vae.model import build, load_vae
from stages.vae.train import VaeTask, latent_scale, train_vae
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
    assert losses.adaptive_weight(*gradients) == pytest.approx(5.0 / (2.0 + 1e-4))
    assert losses.adaptive_weight(gradients[0], torch.zeros(2)) == losses.WEIGHT_LIMIT
    assert weight.grad is None


def test_a_patch_score_depends_on_its_own_clip_only():
    judge = losses.PatchDiscriminator(8, 3)
    images = torch.randn(3, 1, 64, 64)
    torch.testing.assert_close(judge(images)[1:2], judge(images[1:2]))
    assert judge(images).shape == (3, 1, 6, 6)  # three halvings of 64, then two convolutions without stride
    assert [m.out_channels for m in judge.body if isinstance(m, torch.nn.Conv2d)] == [8, 16, 32, 64, 1]


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
    assert latent_scale(vae, iter(mels[:1])) == pytest.approx(1 / float(drawn.std()), rel=0.01)
    file = tmp_path / "vae/vae/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.pop("encoder.conv_in.bias")
    save_file(weights, file)
    with pytest.raises(ModelError, match=r"encoder\.conv_in\.bias"):
        load_vae(tmp_path / "vae")


def test_the_gan_goes_on_to_the_same_bits_after_kill_9(shards, tmp_path):
    """Both optimizers, the moving average and the weights; the first part dies in another process."""
    params = toy("vae.train.steps=8", "vae.train.checkpoint_every=1")
    train_vae(params, shards, tmp_path / "whole", tmp_path / "whole-ck")
    script = (
        "import sys, time; from pathlib import Path; from stages.params import resolve; "
        "from stages.vae.train import VaeTask, train_vae; step = VaeTask.step\n"
        "def slow(self, batch, number, backward):\n"
        "    time.sleep(60 if number == 5 else 0); return step(self, batch, number, backward)\n"
        "VaeTask.step = slow\n"
        "train_vae(resolve({'preset': 'tiny'}, sys.argv[3:]), Path(sys.argv[1]), Path(sys.argv[2]) / 'parts', "
        "Path(sys.argv[2]) / 'parts-ck')"
    )
    options = [*TOY, "vae.train.steps=8", "vae.train.checkpoint_every=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", script, str(shards), str(tmp_path), *options], env=environment)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("parts-ck/vae/*/step-00000005")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "parts").exists()
    history = train_vae(params, shards, tmp_path / "parts", tmp_path / "parts-ck", resume=True)
    assert history.resumed_at == 5
    last = [steps_on_disk(next((tmp_path / name / "vae").iterdir()))[-1] for name in ("whole-ck", "parts-ck")]
    whole, parts = (json.loads((folder / "checkpoint.json").read_text()) for folder in last)
    assert whole.keys() == parts.keys()
    files = [name for name in whole["files"] if name.endswith(".safetensors")]
    assert sorted(files) == ["discriminator.safetensors", "ema.safetensors", "vae.safetensors"]
    assert {name: whole["files"][name] for name in files} == {name: parts["files"][name] for name in files}
    saved = [torch.load(folder / "optimizers.pt", weights_only=True) for folder in last]
    for name in ("vae", "discriminator"):
        for a, b in zip(*(s["optimizers"][name]["state"].values() for s in saved), strict=True):
            assert all(torch.equal(a[key], b[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert (tmp_path / "parts/vae/config.json").read_bytes() == (tmp_path / "whole/vae/config.json").read_bytes()


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
