"""The trainings of all four networks at toy size on the toy project, with both phases of the GANs.

    python -m tests.training.networks WORK CHECKPOINTS NAME ... [-S key=value ...]

is one process of several that tests start.
"""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from stages.clap.train import ClapTask
from stages.data.shards import ShardReader
from stages.ldm.train import build_task
from stages.params import resolve
from stages.training.checkpoint import steps_on_disk
from stages.training.loop import train
from stages.vae.train import VaeTask
from stages.vocoder.train import VocoderTask
from tests.ldm.toy import TOY

NAMES = ("clap", "vae", "vocoder", "ldm")
TRAIN = {"steps": 6, "batch_size": 4, "learning_rate": 1e-4, "workers": 0, "warmup_steps": 0, "valid_every": 3,
         "valid_batches": 1, "checkpoint_every": 1, "keep_last": 9, "ema_decay": 0.9}  # fmt: skip
IDENTITY = {"toy": "1"}
ACCELERATE = Path(__file__).parents[2] / "docs" / "accelerate"


def params_of(*overrides):
    """The toy project's params; adversaries begin at step 2, and clips are mixed on the fly, equally in all ranks."""
    raw = {name: {**TOY.get(name, {}), "train": TRAIN} for name in NAMES}
    raw["vae"]["adversarial_start"] = raw["vocoder"]["adversarial_start"] = 2
    raw["ldm"] |= {"mixup": "blm", "mixup_bank": 0}
    return resolve({**TOY, **raw}, overrides)


def build(name, work, params, dropout=True):
    """One network's task."""
    if name == "ldm":
        task = build_task(params, *(work / part for part in ("latents", "shards", "clap", "vae", "vocoder")))
    elif name == "clap":
        task = ClapTask(ShardReader(work / "shards"), params)
    else:
        task = {"vae": VaeTask, "vocoder": VocoderTask}[name](params, ShardReader(work / "shards"))
    if not dropout:  # each process draws its own
        for part in task.state.network.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
            if hasattr(part, "attention_dropout"):
                part.attention_dropout = 0.0
    return task


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def started(call, environments, **options):
    """One process of `call` for each environment; none is left behind to compute beside later tests."""
    processes = [subprocess.Popen(call, env=variables, **options) for variables in environments]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def environments(world, **more):
    """What Accelerate's launcher tells each process of several on one machine, or of one."""
    several = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common = {**os.environ, "OMP_NUM_THREADS": "1", **several, **more}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def command(work, checkpoints, *names_and_overrides):
    return [sys.executable, "-m", "tests.training.networks", str(work), str(checkpoints), *names_and_overrides]


def last(checkpoints, name):
    """What the last checkpoint of a training holds: its step, weights by file, and optimizers' states by name."""
    (run,) = (checkpoints / name).glob("*/")
    folder = steps_on_disk(run)[-1]
    weights = {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
    return folder.name, weights, torch.load(folder / "optimizers.pt", weights_only=True)["optimizers"]


def main(work, checkpoints, *arguments):
    names = [argument for argument in arguments if argument in NAMES]
    params = params_of(*(argument for argument in arguments if argument not in NAMES))
    for name in names:
        train(build(name, Path(work), params, dropout=False), checkpoints=Path(checkpoints), identity=IDENTITY)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
