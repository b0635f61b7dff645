"""A training small enough to run in milliseconds: a network and an adversary on fixed random vectors."""

import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from stages.params import Training
from stages.training.loop import train
from stages.training.state import build_state, frozen


class Vectors(torch.utils.data.Dataset):
    """Item (i, draw) is vector i and a target, moved by the draw seed alone."""

    def __init__(self, count=32, bad=(), seed=0):
        self.values = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
        self.bad = set(bad)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, item):
        index, draw = item
        x = self.values[index] + 0.1 * torch.randn(8, generator=torch.Generator().manual_seed(draw))
        return {"x": x * float("nan") if index in self.bad else x, "track": index}


def batch_of(dataset, draws):
    """A batch as the loop hands it to a step."""
    return torch.utils.data.default_collate([{**dataset[draw], "draw": draw[1]} for draw in draws])


class ToyTask:
    """Autoencodes vectors through dropout against a judge; `noise` off makes a step independent of the rank."""

    name = "toy"

    def __init__(self, settings, dataset=None, noise=True):
        torch.manual_seed(settings.seed)
        self.settings, self.dataset, self.valid_dataset = settings, dataset or Vectors(), Vectors(8, seed=1)
        network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.2 if noise else 0.0), nn.Linear(16, 8))
        self.judge = nn.Linear(8, 1)
        self.state = build_state({"network": network, "judge": self.judge}, settings, len(self.dataset))
        self.seen = []

    def step(self, batch, step, backward):
        self.seen.append((step, batch["track"].tolist()))
        self.state.uses[int(os.environ.get("RANK", "0")), step // 2] += 1
        network, judge = self.state.modules["network"], self.state.modules["judge"]
        made = network(batch["x"])
        with frozen(self.judge):
            loss = F.mse_loss(made, batch["x"]) - 0.01 * self.judge(made).mean()
        backward("network", loss)
        judged = F.relu(1 - judge(torch.cat([batch["x"], -made.detach()]))).mean()
        backward("judge", judged)
        return {"loss": loss, "judge": judged}

    def validate(self, batch, generator):
        x = batch["x"] + 0.01 * torch.randn(batch["x"].shape, generator=generator)
        return {"loss": F.mse_loss(self.state.modules["network"](x), batch["x"])}

    def track_id(self, track):
        return f"track-{track}"


def settings(**changes):
    base = {"steps": 12, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 3, "schedule": "cosine",
            "ema_decay": 0.9, "valid_every": 4, "valid_batches": 2, "checkpoint_every": 3, "keep_last": 2,
            "workers": 0, "precision": "fp32", "grad_clip": 1.0}  # fmt: skip
    return Training(**{**base, **changes})


def bits(state):
    """Every number a state holds, in one order."""
    tensors = [t for module in [*state.modules.values(), state.ema] for t in module.state_dict().values()]
    for optimizer in state.optimizers.values():
        tensors += [v for s in optimizer.state_dict()["state"].values() for v in s.values()]
    rates = [scheduler.state_dict() for scheduler in state.schedulers.values()]
    return [t.tolist() for t in tensors], [(r["last_epoch"], r["_last_lr"]) for r in rates]


if __name__ == "__main__":  # one process of several: `toy.py OUT`, told its rank by the environment
    task = ToyTask(settings(steps=5, accumulation=int(os.environ.get("ACCUMULATION", "1"))), noise=False)
    said: list[str] = []
    train(task, checkpoints=Path(sys.argv[1]), identity={"a": "1"}, log=said.append)
    if os.environ["RANK"] == "0":
        kept = {
            "weights": [p.detach() for p in task.state.network.parameters()],
            "uses": dict(task.state.uses),
            "said": said,
        }
        torch.save(kept, Path(sys.argv[1]) / "kept.pt")
    torch.distributed.destroy_process_group()
