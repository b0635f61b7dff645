"""What the loop promises, of the real networks: the same from several processes, after kill -9, and in bf16."""

import multiprocessing
import os
import signal
import subprocess
import time

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from stages.errors import ParamsError
from stages.training.loop import train
from tests.training.networks import (
    ACCELERATE,
    IDENTITY,
    NAMES,
    build,
    command,
    environments,
    last,
    params_of,
    started,
)
from tests.training.toy import bits


def distance(these, those):
    """|a - b| / |b| over all tensors of two lists."""
    pairs = list(zip(these, those, strict=True))
    assert pairs
    apart = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return (apart / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5


def numbers(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.fixture(scope="module")
def alone(project, tmp_path_factory):
    """All four trained in one process and fp32, without dropout: runs, tasks, weights before, and figures."""
    folder = tmp_path_factory.mktemp("alone")
    tasks, before, histories = {}, {}, {}
    for name in NAMES:
        tasks[name] = build(name, project.work, params_of(), dropout=False)
        before[name] = numbers(tasks[name].state.network)
        histories[name] = train(tasks[name], checkpoints=folder, identity=IDENTITY)
    return folder, tasks, before, histories


@pytest.mark.slow
def test_two_processes_equal_one_at_the_same_global_batch(project, alone, tmp_path):
    """All weights and the gradients' averages, with CLAP's similarities and batch statistics over both processes and
    both of each one's micro-batches.

    Without the statistics of all clips together CLAP's gradients are 0.45 apart, not 0.0003.
    """
    with started(command(project.work, tmp_path, *NAMES, "clap.train.accumulation=2"), environments(2)) as ranks:
        assert [process.wait(timeout=280) for process in ranks] == [0, 0]
    for name in NAMES:
        same_training(tmp_path, alone[0], name)


def same_training(several, one, name):
    """The last checkpoints hold the same weights, and averages of gradients, within float32's error."""
    step, weights, optimizers = last(several, name)
    wanted_step, wanted_weights, wanted_optimizers = last(one, name)
    assert step == wanted_step == "step-00000006"
    assert weights.keys() == wanted_weights.keys()
    for part, wanted in wanted_weights.items():
        floats = [key for key, value in wanted.items() if value.is_floating_point()]
        assert distance([weights[part][key] for key in floats], [wanted[key] for key in floats]) < 2e-4, part
    for part, wanted in wanted_optimizers.items():
        gradients = [[state["exp_avg"] for state in side["state"].values()] for side in (optimizers[part], wanted)]
        assert distance(*gradients) < 2e-3, part


def test_configurations_are_accelerates_own():
    found = {file.stem: load_config_from_file(str(file)) for file in sorted(ACCELERATE.glob("*.yaml"))}
    kinds = {name: (config.distributed_type.value, config.num_processes) for name, config in found.items()}
    assert kinds == {"cpu": ("MULTI_GPU", 2), "ddp": ("MULTI_GPU", 8)}


def killed_at(step, name, work, checkpoints):
    """A training that dies of kill -9 in the middle of a step, behind its last checkpoint."""
    task = build(name, work, params_of(f"{name}.train.checkpoint_every=3"))
    original = task.step

    def step_and_die(batch, number, backward):
        losses = original(batch, number, backward)
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return losses

    task.step = step_and_die
    train(task, checkpoints=checkpoints, identity=IDENTITY)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_training_goes_on_to_the_same_bits(project, tmp_path, name):
    """Weights, both of a GAN's optimizers, schedules and the moving average; dropout and draws come again."""
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=killed_at, args=(4, name, project.work, tmp_path / "parts"))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    sides = {}
    for side in ("parts", "whole"):
        task = build(name, project.work, params_of(f"{name}.train.checkpoint_every=3"))
        sides[side] = task, train(task, checkpoints=tmp_path / side, identity=IDENTITY)
    (parts, history), (whole, _) = sides["parts"], sides["whole"]
    assert history.resumed_at == 3
    assert parts.state.optimizers.keys() == whole.state.optimizers.keys()
    assert bits(parts.state) == bits(whole.state)


@pytest.mark.parametrize(
    ("name", "of_loss", "of_move"),
    [("clap", 0.02, 0.4), ("vae", 0.005, 0.1), ("vocoder", 0.15, 0.8), ("ldm", 0.005, 0.1)],
)
def test_bf16_stays_near_fp32(project, alone, tmp_path, name, of_loss, of_move):
    """After six steps: the loss and how the weights moved, against fp32's; weights themselves stay float32.

    An untrained vocoder is nearly silent, where the log-mel hears bf16's rounding.
    """
    single, before = alone[1][name], alone[2][name]
    task = build(name, project.work, params_of(f"{name}.train.precision=bf16"), dropout=False)
    history = train(task, checkpoints=tmp_path, identity=IDENTITY)
    assert history.skipped == 0
    ends = [numbers(side.state.network) for side in (task, single)]
    moved = [[now - then for now, then in zip(end, before, strict=True)] for end in ends]
    assert history.losses["loss"] == pytest.approx(alone[3][name].losses["loss"], rel=of_loss)
    assert distance(*moved) < of_move
    assert all(parameter.dtype == torch.float32 for parameter in task.state.network.parameters())


def test_fp16_is_refused_with_the_other_params():
    with pytest.raises(ParamsError, match=r"vae\.train\.precision.*'auto', 'fp32' or 'bf16'"):
        params_of("vae.train.precision=fp16")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_leaves_a_checkpoint_to_go_on_from(project, tmp_path, victim):
    """The other one ends by itself within 30 s, in one sentence; the same training goes on in one process."""
    long, deadline = "vae.train.steps=500", time.monotonic() + 120
    call = command(project.work, tmp_path, "vae", long, "vae.train.checkpoint_every=3")
    with started(call, environments(2), stderr=subprocess.PIPE, text=True) as ranks:
        while not list(tmp_path.glob("vae/*/step-00000006")):
            assert all(process.poll() is None for process in ranks)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ranks[victim].kill()
        _, said = ranks[1 - victim].communicate(timeout=30)
    assert ranks[1 - victim].returncode == 1  # 130 through the command line
    assert "Interrupted: Another process of this training is gone; its last checkpoint is in" in said
    task = build("vae", project.work, params_of(long), dropout=False)
    stop = task.step

    def stop_soon(batch, number, backward):
        os.kill(os.getpid(), signal.SIGTERM)
        return stop(batch, number, backward)

    task.step = stop_soon
    with pytest.raises(Exception, match="Stopped at step") as caught:
        train(task, checkpoints=tmp_path, identity=IDENTITY)
    assert int(str(caught.value).split()[3]) >= 7
