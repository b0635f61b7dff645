"""What loader workers hand over is what one process reads."""

import torch

from stages.data.dataset import StepBatches
from stages.training.batches import PIPE_BYTES, loader, on_device
from stages.training.loop import train
from tests.training.toy import ToyTask, Vectors, bits, settings

CPU = torch.device("cpu")


class Large(Vectors):
    """Beside the vectors something that does not fit into a message."""

    def __getitem__(self, item):
        return {**super().__getitem__(item), "large": torch.full((PIPE_BYTES // 16,), float(item[0]))}


def test_small_parts_of_a_batch_come_as_arrays_and_all_of_it_is_the_same_on_the_device():
    dataset = Large()
    raw, plain = (list(loader(dataset, StepBatches(len(dataset), 8, 6), CPU, workers)) for workers in (2, 0))
    assert {key: type(value).__name__ for key, value in raw[0].items()} == {
        "x": "ndarray", "track": "ndarray", "draw": "ndarray", "large": "Tensor"
    }  # fmt: skip
    assert len(raw) == len(plain) == 6
    for batch, wanted in zip(raw, plain, strict=True):
        found = on_device(batch, CPU)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert found[key].dtype == value.dtype
            assert torch.equal(found[key], value)


def test_workers_change_no_bit_of_a_training(tmp_path):
    tasks = [ToyTask(settings(workers=workers)) for workers in (0, 2)]
    for task in tasks:
        train(task, checkpoints=tmp_path / str(task.settings.workers), identity={"a": "1"})
    assert bits(tasks[0].state) == bits(tasks[1].state)
