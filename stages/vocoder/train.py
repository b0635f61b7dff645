"""`musicldm train vocoder`: the task, and what follows it: test figures, the sealed model folder."""

from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import SpeechT5HifiGan

from stages.audio.level import without_offset
from stages.audio.mel import clip_mel
from stages.data.dataset import ClipDataset
from stages.data.shards import ShardReader
from stages.errors import UsageError
from stages.params import Params
from stages.store import model_digest, model_folder
from stages.training.card import of_training
from stages.training.checkpoint import training_identity
from stages.training.clips import clips, clips_if_any, cut, mel_segments, random_starts, spread
from stages.training.devices import is_main_process
from stages.training.draws import generators
from stages.training.loop import History, Options, train
from stages.training.samples import Sample
from stages.training.state import Backward, averaged_weights, build_state, frozen
from stages.vae.model import Vae, load_vae
from stages.vocoder.discriminators import Discriminators, feature_loss, halves, judge_loss, maker_loss
from stages.vocoder.model import FOLDER, Vocoder, build, load_vocoder, remove_weight_norm
from stages.vocoder.spectra import stft_loss

TEST_CLIPS = 16
VAE_FRAMES = 64  # of a segment's surroundings that the VAE is to hear; a multiple of what any VAE divides by


class VocoderTask:
    """One step: sound out of segments of clips' mels, on L1 of its own mel and, where `stft_weight` is not 0, of its
    spectra; and, later, against discriminators.

    With a VAE the mels are what it makes of the clips' (with train_on `both` of every second clip's), and the real
    sound stays the target: each frame still belongs to the same hop of samples. With `start` training goes on from
    that generator.
    """

    name = "vocoder"

    def __init__(
        self, params: Params, reader: ShardReader, vae: Vae | None = None, start: Vocoder | None = None
    ) -> None:
        torch.manual_seed(params.vocoder.train.seed)
        self.params, self.settings, self.reader, self.vae = params, params.vocoder.train, reader, vae
        self.dataset, self.valid_dataset = clips(reader, params), clips_if_any(reader, params, "valid")
        self.mel = clip_mel(params)
        vocoder = params.vocoder
        self.generator = build(params)
        if start is not None:
            self.generator.load_state_dict(start.network.state_dict(), strict=True)
        if isinstance(self.generator, SpeechT5HifiGan):
            self.generator.apply_weight_norm()
        self.vocoder = Vocoder(self.generator, params)
        self.judge = Discriminators(vocoder.periods, vocoder.scales, vocoder.discriminator_channels)
        modules = {"generator": self.generator, "discriminator": self.judge}
        self.state = build_state(modules, self.settings, len(self.dataset))
        self.phases: tuple[int, ...] = (0, vocoder.adversarial_start)

    def step(self, batch: dict[str, Tensor], step: int, backward: Backward) -> dict[str, Tensor]:
        mel, real = self._segments(batch["audio"], generators(batch))
        made = self._sound(mel)
        losses = {"mel": F.l1_loss(self._mel(made), self._mel(real))}
        loss = self.params.vocoder.mel_weight * losses["mel"]
        if self.params.vocoder.stft_weight:
            losses["stft"] = stft_loss(made, real)
            loss = loss + self.params.vocoder.stft_weight * losses["stft"]
        if step >= self.params.vocoder.adversarial_start:
            judged = judge_loss(*halves(self.state.modules["discriminator"](torch.cat([real, made.detach()]))))
            backward("discriminator", judged)
            with frozen(self.judge):
                on_real, on_made = halves(self.judge(torch.cat([real, made])))
            adversarial, features = maker_loss(on_made), feature_loss(on_real, on_made)
            loss = loss + adversarial + self.params.vocoder.feature_weight * features
            losses |= {"discriminator": judged, "adversarial": adversarial, "features": features}
        backward("generator", loss)
        return {"loss": loss, **losses}

    def _segments(self, audio: Tensor, items: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Segments of what is heard of clips (B, L), (B, segment_frames, F), and the sound under them."""
        frames, hop = self.params.vocoder.segment_frames, self.params.mel.hop_length
        starts = random_starts(items, frames, self.params.clip_frames)
        real = cut(audio, [start * hop for start in starts], frames * hop)
        front_end = self.mel.to(audio.device)
        if self.vae is None:
            return mel_segments(front_end, audio, starts, frames), real
        every = 2 if self.params.vocoder.train_on == "both" else 1
        mel = self._decoded(audio[::every], starts[::every])
        if every == 2 and len(audio) > 1:
            others = mel_segments(front_end, audio[1::2], starts[1::2], frames)
            mel, real = torch.cat([mel, others]), torch.cat([real[::2], real[1::2]])
        return mel, real

    def _decoded(self, audio: Tensor, starts: list[int]) -> Tensor:
        """Segments of what the VAE makes of the sound around them, which costs less than whole clips."""
        frames, most = self.params.vocoder.segment_frames, self.params.clip_frames
        length = min(-(-frames // VAE_FRAMES) * VAE_FRAMES + 2 * VAE_FRAMES, most)
        first = [min(max(start - VAE_FRAMES, 0), most - length) for start in starts]
        mel = mel_segments(self.mel.to(audio.device), audio, first, length)
        return cut(self._through_vae(mel), [start - begin for start, begin in zip(starts, first, strict=True)], frames)

    def _through_vae(self, mel: Tensor) -> Tensor:
        if self.vae is None:
            return mel
        vae = self.vae.to(mel.device)
        return vae.decode(vae.encode(mel)[0])

    def _sound(self, mel: Tensor) -> Tensor:
        waveform: Tensor = self.vocoder.finish.to(mel.device)(self.state.modules["generator"](mel), mel)
        return waveform

    def _mel(self, audio: Tensor) -> Tensor:
        mel: Tensor = self.mel.to(audio.device)(audio)
        return mel

    def validate(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """L1 between the log-mels of real segments and of those made from their mels."""
        mel, real = self._segments(batch["audio"], [generator] * len(batch["audio"]))
        return {"loss": F.l1_loss(self._mel(self._sound(mel)), self._mel(real))}

    def samples(self, batch: dict[str, Tensor], _generator: torch.Generator) -> list[Sample]:
        """Whole clips' sound from their mels, and the log-mels of both."""
        rate = self.params.audio.sample_rate
        heard = without_offset(self._sound(self._through_vae(self._mel(batch["audio"]))).float(), rate)
        real, made = self._mel(batch["audio"]), self._mel(heard)
        return [Sample({"real": real[n], "made": made[n]}, heard[n], rate) for n in range(len(real))]

    def track_id(self, track: int) -> str:
        return self.reader.tracks[track].id


def build_task(params: Params, shards: Path, vae: Path | None) -> tuple[VocoderTask, dict[str, str]]:
    """The training, and the digests of what it is made from.

    With vocoder.train_on `vae` or `both`, `vae` is the folder of the trained VAE whose mels it learns to sound.
    Raises ModelError for a folder to start from, and DataError for the shards.
    """
    reader = ShardReader(shards)
    origin = {"data": reader.digest}
    decoder = start = None
    if params.vocoder.train_on != "real":
        if vae is None:
            raise UsageError(f"vocoder.train_on is {params.vocoder.train_on}, but no VAE folder was given.")
        decoder, origin["vae"] = load_vae(vae), model_digest(vae)
    if params.vocoder.init_from is not None:
        folder = Path(params.vocoder.init_from)
        start, origin["init_from"] = load_vocoder(folder), model_digest(folder)
    return VocoderTask(params, reader, decoder, start), origin


def train_vocoder(
    params: Params, shards: Path, out: Path, checkpoints: Path, *, vae: Path | None = None, **options: Unpack[Options]
) -> History:
    """Train a HiFi-GAN on the clips of `shards` and save it, sealed, as the model folder `out`.

    Raises what `build_task` and stages.training.loop.train do.
    """
    task, origin = build_task(params, shards, vae)
    identity = training_identity(params, "vocoder", "audio", "mel", **origin)
    history = train(task, checkpoints=checkpoints, identity=identity, **options)
    if is_main_process():
        with averaged_weights(task.state):
            _finish(task, history, out, origin)
    return history


def _finish(task: VocoderTask, history: History, out: Path, origin: dict[str, str]) -> None:
    params, vocoder = task.params, task.vocoder.eval()
    test = clips_if_any(task.reader, params, "test")
    if test is not None:
        history.figures["test"] = resynthesis_figures(task, vocoder, test)
    with model_folder(out, "vocoder", of_training(params, history, origin["data"]) | {"origin": origin}) as folder:
        remove_weight_norm(task.generator)
        task.generator.save_pretrained(folder / FOLDER)


@torch.no_grad()
def resynthesis_figures(task: VocoderTask, vocoder: Vocoder, dataset: ClipDataset) -> dict[str, float | int]:
    """Mean L1 between log-mels (natural log) of clips and of the sound made from them; N clips."""
    errors = []
    for draw in spread(dataset, TEST_CLIPS):
        audio = dataset[draw]["audio"].unsqueeze(0).to(task.generator.device)
        errors.append(float(F.l1_loss(task._mel(vocoder(task._through_vae(task._mel(audio)))), task._mel(audio))))
    return {"log_mel_l1": sum(errors) / len(errors), "clips": len(errors)}
