"""The diffusion model's training: exact resume, what it saves, and that it can learn."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.pipelines.deprecated.musicldm import MusicLDMPipeline
from torch.nn import functional as F

from stages.audio.mel import clip_mel
from stages.data.dataset import ClipDataset
from stages.data.shards import ShardReader
from stages.errors import ModelError, ParamsError
from stages.ldm import lora
from stages.ldm.latents import LatentReader, prepare
from stages.ldm.model import load_ldm
from stages.ldm.train import LdmTask, build_task, train_ldm
from stages.store import model_card, model_folder, verify_model
from stages.training.draws import generators
from stages.training.loop import train
from stages.training.state import averaged_weights
from stages.vae.model import Vae
from stages.vae.model import build as build_vae
from stages.vae.train import posterior_statistics
from tests.ldm.toy import save_untrained, toy_params
from tests.training.demo import demo_shards
from tests.training.toy import batch_of


def task_of(project, params):
    return build_task(params, project.latents, project.shards, project.clap, project.vae, project.vocoder)


def run(project, params, checkpoints, out, **options):
    return train_ldm(params, project.latents, project.shards, project.clap, project.vae, project.vocoder, out,
                     checkpoints, **options)  # fmt: skip


def weights(task):
    return torch.cat([p.detach().flatten() for p in (*task.model.parameters(), *task.state.ema.module.parameters())])


@pytest.mark.parametrize("bank", [0, 8])
def test_resumed_training_gives_the_same_bits(project, tmp_path, bank):
    """Stopped after step 2 of 4, mixing by the bank and on the fly; text conditions, which need no vocoder."""
    ldm = {"mixup": "blm", "condition": "text", "mixup_bank": bank}

    def trained(name, *lengths):
        for steps in lengths:
            settings = {**toy_params().ldm.train.model_dump(), "steps": steps}
            task = task_of(project, toy_params(**ldm, train=settings))
            history = train(task, checkpoints=tmp_path / name, identity={"a": "b"})
        return task, history

    whole, _ = trained("whole", 4)
    parts, history = trained("parts", 2, 4)
    assert history.resumed_at == 2
    assert torch.equal(weights(whole), weights(parts))
    if bank:
        assert parts.bank.statistics() == whole.bank.statistics()
        assert sum(whole.bank.uses.values()) > sum(trained("short", 2)[0].bank.uses.values()) > 0
    other, _ = trained("shorter", 3)
    assert not torch.equal(weights(whole), weights(other))


def test_pipeline_folder_is_whole_and_is_musicldms(project, tmp_path):
    params = toy_params(mixup="none", train={**toy_params().ldm.train.model_dump(), "steps": 2})
    out = tmp_path / "ldm"
    history = run(project, params, tmp_path / "checkpoints", out)
    assert history.steps == 2
    assert verify_model(out) == []
    card = model_card(out, "ldm")
    assert card["steps"] == 2
    assert card["losses"]["loss"] > 0
    ours = load_ldm(out)
    pipe = MusicLDMPipeline.from_pretrained(out)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert (pipe.scheduler.config.steps_offset, pipe.scheduler.config.set_alpha_to_one) == (1, False)
    z, t, c = torch.randn(2, *params.latent_shape), torch.tensor([3, 700]), F.normalize(torch.randn(2, 64), dim=-1)
    with torch.no_grad():
        theirs = pipe.unet(z, t, encoder_hidden_states=None, class_labels=c).sample
        torch.testing.assert_close(ours(z, t, c), theirs, rtol=1e-4, atol=1e-5)
    made = pipe(prompt_embeds=c[:1], audio_length_in_s=2.56, num_inference_steps=2, guidance_scale=1.0).audios
    assert np.isfinite(made).all()
    assert made.shape == (1, params.audio.clip_samples)

    further = toy_params(mixup="none", condition="text", init_from=str(out))
    started = task_of(project, further)
    assert torch.equal(started.model.unet.conv_in.weight, ours.unet.conv_in.weight)
    with pytest.raises(ModelError, match="not a ldm model"):
        run(project, toy_params(init_from=str(project.vae)), tmp_path / "checkpoints", out)


def test_null_is_drawn_in_training_only(project):
    params = toy_params(mixup="none", null_probability=1.0)
    task = LdmTask(LatentReader(project.latents), ShardReader(project.shards), params, None)
    seen = []
    task.model.register_forward_pre_hook(lambda _module, args: seen.append(args[3]))
    batch = batch_of(task.dataset, [(i, i) for i in range(4)])
    task.step(batch, 0, lambda _name, loss: loss.backward())
    assert seen[-1].tolist() == [True] * 4
    assert task.model.null.grad.abs().sum() > 0
    with torch.no_grad():
        first = task.validate(batch, torch.Generator().manual_seed(0))["loss"]
        assert seen[-1] is None
        assert torch.equal(first, task.validate(batch, torch.Generator().manual_seed(0))["loss"])


def test_mixing_replaces_the_stated_share(project):
    task = task_of(project, toy_params(mixup="blm", condition="text"))
    batch = batch_of(task.dataset, [(i % len(task.dataset), i) for i in range(200)])
    torch.manual_seed(0)
    _, condition = task._mixed(batch, 0, generators(batch))
    mixed = (condition != batch["condition"]).any(1).float().mean()
    assert float(mixed) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_loss_of_a_step_against_diffusers(project, prediction):
    """The mean squared error of what DDPMScheduler makes of the same draws."""
    params = toy_params(mixup="none", prediction=prediction, null_probability=0.0)
    task = LdmTask(LatentReader(project.latents), ShardReader(project.shards), params, None)
    generator = torch.Generator().manual_seed(0)
    z, noise = (torch.randn(3, *params.latent_shape, generator=generator) for _ in range(2))
    t, condition = torch.tensor([0, 400, 999]), F.normalize(torch.randn(3, 64, generator=generator), dim=-1)
    scheduler = DDPMScheduler(1000, 0.0015, 0.0195, "scaled_linear", prediction_type=prediction)
    with torch.no_grad():
        made = task.model.unet(scheduler.add_noise(z, noise, t), t, None, class_labels=condition).sample
        wanted = noise if prediction == "epsilon" else scheduler.get_velocity(z, noise, t)
        found = task._losses(z, condition, t, noise, None)
    torch.testing.assert_close(found, (made - wanted).square().mean((1, 2, 3)), rtol=1e-4, atol=1e-5)


def test_it_overfits_four_real_clips(tmp_path):
    """How much of the noise is left at evenly spread times; the VAE is random, and without posterior noise."""
    settings = {
        "steps": 150,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "workers": 0,
        "ema_decay": 0.9,
        "valid_every": 150,
    }
    params = toy_params(mixup="none", null_probability=0.0, block_out_channels=[32, 64], train=settings)
    params = params.model_copy(update={"latents": params.latents.model_copy(update={"grid_seconds": 100.0})})
    shards = demo_shards(tmp_path / "demo", params, 2.6)
    save_untrained(tmp_path, params)
    noiseless_vae(tmp_path / "vae", params, ShardReader(shards))
    prepare(params, shards, tmp_path / "vae", tmp_path / "clap", tmp_path / "latents")
    task = build_task(params, *(tmp_path / part for part in ("latents", "demo/shards", "clap", "vae", "vocoder")))
    assert len(task.dataset) == 4
    batch = batch_of(task.dataset, [(i % 4, i) for i in range(64)])

    def left():
        with torch.no_grad(), averaged_weights(task.state):
            return float(task.validate(batch, torch.Generator().manual_seed(0))["loss"])

    before = left()
    train(task, checkpoints=tmp_path / "ck", identity={"a": "b"})
    assert before > 0.9
    assert left() < 0.2


def noiseless_vae(folder, params, shards):
    """Random weights, and posteriors of no width, so that a clip has one latent; scaled to unit variance."""
    torch.manual_seed(3)
    network, channels = build_vae(params), params.vae.latent_channels
    with torch.no_grad():
        network.quant_conv.weight[channels:], network.quant_conv.bias[channels:] = 0.0, -30.0
    clips = ClipDataset(shards, "train", params.audio.clip_samples, params.audio.peak)
    mels = (clip_mel(params)(clips[i, 0]["audio"][None]) for i in range(4))
    network.register_to_config(scaling_factor=1 / posterior_statistics(Vae(network, params), mels)["std"])
    with model_folder(folder, "vae", {"params": params.model_dump(mode="json")}) as inside:
        network.to(memory_format=torch.contiguous_format).save_pretrained(inside / "vae")


def test_lora_trains_its_updates_alone_resumes_and_is_merged(project, tmp_path):
    base, short = tmp_path / "base", {**toy_params().ldm.train.model_dump(), "steps": 2}
    run(project, toy_params(mixup="none", train=short), tmp_path / "ck", base)

    def tuned(name, *lengths):
        for steps in lengths:
            params = toy_params(mixup="none", init_from=str(base), lora_rank=2, train={**short, "steps": steps})
            run(project, params, tmp_path / name, tmp_path / f"{name}-ldm")
        return load_ldm(tmp_path / f"{name}-ldm")

    whole, parts, before = tuned("whole", 4), tuned("parts", 2, 4), load_ldm(base)
    moved = {n for n, p in whole.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert moved
    assert all(any(name.endswith(f"{target}.weight") for target in lora.TARGETS) for name in moved)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, parts.get_parameter(name))
    name = sorted(n for n in moved if "to_q" in n)[0]
    update = whole.get_parameter(name) - before.get_parameter(name)
    assert int(torch.linalg.matrix_rank(update.float(), rtol=1e-3)) <= 2
    assert "init_from" in model_card(tmp_path / "whole-ldm")
    with pytest.raises(ParamsError, match=r"ldm.lora_rank: needs a model to update"):
        toy_params(lora_rank=2)


def test_samples_are_clips_of_the_conditions(project):
    task = task_of(project, toy_params(mixup="none"))
    batch = batch_of(task.valid_dataset, [(0, 0)])
    (found,) = task.samples(batch, torch.Generator().manual_seed(0))
    params = task.params
    assert found.audio.shape == (params.audio.clip_samples,)
    assert {name: mel.shape for name, mel in found.mels.items()} == dict.fromkeys(
        ("real", "made"), (params.clip_frames, params.mel.n_mels)
    )
    (again,) = task.samples(batch, torch.Generator().manual_seed(0))
    assert torch.equal(found.audio, again.audio)
