"""CLAP's loss of a small network over two processes, as `python -m tests.clap.two_ranks OUT` is one of them."""

import faulthandler
import os
import sys
from datetime import timedelta

import torch
from torch import nn
from torch.nn import functional as F

from stages.clap.train import contrastive_loss, gather

SECONDS = 60  # for one exchange, where PyTorch would wait half an hour


def features():
    """The network, its clips, and what their captions became."""
    torch.manual_seed(0)
    return nn.Linear(6, 4), torch.randn(8, 6), torch.randn(8, 4)


def loss_of(audio, text):
    return contrastive_loss(F.normalize(audio, dim=-1), F.normalize(text, dim=-1), torch.tensor(5.0), torch.tensor(5.0))


def main(out):
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=SECONDS))  # told by the environment
    rank = int(os.environ["RANK"])
    network, x, text = features()
    network, mine = nn.parallel.DistributedDataParallel(network), slice(4 * rank, 4 * rank + 4)
    loss_of(gather(network(x[mine])), gather(text[mine])).backward()
    torch.save(network.module.weight.grad, f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
