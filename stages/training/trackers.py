"""Where a run's figures, pictures and sound can be followed beside its own files: TensorBoard, DVCLive, W&B."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from stages.errors import MissingDependencyError, UsageError
from stages.training.samples import Sample, pixels


class Tracker(Protocol):
    """One place that is told of a run."""

    def figures(self, step: int, figures: dict[str, float]) -> None: ...

    def sample(self, step: int, name: str, sample: Sample) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """`tensorboard --logdir work/checkpoints` shows all runs; what comes behind `step` will come again."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step)

    def figures(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.board.add_scalar(name, value, step)

    def sample(self, step: int, name: str, sample: Sample) -> None:
        self.board.add_image(f"samples/{name}", pixels(sample.picture()), step, dataformats="HWC")
        waveform = sample.waveform()
        if waveform is not None:
            self.board.add_audio(f"samples/{name}", waveform[None], step, sample_rate=sample.sample_rate)

    def close(self) -> None:
        self.board.close()


class DvcLive:
    """Plots for DVC's editors in the run's `dvclive` folder; no experiment, no report page, nothing sent."""

    def __init__(self, run: Path, step: int) -> None:
        from dvclive import Live

        self.live = Live(str(run / "dvclive"), resume=step > 0, report=None, save_dvc_exp=False, dvcyaml=None)

    def figures(self, step: int, figures: dict[str, float]) -> None:
        self.live.step = step
        for name, value in figures.items():
            self.live.log_metric(name, value)
        self.live.make_summary()

    def sample(self, step: int, name: str, sample: Sample) -> None:
        self.live.step = step
        self.live.log_image(f"{name}.png", pixels(sample.picture()))

    def close(self) -> None:
        self.live.end()


class Wandb:
    """A run of Weights & Biases, by the account and mode of its own settings (WANDB_MODE=offline sends nothing)."""

    def __init__(self, run: Path, step: int) -> None:
        import wandb

        self.wandb = wandb
        name = f"{run.parent.name}-{run.name}"
        self.run = wandb.init(project="musicldm", name=name, id=name, resume="allow", dir=str(run))

    def figures(self, step: int, figures: dict[str, float]) -> None:
        self.run.log(figures, step=step)

    def sample(self, step: int, name: str, sample: Sample) -> None:
        shown: dict[str, Any] = {f"samples/{name}": self.wandb.Image(pixels(sample.picture()))}
        waveform = sample.waveform()
        if waveform is not None:
            shown[f"samples/{name}-sound"] = self.wandb.Audio(waveform, sample_rate=sample.sample_rate)
        self.run.log(shown, step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[Path, int], Tracker]] = {"tensorboard": TensorBoard, "dvclive": DvcLive, "wandb": Wandb}


def open_tracker(name: str, run: Path, step: int) -> Tracker:
    """The tracker `name` of a run that stands at `step`. Raises UsageError and MissingDependencyError."""
    if name not in TRACKERS:
        raise UsageError(f"There is no tracker {name}; there are {', '.join(TRACKERS)}.")
    try:
        return TRACKERS[name](run, step)
    except ImportError as error:
        raise MissingDependencyError(f"The tracker {name} is not installed.", f"Run: pip install {name}") from error
