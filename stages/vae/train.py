"""`musicldm train vae`: the task, and what follows it: scale factor, test figures, the sealed model folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from stages.audio.mel import clip_mel
from stages.data.dataset import ClipDataset
from stages.data.shards import ShardReader
from stages.params import Params
from stages.store import model_digest, model_folder
from stages.training.card import of_training
from stages.training.checkpoint import training_identity
from stages.training.clips import clips, clips_if_any, mel_segments, random_starts, spread
from stages.training.devices import is_main_process
from stages.training.draws import generators, normal
from stages.training.loop import History, Options, train
from stages.training.samples import Sample
from stages.training.state import Backward, averaged_weights, build_state, frozen
from stages.vae.losses import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_judge_loss,
    hinge_maker_loss,
    last_layer_gradient,
    vae_loss,
)
from stages.vae.model import FOLDER, Vae, build, read_weights

SCALE_CLIPS = 32  # of the train split, for the scale factor
TEST_CLIPS = 32


class Autoencoding(nn.Module):
    """A VAE's whole way as one forward: image (B, 1, T, F) -> (made image, posterior mean, log-variance).

    The latent is drawn from the posterior by standard normal `noise` (B, C, T/P, F/P); without it, it is the mean.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        posterior = self.vae.encode(image).latent_dist
        z = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return self.vae.decode(z).sample, posterior.mean, posterior.logvar


class VaeTask:
    """One step: reconstruct clips of the train split; from adversarial_start on also against the PatchGAN."""

    name = "vae"

    def __init__(self, params: Params, reader: ShardReader) -> None:
        torch.manual_seed(params.vae.train.seed)
        self.params, self.settings, self.reader = params, params.vae.train, reader
        self.dataset, self.valid_dataset = clips(reader, params), clips_if_any(reader, params, "valid")
        self.mel = clip_mel(params)
        self.vae = build(params)
        if params.vae.init_from is not None:
            read_weights(self.vae, Path(params.vae.init_from))
        self.judge = PatchDiscriminator(params.vae.discriminator_channels, params.vae.discriminator_layers)
        modules = {"vae": Autoencoding(self.vae), "discriminator": self.judge}
        for module in modules.values():
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.state = build_state(modules, self.settings, len(self.dataset))
        self.phases: tuple[int, ...] = (0, params.vae.adversarial_start)

    def step(self, batch: dict[str, Tensor], step: int, backward: Backward) -> dict[str, Tensor]:
        frames = self.params.vae.segment_frames or self.params.clip_frames
        items = generators(batch)
        starts = random_starts(items, frames, self.params.clip_frames)
        image = as_image(mel_segments(self.mel.to(batch["audio"].device), batch["audio"], starts, frames))
        channels, _, bins = self.params.latent_shape
        noise = normal(items, channels, frames // self.params.vae.downsampling, bins).to(image.device)
        made, mean, logvar = self.state.modules["vae"](image, noise)
        reconstruction, kl = vae_loss(image, made, mean, logvar, self.params.vae.kl_weight)
        losses = {"reconstruction": reconstruction, "kl": kl}
        loss = reconstruction + kl
        if step >= self.params.vae.adversarial_start:
            judged = self._judge(image, made)
            backward("discriminator", judged)
            adversarial, weight = self._adversarial(made, reconstruction, backward)
            loss = loss + weight * adversarial
            losses |= {"discriminator": judged, "adversarial": adversarial, "adversarial_weight": weight}
        backward("vae", loss)
        return {"loss": loss, **losses}

    def _judge(self, image: Tensor, made: Tensor) -> Tensor:
        both = self.state.modules["discriminator"](torch.cat([image, made.detach()]))
        return hinge_judge_loss(*both.chunk(2))

    def _adversarial(self, made: Tensor, reconstruction: Tensor, backward: Backward) -> tuple[Tensor, Tensor]:
        """The decoder's adversarial loss, and its weight, equal on all processes."""
        with frozen(self.judge):
            adversarial = hinge_maker_loss(self.judge(made))
        last = self.vae.decoder.conv_out.weight
        wanted, other = (backward.mean(last_layer_gradient(loss, last)) for loss in (reconstruction, adversarial))
        return adversarial, self.params.vae.adversarial_weight * adaptive_weight(wanted, other, made[0].numel())

    def validate(self, batch: dict[str, Tensor], _generator: torch.Generator) -> dict[str, Tensor]:
        """L1 of the log-mel through the posterior's mean, and the KL term."""
        image = as_image(self.mel.to(batch["audio"].device)(batch["audio"]))
        made, mean, logvar = self.state.modules["vae"](image)
        reconstruction, kl = vae_loss(image, made, mean, logvar, self.params.vae.kl_weight)
        return {"loss": reconstruction + kl, "log_mel_l1": reconstruction, "kl": kl}

    def samples(self, batch: dict[str, Tensor], _generator: torch.Generator) -> list[Sample]:
        """Clips' log-mels and what the posterior's mean keeps of them."""
        real = self.mel.to(batch["audio"].device)(batch["audio"])
        made = self.state.modules["vae"](as_image(real))[0].squeeze(1)
        return [Sample({"real": real[n], "made": made[n]}) for n in range(len(real))]

    def track_id(self, track: int) -> str:
        return self.reader.tracks[track].id


def as_image(mel: Tensor) -> Tensor:
    """(B, T, F) -> (B, 1, T, F), in the memory order convolutions are fastest in."""
    return mel.unsqueeze(1).contiguous(memory_format=torch.channels_last)


def train_vae(params: Params, shards: Path, out: Path, checkpoints: Path, **options: Unpack[Options]) -> History:
    """Train a VAE on the clips of `shards` and save it, sealed, as the model folder `out`.

    Raises what stages.training.loop.train does, DataError for shards that are missing or altered, and ModelError
    for a folder to start from that is not whole.
    """
    reader = ShardReader(shards)
    task = VaeTask(params, reader)
    origin = {"data": reader.digest}
    if params.vae.init_from is not None:
        origin["init_from"] = model_digest(Path(params.vae.init_from))
    identity = training_identity(params, "vae", "audio", "mel", **origin)
    history = train(task, checkpoints=checkpoints, identity=identity, **options)
    if is_main_process():
        with averaged_weights(task.state):
            _finish(task, history, out, origin)
    return history


def _finish(task: VaeTask, history: History, out: Path, origin: dict[str, str]) -> None:
    params, vae = task.params, Vae(task.vae.eval(), task.params)
    posterior = posterior_statistics(vae, _mels(task, task.dataset, SCALE_CLIPS))
    scale = 1 / posterior["std"]
    history.figures |= {"scaling_factor": scale, "posterior": posterior}
    test = clips_if_any(task.reader, params, "test")
    if test is not None:
        history.figures["test"] = reconstruction_figures(vae, _mels(task, test, TEST_CLIPS))
    task.vae.register_to_config(scaling_factor=scale)
    with model_folder(out, "vae", of_training(params, history, origin["data"]) | {"origin": origin}) as folder:
        task.vae.to(memory_format=torch.contiguous_format).save_pretrained(folder / FOLDER, safe_serialization=True)


def _mels(task: VaeTask, dataset: ClipDataset, count: int) -> Iterator[Tensor]:
    """Log-mels (1, T, F) of `count` clips spread evenly over the dataset, on the VAE's device."""
    device = task.vae.device
    for draw in spread(dataset, count):
        yield task.mel.to(device)(dataset[draw]["audio"].unsqueeze(0).to(device))


def posterior_statistics(vae: Vae, mels: Iterator[Tensor]) -> dict[str, Any]:
    """What latents drawn from the posteriors are like, unscaled, by their exact moments.

    `mean` and `std` of all elements, `channel_mean` and `channel_std` (C,), `width` the mean standard deviation of one
    posterior, and the number of `clips`. The scale factor is 1 / std.
    """
    moments, widths = [], []
    for mel in mels:
        mean, logvar = (value.double() for value in vae.encode(mel))
        moments.append(torch.stack([mean, mean.square() + logvar.exp()]).mean((1, 3, 4)))
        widths.append(float((0.5 * logvar).exp().mean()))
    first, second = torch.stack(moments).mean(0)
    std = float((second.mean() - first.mean().square()).sqrt())
    return {
        "mean": float(first.mean()), "std": std, "channel_mean": first.tolist(),
        "channel_std": (second - first.square()).sqrt().tolist(), "width": sum(widths) / len(widths),
        "clips": len(widths),
    }  # fmt: skip


def reconstruction_figures(vae: Vae, mels: Iterator[Tensor]) -> dict[str, float | int]:
    """Mean L1 between log-mels (natural log) and their reconstructions through the posterior mean; N clips."""
    errors = [float(F.l1_loss(vae.decode(vae.encode(mel)[0]), mel)) for mel in mels]
    return {"log_mel_l1": sum(errors) / len(errors), "clips": len(errors)}
