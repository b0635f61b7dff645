"""Training the latent diffusion model, and putting the whole text-to-music pipeline into one folder."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn import functional as F
from transformers import ClapFeatureExtractor

from stages.clap.model import TEXT_ENCODER, TOKENIZER, load_clap
from stages.data.shards import ShardReader
from stages.errors import ModelError
from stages.ldm import diffusion
from stages.ldm.latents import LatentDataset, LatentReader, sample_posterior
from stages.ldm.mixup import Bank, Mixer, Pairs
from stages.ldm.model import LatentDiffusion, build_unet, read_weights
from stages.params import Clap, Ldm, Params
from stages.progress import Progress, silent
from stages.store import model_card, model_digest, model_folder
from stages.training.checkpoint import training_identity
from stages.training.devices import is_main_process
from stages.training.draws import DRAW, generators, integers, normal, uniform
from stages.training.loop import History, Say, train
from stages.training.state import Backward, averaged_weights, build_state
from stages.vae.model import load_vae
from stages.vocoder.model import load_vocoder

# The pipeline's parts in the order diffusers lists them, with the class that reads each.
COMPONENTS = {
    "scheduler": ("diffusers", "DDIMScheduler"),
    TEXT_ENCODER: ("transformers", "ClapModel"),
    TOKENIZER: ("transformers", "AutoTokenizer"),  # a saved folder names its own class
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "vocoder": ("transformers", "SpeechT5HifiGan"),
    "feature_extractor": ("transformers", "ClapFeatureExtractor"),
}


class LdmTask:
    """The diffusion model's training: denoise latents at random times, on clips and mixed clips."""

    name = "ldm"

    def __init__(self, latents: LatentReader, shards: ShardReader, params: Params, mixer: Mixer | None) -> None:
        self.params, self.ldm, self.settings = params, params.ldm, params.ldm.train
        self.tracks, self.scale = shards.tracks, latents.scale
        self.dataset = LatentDataset(latents, shards.tracks, "train", self.ldm.condition)
        self.valid_dataset = LatentDataset(latents, shards.tracks, "valid", self.ldm.condition)
        self.mixer = mixer
        per_step = self.settings.batch_size / _world()[1] * self.ldm.mixup_probability
        self.bank = Bank(mixer, per_step) if mixer is not None and self.ldm.mixup_bank else None
        torch.manual_seed(self.settings.seed)
        self.model = LatentDiffusion(params, build_unet(params))
        if self.ldm.init_from is not None:
            read_weights(self.model, Path(self.ldm.init_from))
        self.model.unet.to(memory_format=torch.channels_last)  # what convolutions on matrix units want
        self.state = build_state({"ldm": self.model}, self.settings)
        self.alpha_bar = diffusion.alphas_cumprod(self.ldm)

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
            mixed, conditions = self.bank.draw(step, len(places), _world()[0], z.device)
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


def _world() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    state = PartialState()
    return state.process_index, state.num_processes


def build_task(params: Params, latents: Path, shards: Path, clap: Path, vae: Path, vocoder: Path) -> LdmTask:
    """The training on these folders. Raises DataError when the latents are not of these shards and models."""
    reader, shard_reader = LatentReader(latents), ShardReader(shards)
    reader.check(shard_reader, vae, clap, params)
    mixer = None
    if params.ldm.mixup != "none":
        pairs = Pairs(reader, shard_reader, params)
        mixer = Mixer(pairs, reader, shard_reader, load_vae(vae), load_vocoder(vocoder), load_clap(clap), params)
    return LdmTask(reader, shard_reader, params, mixer)


def train_ldm(
    params: Params,
    latents: Path,
    shards: Path,
    clap: Path,
    vae: Path,
    vocoder: Path,
    out: Path,
    checkpoints: Path,
    *,
    resume: bool | None = None,
    progress: Progress = silent,
    log: Say | None = None,
    warn: Say | None = None,
) -> History:
    """Train the diffusion model on prepared latents and save the whole pipeline as `out`.

    Raises DataError, ModelError and Interrupted as `stages.training.loop.train` does.
    """
    if params.ldm.init_from is not None:
        model_card(Path(params.ldm.init_from), "ldm")
    task = build_task(params, latents, shards, clap, vae, vocoder)
    identity = training_identity(
        params, "ldm", "audio", "latents", "tempo", shards=ShardReader(shards).digest, vae=model_digest(vae),
        clap=model_digest(clap), **_of_mixup(params.ldm, vocoder),
    )  # fmt: skip
    history = train(task, checkpoints=checkpoints, identity=identity, resume=resume, progress=progress, log=log,
                    warn=warn)  # fmt: skip
    if is_main_process():
        card = {"data_digest": ShardReader(shards).digest, "steps": history.steps, "losses": history.valid}
        with averaged_weights(task.state):
            save_pipeline(task.model, clap, vae, vocoder, out, card)
    return history


def _of_mixup(ldm: Ldm, vocoder: Path) -> dict[str, str]:
    """What else a training depends on: only BLM under audio conditions listens through the vocoder."""
    init = {} if ldm.init_from is None else {"init_from": model_digest(Path(ldm.init_from))}
    return init | ({"vocoder": model_digest(vocoder)} if ldm.mixup == "blm" and ldm.condition == "audio" else {})


def save_pipeline(
    model: LatentDiffusion, clap: Path, vae: Path, vocoder: Path, out: Path, card: dict[str, Any],
    scheduling: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a sealed folder that diffusers' MusicLDMPipeline reads too, with copies of the frozen parts.

    `scheduling` is the config of a scheduler that came with imported weights; else it is `scheduler`'s.
    """
    params = model.params
    about = {"preset": params.preset, "params": params.model_dump(mode="json"), "params_digest": params.digest()}
    made_of = {"clap": model_digest(clap), "vae": model_digest(vae), "vocoder": model_digest(vocoder)}
    with model_folder(out, "ldm", about | card | {"made_of": made_of}) as folder:
        for source, name in ((clap, TEXT_ENCODER), (clap, TOKENIZER), (vae, "vae"), (vocoder, "vocoder")):
            if not (source / name).is_dir():
                raise ModelError(f"{source} has no {name} folder.", f"Train it again: musicldm train {source.name}")
            shutil.copytree(source / name, folder / name)
        model.save(folder)
        chosen = scheduler(params.ldm) if scheduling is None else DDIMScheduler.from_config(scheduling)
        chosen.save_pretrained(folder / "scheduler")
        feature_extractor(params.clap).save_pretrained(folder / "feature_extractor")
        index: dict[str, Any] = {"_class_name": "MusicLDMPipeline", "_diffusers_version": version("diffusers")}
        index |= {name: list(where) for name, where in COMPONENTS.items()}
        index[TOKENIZER] = ["transformers", _tokenizer_class(folder / TOKENIZER)]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _tokenizer_class(folder: Path) -> str:
    """The class that reads a saved tokenizer: RoBERTa's, or that of a BERT the text tower began as."""
    name: str = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["tokenizer_class"]
    return name


def scheduler(ldm: Ldm) -> DDIMScheduler:
    """DDIM as the official sampler steps: times 1, 101, ... and the last alpha that of time 0."""
    return DDIMScheduler(
        num_train_timesteps=ldm.diffusion_steps,
        beta_start=ldm.beta_start,
        beta_end=ldm.beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=ldm.prediction,
    )


def feature_extractor(clap: Clap) -> ClapFeatureExtractor:
    """CLAP's mel front-end for diffusers' pipeline, which ranks its candidates with it; ours is stages.audio.mel."""
    return ClapFeatureExtractor(
        feature_size=clap.n_mels,
        sampling_rate=clap.sample_rate,
        hop_length=clap.hop_length,
        max_length_s=clap.window_seconds,
        fft_window_size=clap.n_fft,
        frequency_min=clap.f_min,
        frequency_max=clap.f_max,
        truncation="rand_trunc",
        padding="repeatpad",
    )
