"""CLAP's training on real clips: one clip a track, learning, its gradients over two processes."""

import shutil
import sys

import pytest
import torch

from stages.clap.model import load_clap
from stages.clap.train import ClapTask, contrastive_loss, train_clap
from stages.data.dataset import StepBatches
from stages.data.shards import ShardReader, write_shards
from stages.params import resolve
from stages.store import model_card
from stages.training.batches import micro_batches
from tests.clap.two_ranks import features, loss_of
from tests.ldm.toy import TOY, write_collection
from tests.training.demo import demo_shards
from tests.training.networks import environments, started
from tests.training.toy import batch_of


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    work = tmp_path_factory.mktemp("clap")
    write_collection(work)
    write_shards(work / "audio/manifest.csv", work / "beats.jsonl", work / "captions.jsonl", work / "shards", params(1))
    return work / "shards"


def params(steps, **more):
    training = {"steps": steps, "batch_size": 8, "warmup_steps": 0, "workers": 0, "valid_every": 20, **more}
    return resolve({**TOY, "clap": {**TOY["clap"], "train": training}})


def test_a_batch_holds_one_clip_of_a_track(shards):
    task = ClapTask(ShardReader(shards), params(1))
    assert len(task.dataset) == 9  # training tracks
    batch = StepBatches(len(task.dataset), 8, 1).global_batch(0)
    assert len({task.dataset[draw]["track"] for draw in batch}) == 8
    assert len({float(task.dataset[0, seed]["audio"].abs().sum()) for seed in range(6)}) > 1  # other clips of it


def test_every_weight_takes_part(shards):
    """Else several processes would wait for a gradient that never comes."""
    task = ClapTask(ShardReader(shards), params(1))
    batch = batch_of(task.dataset, [(i, i) for i in range(3)])
    task.step(batch, 0, lambda _name, loss: loss.backward())
    assert [name for name, p in task.clap.named_parameters() if p.grad is None] == []


def test_training_learns_and_is_saved(shards, tmp_path):
    history = train_clap(params(30), shards, tmp_path / "clap", tmp_path / "checkpoints")
    assert history.losses["loss"] < 1.8  # chance is log 8 = 2.08
    card = model_card(tmp_path / "clap", "clap")
    assert card["retrieval_tracks"] == 1
    assert card["retrieval"]["audio_to_text_r1"] == 1.0
    assert load_clap(tmp_path / "clap").embed_text(["music like click a"]).shape == (1, 64)


def test_it_overfits_four_real_clips(tmp_path):
    chosen = params(100, batch_size=4, learning_rate=5e-4, warmup_steps=30, schedule="constant", valid_every=100)
    history = train_clap(chosen, demo_shards(tmp_path / "demo", chosen, 2.6), tmp_path / "clap", tmp_path / "ck")
    assert history.losses["loss"] < 0.1  # chance is log 4 = 1.39


def test_a_model_to_start_from_counts_by_its_content(shards, tmp_path):
    """Moved, it is the same training; another one in its place is not."""
    train_clap(params(1), shards, tmp_path / "first", tmp_path / "ck")
    further = resolve(params(2).model_dump(), [f"clap.init_from={tmp_path / 'first'}"])
    first = train_clap(further, shards, tmp_path / "second", tmp_path / "ck")
    shutil.move(tmp_path / "first", tmp_path / "moved")
    moved = resolve(further.model_dump(), [f"clap.init_from={tmp_path / 'moved'}"])
    again = train_clap(moved, shards, tmp_path / "second", tmp_path / "ck")
    assert (again.run, again.resumed_at) == (first.run, 2)
    assert set(model_card(tmp_path / "second")["origin"]) == {"data", "init_from"}
    shutil.rmtree(tmp_path / "moved")
    shutil.copytree(tmp_path / "second", tmp_path / "moved")
    other = train_clap(moved, shards, tmp_path / "third", tmp_path / "ck")
    assert (other.run == first.run, other.resumed_at) == (False, 0)


def gradients(task, batch, parts=1):
    """Of one step, as the loop takes it; the loss; and the buffers after it."""
    if parts > 1:
        torch.manual_seed(0)
        task.survey(micro_batches(batch, parts))
    torch.manual_seed(0)
    for part in micro_batches(batch, parts):
        loss = task.step(part, 0, lambda _name, loss: (loss / parts).backward())["loss"].detach()
    return torch.cat([p.grad.flatten() for p in task.clap.parameters()]), float(loss), dict(task.clap.named_buffers())


def clap_task(shards, accumulation, dropout):
    task = ClapTask(ShardReader(shards), params(1, accumulation=accumulation))
    for part in task.clap.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = dropout
        if hasattr(part, "attention_dropout"):
            part.attention_dropout = dropout
    task.clap.train()
    return task


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_keeps_the_whole_batchs_gradient(shards, accumulation):
    """Loss and batch statistics are those of all micro-batches together."""
    whole, parts = (clap_task(shards, count, 0.0) for count in (1, accumulation))
    batch = batch_of(whole.dataset, [(i, i) for i in range(8)])
    wanted, loss, buffers = gradients(whole, batch)
    found, its_loss, its_buffers = gradients(parts, batch, accumulation)
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
    assert its_loss == pytest.approx(loss, rel=1e-6)
    for name, value in buffers.items():
        torch.testing.assert_close(its_buffers[name], value, rtol=1e-4, atol=1e-5)


def test_dropout_comes_again_when_gradients_do(shards):
    """Against one graph through all micro-batches, with the same random numbers."""
    task, other = (clap_task(shards, 2, 0.5) for _ in range(2))
    batch = batch_of(task.dataset, [(i, i) for i in range(8)])
    found, loss, _ = gradients(task, batch, 2)
    parts = micro_batches(batch, 2)
    other.clap.measure([other._windows(part) for part in parts])
    torch.manual_seed(0)
    audio, text, *scales = zip(*(other._forward(part, other._drawn_captions(part)) for part in parts), strict=True)
    wanted = contrastive_loss(torch.cat(audio), torch.cat(text), *(scale[0] for scale in scales))
    wanted.backward()
    wanted_gradient = torch.cat([p.grad.flatten() for p in other.clap.parameters()])
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert (found - wanted_gradient).norm() < 1e-5 * wanted_gradient.norm()


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_the_whole_batch(tmp_path):
    """Averaged over both, as DDP does it, though each has half the clips and captions."""
    call = [sys.executable, "-m", "tests.clap.two_ranks", str(tmp_path)]
    with started(call, environments(2)) as ranks:
        assert [process.wait(timeout=150) for process in ranks] == [0, 0]
    network, x, text = features()
    loss_of(network(x), text).backward()
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), network.weight.grad)
