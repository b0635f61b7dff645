"""Training the latent diffusion model, whole or by low-rank updates."""

from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.clap.model import load_clap
from stages.data.shards import ShardReader
from stages.ldm import diffusion, lora
from stages.ldm.folder import save_pipeline
from stages.ldm.latents import LatentDataset, LatentReader, sample_posterior
from stages.ldm.mixup import Bank, Mixer, Pairs
from stages.ldm.model import LatentDiffusion, build_unet, read_weights
from stages.ldm.sampling import sample
from stages.params import Ldm, Params
from stages.store import model_card, model_digest
from stages.training.card import of_training
from stages.training.checkpoint import training_identity
from stages.training.devices import is_main_process, processes
from stages.training.draws import DRAW, generators, integers, normal, uniform
from stages.training.loop import History, Options, train
from stages.training.samples import Sample
from stages.training.state import Backward, averaged_weights, build_state
from stages.vae.model import Vae, load_vae
from stages.vocoder.model import Vocoder, load_vocoder

SAMPLING_STEPS = 50


class LdmTask:
    """The diffusion model's training: denoise latents at random times, on clips and mixed clips.

    With `listener`, the VAE and vocoder behind it, one can see and hear its samples.
    """

    name = "ldm"
    phases: tuple[int, ...] = (0,)

    def __init__(
        self, latents: LatentReader, shards: ShardReader, params: Params, mixer: Mixer | None,
        listener: tuple[Vae, Vocoder] | None = None,
    ) -> None:  # fmt: skip
        self.params, self.ldm, self.settings = params, params.ldm, params.ldm.train
        self.tracks, self.scale = shards.tracks, latents.scale
        self.dataset = LatentDataset(latents, shards.tracks, "train", self.ldm.condition, by_track=True)
        self.valid_dataset = LatentDataset(latents, shards.tracks, "valid", self.ldm.condition)
        self.mixer, self.listener = mixer, listener
        per_step = self.settings.batch_size / processes().num_processes * self.ldm.mixup_probability
        self.bank = Bank(mixer, per_step) if mixer is not None and self.ldm.mixup_bank else None
        torch.manual_seed(self.settings.seed)
        self.model = LatentDiffusion(params, build_unet(params))
        if self.ldm.init_from is not None:
            read_weights(self.model, Path(self.ldm.init_from))
        if self.ldm.lora_rank:
            lora.add(self.model, self.ldm.lora_rank)
        self.model.unet.to(memory_format=torch.channels_last)  # what convolutions on matrix units want
        self.state = build_state({"ldm": self.model}, self.settings, len(self.dataset))
        if self.bank is not None:
            self.state.uses = self.bank.uses
        self.alpha_bar = diffusion.alphas_cumprod(self.ldm)

    def extra_seconds(self, device: torch.device) -> float:
        """For an estimate: seconds of a step, on average, that go into mixed clips; the bank is of no use after it."""
        if self.bank is None:
            return 0.0
        clips = self.bank.clips_made(self.settings.steps)
        return self.bank.hold_one_chunk(device) * clips / self.settings.steps

    def samples(self, batch: dict[str, Tensor], generator: torch.Generator) -> list[Sample]:
        """Clips made from the batch's conditions with the guidance of params."""
        if self.listener is None:
            return []
        vae, vocoder = self.listener[0].to(batch["mean"].device), self.listener[1].to(batch["mean"].device)
        made = sample(self.model, batch["condition"], SAMPLING_STEPS, self.params.generate.guidance, generator)
        mels = {"real": vae.decode(batch["mean"]), "made": vae.decode(made / self.scale)}
        audio, rate = vocoder(mels["made"]), self.params.audio.sample_rate
        return [Sample({name: mel[n] for name, mel in mels.items()}, audio[n], rate) for n in range(len(made))]

    def track_id(self, track: int) -> str:
        return self.tracks[track].id

    def step(self, batch: dict[str, Tensor], step: int, backward: Backward) -> dict[str, Tensor]:
        items = generators(batch)
        z, condition = self._mixed(batch, step, items)
        t = integers(items, self.ldm.diffusion_steps)
        dropped = uniform(items) < self.ldm.null_probability
        noise = normal(items, *z.shape[1:]).to(z.device)
        loss = self._losses(z, condition, t, noise, dropped.to(z.device)).mean()
        backward("ldm", loss)
        return {"loss": loss}

    def validate(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The unweighted loss of the moving average, on unmixed clips, fixed noise and evenly spread times."""
        mean, condition = batch["mean"], batch["condition"]
        posterior, noise = (torch.randn(mean.shape, generator=generator).to(mean.device) for _ in range(2))
        z = sample_posterior(mean, batch["logvar"], posterior, self.scale)
        t = ((torch.arange(len(z)) + 0.5) / len(z) * self.ldm.diffusion_steps).long()
        return {"loss": self._losses(z, condition, t, noise, None, weighted=False).mean()}

    def _mixed(self, batch: dict[str, Tensor], step: int, items: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Latents and conditions of a batch, each with probability p replaced by a mixed clip's."""
        mean, condition = batch["mean"], batch["condition"]
        z = sample_posterior(mean, batch["logvar"], normal(items, *mean.shape[1:]).to(mean.device), self.scale)
        if self.mixer is None:
            return z, condition
        places = torch.nonzero(uniform(items) < self.ldm.mixup_probability)[:, 0].to(z.device)
        if not len(places):
            return z, condition
        if self.bank is not None:
            mixed, conditions = self.bank.draw(step, len(places), processes().process_index, z.device)
        else:
            mixed, conditions = self.mixer.make(batch[DRAW].to(places.device)[places].tolist(), 0, z.device)
        return z.index_copy(0, places, mixed), condition.index_copy(0, places, conditions)

    def _losses(
        self, z: Tensor, condition: Tensor, t: Tensor, noise: Tensor, dropped: Tensor | None, weighted: bool = True
    ) -> Tensor:
        """Mean squared error of each clip (B,), min-SNR weighted where `ldm.min_snr_gamma` is set."""
        alpha_bar = self.alpha_bar[t].to(z.device)
        noisy = diffusion.add_noise(z, noise, alpha_bar).contiguous(memory_format=torch.channels_last)
        predicted = self.state.modules["ldm"](noisy, t.to(z.device), condition, dropped)
        wanted = diffusion.target(z, noise, alpha_bar, self.ldm.prediction)
        losses = F.mse_loss(predicted.float(), wanted, reduction="none").mean((1, 2, 3))
        gamma = self.ldm.min_snr_gamma
        if gamma is None or not weighted:
            return losses
        return losses * diffusion.min_snr_weights(alpha_bar, gamma, self.ldm.prediction)


def build_task(params: Params, latents: Path, shards: Path, clap: Path, vae: Path, vocoder: Path) -> LdmTask:
    """The training on these folders. Raises DataError when the latents are not of these shards and models."""
    reader, shard_reader = LatentReader(latents), ShardReader(shards)
    reader.check(shard_reader, vae, clap, params)
    mixer = None
    listener = (load_vae(vae), load_vocoder(vocoder))
    if params.ldm.mixup != "none":
        mixer = Mixer(Pairs(reader, shard_reader, params), reader, shard_reader, *listener, load_clap(clap), params)
    return LdmTask(reader, shard_reader, params, mixer, listener)


def train_ldm(
    params: Params,
    latents: Path,
    shards: Path,
    clap: Path,
    vae: Path,
    vocoder: Path,
    out: Path,
    checkpoints: Path,
    **options: Unpack[Options],
) -> History:
    """Train the diffusion model on prepared latents and save the whole pipeline as `out`.

    With ldm.lora_rank only low-rank updates of ldm.init_from are trained, and added to it at the end.
    Raises DataError, ModelError and Interrupted as `stages.training.loop.train` does.
    """
    if params.ldm.init_from is not None:
        model_card(Path(params.ldm.init_from), "ldm")
    task = build_task(params, latents, shards, clap, vae, vocoder)
    identity = training_identity(
        params, "ldm", "audio", "latents", "tempo", shards=ShardReader(shards).digest, vae=model_digest(vae),
        clap=model_digest(clap), **_of_mixup(params.ldm, vocoder),
    )  # fmt: skip
    history = train(task, checkpoints=checkpoints, identity=identity, **options)
    if is_main_process():
        if task.bank is not None:
            history.figures["mixup"] = task.bank.statistics()
        with averaged_weights(task.state):
            model = lora.merged(task.model) if params.ldm.lora_rank else task.model
            card = of_training(params, history, ShardReader(shards).digest) | _started_from(params.ldm)
            save_pipeline(model, clap, vae, vocoder, out, card)
    return history


def _of_mixup(ldm: Ldm, vocoder: Path) -> dict[str, str]:
    """What else a training depends on: only BLM under audio conditions listens through the vocoder."""
    listens = ldm.mixup == "blm" and ldm.condition == "audio"
    return _started_from(ldm) | ({"vocoder": model_digest(vocoder)} if listens else {})


def _started_from(ldm: Ldm) -> dict[str, str]:
    return {} if ldm.init_from is None else {"init_from": model_digest(Path(ldm.init_from))}
