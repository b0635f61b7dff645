"""The one training loop: step, log, validate, checkpoint. Accelerate moves it to devices and processes.

A step is a pure function of the state before it, the seed and the step's number: the loader's position is the
step, and torch's global generator is seeded anew for each step. So a training stopped anywhere, even by
kill -9, goes on from its last checkpoint to the same bits.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from accelerate.utils import gather_object

from stages.data.dataset import Draw, StepBatches
from stages.errors import Interrupted, ModelError, ParamsError
from stages.progress import Progress, silent
from stages.store import exclusive, write_json
from stages.training import checkpoint
from stages.training.batches import Batch, Clock, loader, micro_batches, on_device, step_seed
from stages.training.checkpoint import Position
from stages.training.clips import spread
from stages.training.devices import Backpropagation, build_accelerator, float_norms, lost_processes
from stages.training.log import Journal, journal, show
from stages.training.samples import Sample
from stages.training.signals import stop_signals
from stages.training.state import Sampling, Surveying, Task, averaged_weights

LOG_EVERY = 10  # steps
Say = Callable[[str], None]


class Options(TypedDict, total=False):
    """How a training is run, whatever it trains; see `train`."""

    resume: bool | None
    progress: Progress
    log: Say | None
    warn: Say | None
    trackers: Sequence[str]


@dataclass
class History:
    """What a training did: where its run is, how it ended, and the figures of its last validation."""

    run: Path
    steps: int = 0
    resumed_at: int = 0
    skipped: int = 0  # steps without a finite loss, in this call
    losses: dict[str, float] = field(default_factory=dict)
    valid: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best_loss: float | None = None
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)  # measured on the finished model


def train(
    task: Task,
    *,
    checkpoints: Path,
    identity: dict[str, str],
    resume: bool | None = None,
    progress: Progress = silent,
    log: Say | None = None,
    warn: Say | None = None,
    trackers: Sequence[str] = (),
) -> History:
    """Train `task` for settings.steps steps, leaving `task.state` at the last one, its modules unwrapped.

    resume None: go on where a run of the same identity stopped, else start anew; True: refuse to start anew
    (ModelError naming what differs); False: start anew, deleting the run of this identity. `log` gets one
    line per validation, `warn` what went wrong on the way, `trackers` (tensorboard, dvclive, wandb) all
    figures and samples. Raises ModelError after max_bad_steps steps in a
    row without a finite loss; DataError where another run of the same training is at work; Interrupted, with the
    state saved, on SIGTERM or SIGINT, and Interrupted with the last checkpoint left where another process of this
    training is gone.
    """
    run = Run(task, checkpoints / task.name, identity, progress, log or _nobody, warn or _nobody)
    alone = exclusive(run.run) if run.accelerator.is_main_process else nullcontext()
    with alone, lost_processes(run.run):
        return run.train(resume, trackers)


class Run:
    """One call of `train`: the task, its accelerator, and its place on disk."""

    def __init__(
        self, task: Task, root: Path, identity: dict[str, str], progress: Progress, log: Say, warn: Say
    ) -> None:
        self.task, self.settings, self.state = task, task.settings, task.state
        self.root, self.identity = root, identity
        self.key = f"{task.name.replace('-', '_')}.train"  # of params.yaml
        self.run = root / checkpoint.digest(identity)
        self.progress, self.log, self.warn = progress, log, warn
        self.accelerator = build_accelerator(self.settings)
        self.position, self.history = Position(), History(self.run)
        self.clock = Clock()

    def train(self, resume: bool | None, trackers: Sequence[str]) -> History:
        started = time.monotonic()
        self._begin(resume)
        with self.wrapped() as backward, stop_signals() as stopped, self._journal(trackers) as written:
            for step, batch in self.batches():
                self.step(batch, step, backward, written)
                done, last = step + 1, step + 1 == self.settings.steps
                self.progress(f"train {self.task.name}", done, self.settings.steps)
                improved = (last or done % self.settings.valid_every == 0) and self._validate(written)
                interrupted = self._any(stopped.is_set())
                if improved or last or interrupted or done % self.settings.checkpoint_every == 0:
                    self._save()
                if interrupted:
                    raise Interrupted(
                        f"Stopped at step {done} of {self.settings.steps}; the state is in {self.run}.",
                        "The same command goes on from there.",
                    )
            if self.history.resumed_at == self.settings.steps:  # it was finished before
                self._validate(written)
        self.history.steps, self.history.seconds = self.position.step, time.monotonic() - started
        self.history.best_step, self.history.best_loss = self.position.best_step, self.position.best_loss
        return self.history

    def _begin(self, resume: bool | None) -> None:
        """Put the state where this training stands, and the run's folder in order."""
        main = self.accelerator.is_main_process
        if resume is False and main:
            shutil.rmtree(self.run, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.to_device()
        found = checkpoint.load_latest(self.run, self.state, self.settings.steps, self.warn)
        if found is None:
            self._explain_fresh_start(resume)
        self.position = found or Position()
        self.history.resumed_at = self.position.step
        if main:
            write_json(self.run / checkpoint.IDENTITY, self.identity)
        self.accelerator.wait_for_everyone()

    def to_device(self) -> None:
        for module in [*self.state.modules.values(), *([self.state.ema] if self.state.ema is not None else [])]:
            module.to(self.accelerator.device)

    def _explain_fresh_start(self, resume: bool | None) -> None:
        if resume is False:
            return
        differs = checkpoint.differences(self.root, self.identity)
        if resume:
            reason = f"the nearest run differs: {differs}" if differs else f"there is none below {self.root}"
            raise ModelError(
                f"No checkpoint of this {self.task.name} training to go on from; {reason}.",
                "Leave out --resume to start anew, or use the parameters and data of the run to go on with.",
            )
        if differs:
            self.warn(f"Starting anew; an earlier {self.task.name} training was another one: {differs}.")

    @contextmanager
    def wrapped(self) -> Iterator[Backpropagation]:
        """The state's modules prepared for devices, processes and precision; unwrapped again at the end."""
        plain = dict(self.state.modules)
        self.state.modules.update({name: self.accelerator.prepare(module) for name, module in plain.items()})
        steppers = {name: self.accelerator.prepare(optimizer) for name, optimizer in self.state.optimizers.items()}
        self._set_mode(training=True)
        try:
            with float_norms(plain.values(), self.accelerator):
                yield Backpropagation(self.accelerator, self.settings, self.state, steppers)
        finally:
            for module in plain.values():  # autocast was wrapped around its forward
                self.accelerator.unwrap_model(module, keep_fp32_wrapper=False).eval()
            self.state.modules.update(plain)

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """(step, this process's slice of the global batch), from the position on."""
        settings, world = self.settings, self.accelerator.num_processes
        if settings.batch_size % (world * settings.accumulation):
            raise ParamsError(
                f"{self.key}.batch_size {settings.batch_size} does not divide by {world} processes "
                f"x {settings.accumulation} accumulation steps.",
                "Choose a multiple, so that every process sees equal slices.",
            )
        sampler = StepBatches(
            len(self.task.dataset), settings.batch_size, settings.steps, start_step=self.position.step,
            seed=settings.seed, rank=self.accelerator.process_index, world_size=world,
        )  # fmt: skip
        batches = loader(self.task.dataset, sampler, self.accelerator.device, settings.workers)
        for step, batch in enumerate(self.clock.waits(batches), start=self.position.step):
            yield step, on_device(batch, self.accelerator.device)

    def step(self, batch: Batch, step: int, backward: Backpropagation, written: Journal) -> None:
        """One optimizer step over all micro-batches, or none where a loss or gradient is not finite."""
        seed = step_seed(self.settings.seed, step, self.accelerator.process_index)
        parts = micro_batches(batch, self.settings.accumulation)
        if len(parts) > 1 and isinstance(self.task, Surveying):
            torch.manual_seed(seed)
            self.task.survey(parts)
        torch.manual_seed(seed)
        sums: dict[str, float] = {}
        for number, part in enumerate(parts):
            with backward.part(last=number == len(parts) - 1):
                for name, value in self.task.step(part, step, backward).items():
                    sums[name] = sums.get(name, 0.0) + float(value.detach()) / len(parts)
        norms = backward.clip()
        bad = self._any(not all(np.isfinite(value) for value in (*sums.values(), *norms.values())))
        backward.finish(take=not bad)
        self._count(bad, step, batch)
        if not bad and self.state.ema is not None:
            self.state.ema.update_parameters(self.accelerator.unwrap_model(self.state.network))
        if not bad:
            self.history.losses = sums
            if (step + 1) % LOG_EVERY == 0:
                more = {f"norm/{name}": value for name, value in norms.items()}
                more |= {f"lr/{name}": o.param_groups[0]["lr"] for name, o in self.state.optimizers.items()}
                written.figures(step + 1, self._mean(sums) | more | self.clock.figures())

    def _count(self, bad: bool, step: int, batch: Batch) -> None:
        in_a_row = self.position.bad_steps + 1 if bad else 0
        self.position = Position(step + 1, in_a_row, self.position.best_step, self.position.best_loss)
        self.history.skipped += bad
        if bad and in_a_row >= self.settings.max_bad_steps:
            tracks = sorted({self.task.track_id(int(track)) for track in batch["track"]})
            raise ModelError(
                f"The loss was not finite in {in_a_row} steps in a row, up to step {step + 1} with the tracks "
                f"{', '.join(tracks)}.",
                f"Lower {self.key}.learning_rate, set {self.key}.grad_clip or precision: fp32, or check these tracks.",
            )

    @torch.no_grad()
    def _validate(self, written: Journal) -> bool:
        """Figures and samples of the averaged weights on fixed windows of the valid split, by every process.

        Returns whether their `loss` is the best so far.
        """
        batches = self.valid_batches()
        if not batches:
            return False
        self._set_mode(training=False)
        with averaged_weights(self.state):
            sums = self.valid_figures(batches)
            written.samples(self.position.step, self._samples())
        self._set_mode(training=True)
        step, best = self.position.step, self.position.best_loss
        self.history.valid = sums
        written.figures(step, {f"valid/{name}": value for name, value in sums.items()})
        self.history.losses = self._mean(self.history.losses)
        trained = f"train {show(self.history.losses)}; " if self.history.losses else ""  # none yet after a resume
        self.log(f"step {step}: {trained}valid {show(sums)}")
        improved = bool(np.isfinite(sums["loss"])) and (best is None or sums["loss"] < best)
        if improved:
            self.position = Position(step, self.position.bad_steps, step, sums["loss"])
        return improved

    @torch.no_grad()
    def valid_figures(self, batches: list[list[Draw]]) -> dict[str, float]:
        """The mean of the task's figures over these batches, each time with the same random draws."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        sums: dict[str, float] = {}
        for batch in loader(self.task.valid_dataset, batches, self.accelerator.device):
            for name, value in self.task.validate(on_device(batch, self.accelerator.device), generator).items():
                sums[name] = sums.get(name, 0.0) + float(value) / len(batches)
        return sums

    def _samples(self) -> list[Sample]:
        if not self.accelerator.is_main_process or not self.settings.samples or not isinstance(self.task, Sampling):
            return []
        draws = spread(self.task.valid_dataset, self.settings.samples)
        (batch,) = loader(self.task.valid_dataset, [draws], self.accelerator.device)
        return self.task.samples(
            on_device(batch, self.accelerator.device), torch.Generator().manual_seed(self.settings.seed)
        )

    def valid_batches(self) -> list[list[Draw]]:
        """The draws of a validation; none without a valid split."""
        if self.task.valid_dataset is None or len(self.task.valid_dataset) == 0:
            return []
        size = self.settings.batch_size // self.settings.accumulation
        draws = spread(self.task.valid_dataset, size * self.settings.valid_batches)
        return [draws[start : start + size] for start in range(0, len(draws), size)]

    def _set_mode(self, training: bool) -> None:
        for module in self.state.modules.values():
            module.train(training)

    def _save(self) -> None:
        if self.accelerator.num_processes > 1:
            for uses in gather_object([self.state.uses]):
                self.state.uses |= uses  # of each the larger number, which is that of its own process
        if self.accelerator.is_main_process:
            plain = {name: self.accelerator.unwrap_model(m) for name, m in self.state.modules.items()}
            state = replace(self.state, modules=plain)
            checkpoint.save(self.run, state, self.position, self.identity)
            checkpoint.prune(self.run, self.settings.keep_last, self.position.best_step)
        self.accelerator.wait_for_everyone()

    def _any(self, here: bool) -> bool:
        """True on every process when it is on one."""
        if self.accelerator.num_processes == 1:
            return here
        return bool(self.accelerator.reduce(torch.tensor(float(here), device=self.accelerator.device)) > 0)

    def _mean(self, figures: dict[str, float]) -> dict[str, float]:
        """The means over all processes; all must ask for them."""
        if self.accelerator.num_processes == 1:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=self.accelerator.device)
        return dict(zip(figures, self.accelerator.reduce(values, "mean").tolist(), strict=True))

    def _journal(self, trackers: Sequence[str]) -> AbstractContextManager[Journal]:
        main = self.accelerator.is_main_process
        return journal(self.run, self.position.step, trackers) if main else nullcontext(Journal(None))


def _nobody(_text: str) -> None:
    return None
