"""Training few plain steps to do what many guided ones do, as low-rank updates of a trained diffusion model.

Progressive distillation (Salimans & Ho 2022) in one stage, guidance included (Meng et al. 2023): from a noisy clip the
teacher goes `substeps` guided steps of DPM-Solver++ (2M, Lu et al. 2022), and the student learns to arrive at the same
place by one step of DDIM without guidance. Teacher and student are one network, with its updates off and on.
"""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from stages.data.shards import ShardReader
from stages.errors import DataError
from stages.ldm import diffusion, lora
from stages.ldm.latents import AGAIN, INDEX, LatentDataset, LatentReader, sample_posterior
from stages.ldm.model import LatentDiffusion, load_ldm
from stages.params import Params
from stages.store import CARD, card_facts, model_card, model_digest, model_folder, sha256
from stages.training.card import of_training
from stages.training.checkpoint import training_identity
from stages.training.devices import is_main_process
from stages.training.draws import generators, integers, normal
from stages.training.loop import History, Options, train
from stages.training.state import Backward, averaged_weights, build_state


class FewStepsTask:
    """One step: every clip, noisy as at one of the student's times, to its next time, as the teacher gets there."""

    name = "few-steps"
    phases: tuple[int, ...] = (0,)

    def __init__(self, latents: LatentReader, shards: ShardReader, params: Params, model: LatentDiffusion) -> None:
        self.few, self.settings = params.few_steps, params.few_steps.train
        self.tracks, self.scale, self.prediction = shards.tracks, latents.scale, params.ldm.prediction
        self.dataset = LatentDataset(latents, shards.tracks, "train", self.few.condition, by_track=True)
        self.valid_dataset = LatentDataset(latents, shards.tracks, "valid", self.few.condition)
        torch.manual_seed(self.settings.seed)
        self.model = model.train()
        lora.add(self.model, self.few.lora_rank)
        self.model.unet.to(memory_format=torch.channels_last)
        self.state = build_state({"few_steps": self.model}, self.settings, len(self.dataset))
        self.alpha_bar = diffusion.alphas_cumprod(params.ldm)
        self.times = diffusion.few_times(self.few.steps, params.ldm.diffusion_steps)

    def track_id(self, track: int) -> str:
        return self.tracks[track].id

    def step(self, batch: dict[str, Tensor], _step: int, backward: Backward) -> dict[str, Tensor]:
        items = generators(batch)
        posterior = normal(items, *batch["mean"].shape[1:])
        place = integers(items, self.few.steps)
        loss = self._losses(batch, posterior, normal(items, *posterior.shape[1:]), place).mean()
        backward("few_steps", loss)
        return {"loss": loss}

    def validate(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        posterior, noise = (torch.randn(batch["mean"].shape, generator=generator) for _ in range(2))
        return {"loss": self._losses(batch, posterior, noise, torch.arange(len(noise)) % self.few.steps).mean()}

    def _losses(self, batch: dict[str, Tensor], posterior: Tensor, noise: Tensor, place: Tensor) -> Tensor:
        """Squared error (B,) of the velocity, from the student's time number `place` (B,) of each clip to the next."""
        mean, condition = batch["mean"], batch["condition"]
        z = sample_posterior(mean, batch["logvar"], posterior.to(mean.device), self.scale)
        now, then = self.times[place], self.times[place + 1]
        x = diffusion.add_noise(z, noise.to(z.device), self.alpha_bar[now].to(z.device))
        share = torch.linspace(0, 1, self.few.substeps + 1)
        grid = (now[:, None] + (then - now)[:, None] * share).round().long()
        signal, sigma = diffusion.levels(self.alpha_bar, now, x)
        wanted = self._arrival(x, grid, condition)
        kept, drawn = self._ddim(x, now, then)
        clean = self._clean(self.state.modules["few_steps"](x, now.to(x.device), condition), x, signal, sigma)
        return ((clean - (wanted - kept * x) / drawn) / sigma).square().mean((1, 2, 3))

    @torch.no_grad()
    def _arrival(self, x: Tensor, grid: Tensor, condition: Tensor) -> Tensor:
        """Where the guided teacher gets from x (B, C, H, W) along the times of grid (B, substeps + 1)."""
        before: Tensor | None = None
        length = torch.zeros(len(x))
        for now, then in pairwise(grid.T):
            signal, sigma = diffusion.levels(self.alpha_bar, now, x)
            clean = self._clean(self._guided(x, now, condition), x, signal, sigma)
            step = diffusion.log_snr(self.alpha_bar, then) - diffusion.log_snr(self.alpha_bar, now)
            aim = clean
            if before is not None:  # the second order: by the line through the last two, but not to the very end
                slope = torch.where(then == 0, torch.zeros(()), step / (2 * length)).to(x).view(-1, 1, 1, 1)
                aim = clean + slope * (clean - before)
            kept, drawn = self._ddim(x, now, then)
            x, before, length = kept * x + drawn * aim, clean, step
        return x

    def _guided(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The teacher's prediction, guided in the rows whose time lies in the interval (Kynkaanniemi et al. 2024)."""
        low, high = (share * len(self.alpha_bar) for share in self.few.guidance_interval)
        where = torch.nonzero((low <= t) & (t <= high))[:, 0].to(x.device)
        inner, t = self.model, t.to(x.device)
        with inner.unet.disable_adapter():
            told = inner(x, t, condition)
            if len(where) and self.few.guidance != 1:
                untold = inner(x[where], t[where], inner.null.expand(len(where), -1))
                told = told.index_copy(0, where, untold + self.few.guidance * (told[where] - untold))
        return told

    def _ddim(self, x: Tensor, now: Tensor, then: Tensor) -> tuple[Tensor, Tensor]:
        """(kept, drawn), each (B, 1, 1, 1): a step of DDIM leads to kept * x + drawn * clean."""
        (signal, sigma), (signal_then, sigma_then) = (diffusion.levels(self.alpha_bar, t, x) for t in (now, then))
        return sigma_then / sigma, signal_then - sigma_then * signal / sigma

    def _clean(self, predicted: Tensor, x: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return (x - sigma * predicted) / signal
        return signal * x - sigma * predicted


def build_task(params: Params, latents: Path, shards: Path, ldm: Path) -> FewStepsTask:
    """The training on these folders. Raises DataError when the latents are not the pipeline's, and ModelError."""
    reader, shard_reader = LatentReader(latents), ShardReader(shards)
    model = load_ldm(ldm)
    own = model.params.model_copy(update={"few_steps": params.few_steps})  # the pipeline's sizes count, not those here
    if reader.index["latent_shape"] != list(own.latent_shape) or reader.index["shards"] != shard_reader.digest:
        raise DataError(f"{latents} was made of other shards, or for another pipeline than {ldm}.", AGAIN)
    return FewStepsTask(reader, shard_reader, own, model)


def train_few_steps(
    params: Params, latents: Path, shards: Path, ldm: Path, out: Path, checkpoints: Path, **options: Unpack[Options]
) -> History:
    """Train the updates of the pipeline `ldm` and save it with them as `out`.

    Raises DataError, ModelError and Interrupted as `stages.training.loop.train` does.
    """
    card = model_card(ldm, "ldm")
    task, data = build_task(params, latents, shards, ldm), ShardReader(shards).digest
    identity = training_identity(params, "few_steps", latents=sha256(latents / INDEX), ldm=model_digest(ldm))
    history = train(task, checkpoints=checkpoints, identity=identity, **options)
    if is_main_process():
        with averaged_weights(task.state):
            few = of_training(params, history, data)
            few["params"] = params.few_steps.model_dump(mode="json")
            with model_folder(out, "ldm", card_facts(card) | {"few_steps": few}) as folder:
                shutil.copytree(ldm, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CARD))
                lora.save(task.model, folder / lora.FEW_STEPS)
    return history
