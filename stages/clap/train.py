"""Training CLAP: a symmetric contrastive loss between clips and captions (paper, section 3.1 and appendix B)."""

import math
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F
from torch.utils.data import Dataset

from stages.clap.keywords import some_keywords
from stages.clap.model import TEXT_ENCODER, TOKENIZER, Clap, build, load_pretrained, windows, world_size
from stages.clap.text_tower import read_text_tower
from stages.clap.tokenizer import train_tokenizer
from stages.data.dataset import ClipDataset
from stages.data.shards import ShardReader
from stages.params import Params
from stages.store import model_folder
from stages.training import checkpoint
from stages.training.card import about, of_training
from stages.training.checkpoint import training_identity
from stages.training.devices import is_main_process
from stages.training.draws import generators, uniform
from stages.training.loop import History, Options, train
from stages.training.state import Backward, averaged_weights, build_state

MAX_LOG_SCALE = math.log(100)  # Radford et al. 2021, section 2.5
RECALLS = (1, 5, 10)


def contrastive_loss(audio: Tensor, text: Tensor, audio_scale: Tensor, text_scale: Tensor) -> Tensor:
    """Mean of the cross-entropies of finding each clip's caption and each caption's clip among N pairs.

    audio, text (N, D) L2-normalised; scales () multiply the cosines -> ().
    """
    cosines = audio @ text.T
    pairs = torch.arange(len(audio), device=audio.device)
    return (F.cross_entropy(audio_scale * cosines, pairs) + F.cross_entropy(text_scale * cosines.T, pairs)) / 2


def gather(features: Tensor) -> Tensor:
    """Features (B, D) of every process -> (world * B, D), in order of rank, with gradients to each."""
    if world_size() == 1:
        return features
    return torch.cat(all_gather(features.contiguous()))


def recall(queries: Tensor, answers: Tensor) -> dict[int, Tensor]:
    """R@k: the share of the N queries whose own answer is among the k most similar; ties count for it.

    queries, answers (N, D) L2-normalised, pairs at equal places -> {k: ()}.
    """
    cosines = queries @ answers.T
    rank = (cosines > cosines.diagonal()[:, None]).sum(1)
    return {k: (rank < k).float().mean() for k in RECALLS}


def retrieval(audio: Tensor, text: Tensor) -> dict[str, Tensor]:
    """R@1, 5 and 10 from clip to caption and from caption to clip, by name."""
    found = {f"audio_to_text_r{k}": value for k, value in recall(audio, text).items()}
    return found | {f"text_to_audio_r{k}": value for k, value in recall(text, audio).items()}


class TrackClips(Dataset):
    """One item a track, so that a batch holds two clips of one track only where there are too few tracks."""

    def __init__(self, clips: ClipDataset) -> None:
        self.clips = clips
        by_track: dict[int, list[int]] = {}
        for number, window in enumerate(clips.windows):
            by_track.setdefault(window.track, []).append(number)
        self.windows = list(by_track.values())

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, draw: tuple[int, int]) -> Any:
        index, seed = draw
        return self.clips[self.windows[index][seed % len(self.windows[index])], seed]


class ClapTask:
    """CLAP's training: the audio tower sees one window of each clip, the text tower its track's caption."""

    name = "clap"
    phases: tuple[int, ...] = (0,)

    def __init__(self, reader: ShardReader, params: Params) -> None:
        self.params, self.settings = params, params.clap.train
        self.tracks, self.sample_rate = reader.tracks, reader.sample_rate
        self.dataset = TrackClips(ClipDataset(reader, "train", params.audio.clip_samples, params.audio.peak))
        self.valid_dataset = _valid_clips(reader, params)
        self.origin = {"data": reader.digest}
        self.clap = self._build()
        self.state = build_state({"clap": self.clap}, self.settings, len(self.dataset))
        self.surveyed: list[tuple[Tensor, tuple[Tensor, ...]]] = []

    def _build(self) -> Clap:
        torch.manual_seed(self.settings.seed)
        clap = self.params.clap
        if clap.init_from is not None:
            start, self.origin["init_from"] = load_pretrained(self.params, clap.init_from)
            return start
        captions = [track.caption for track in self.tracks if track.split == "train"]
        if clap.text_init is not None:
            tower = read_text_tower(clap, clap.text_init, captions)
            self.origin["text_init"] = tower.digest
            model = build(self.params, tower.tokenizer.pad_token_id)
            tower.copy_to(model.text_model)
            return Clap(self.params, model, tower.tokenizer)
        tokenizer = train_tokenizer(captions, clap.text.vocab_size, clap.text.max_tokens)
        return Clap(self.params, build(self.params), tokenizer)

    def track_id(self, track: int) -> str:
        return self.tracks[track].id

    def survey(self, parts: list[dict[str, Tensor]]) -> None:
        """Embed all micro-batches without gradients, for the loss over all of them and its gradients at their outputs.

        By these `step` goes back through one micro-batch at a time (GradCache, Gao et al. 2021).
        """
        limit_scales(self.clap)
        self.clap.measure([self._windows(part) for part in parts])
        with torch.no_grad():
            outputs = [self._forward(part, self._drawn_captions(part)) for part in parts]
        leaves = [tuple(output.requires_grad_() for output in part) for part in outputs]
        audio, text, *scales = zip(*leaves, strict=True)
        loss = self._loss(torch.cat(audio), torch.cat(text), *(torch.stack(each).mean() for each in scales))
        gradients = torch.autograd.grad(loss, [leaf for part in leaves for leaf in part])
        self.surveyed = [(loss.detach(), gradients[n : n + 4]) for n in range(0, len(gradients), 4)]

    def step(self, batch: dict[str, Tensor], _step: int, backward: Backward) -> dict[str, Tensor]:
        if self.settings.accumulation == 1:
            limit_scales(self.clap)
            outputs = self._forward(batch, self._drawn_captions(batch))
            loss = self._loss(*outputs)
            backward("clap", loss)
        else:
            loss, gradients = self.surveyed.pop(0)
            outputs = self._forward(batch, self._drawn_captions(batch))
            products = [(output * gradient).sum() for output, gradient in zip(outputs, gradients, strict=True)]
            backward("clap", self.settings.accumulation * torch.stack(products).sum())
        return {"loss": loss, "scale": outputs[-1]}

    @staticmethod
    def _loss(audio: Tensor, text: Tensor, audio_scale: Tensor, text_scale: Tensor) -> Tensor:
        return contrastive_loss(gather(audio), gather(text), audio_scale, text_scale)

    def validate(self, batch: dict[str, Tensor], _generator: torch.Generator) -> dict[str, Tensor]:
        audio, text, audio_scale, text_scale = self._forward(batch, self._captions(batch))
        return {"loss": contrastive_loss(audio, text, audio_scale, text_scale), **retrieval(audio, text)}

    def _captions(self, batch: dict[str, Tensor]) -> list[str]:
        return [self.tracks[track].caption for track in batch["track"].tolist()]

    def _drawn_captions(self, batch: dict[str, Tensor]) -> list[str]:
        """The captions, some of them by their keywords only."""
        items, captions = generators(batch), self._captions(batch)
        chosen = (uniform(items) < self.params.clap.keyword_probability).tolist()
        drawn = zip(captions, items, chosen, strict=True)
        return [some_keywords(caption, item) if keywords else caption for caption, item, keywords in drawn]

    def _forward(self, batch: dict[str, Tensor], captions: list[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first = self._windows(batch)
        tokens = {key: value.to(first.device) for key, value in self.clap.tokenize(captions).items()}
        outputs: tuple[Tensor, Tensor, Tensor, Tensor] = self.state.modules["clap"](first, tokens)
        return outputs

    def _windows(self, batch: dict[str, Tensor]) -> Tensor:
        """The first window (B, W) of each clip."""
        waveform = self.clap.resample(batch["audio"], self.sample_rate)
        return windows(waveform, self.params.clap.window_samples)[:, 0]


def _valid_clips(reader: ShardReader, params: Params) -> TrackClips | None:
    if not any(track.split == "valid" for track in reader.tracks):
        return None
    return TrackClips(ClipDataset(reader, "valid", params.audio.clip_samples, params.audio.peak))


@torch.no_grad()
def limit_scales(clap: Clap) -> None:
    """Keep both learned logit scales at 100 at most, so that the loss cannot sharpen without end."""
    for log_scale in (clap.model.logit_scale_a, clap.model.logit_scale_t):
        log_scale.clamp_(max=MAX_LOG_SCALE)


def train_clap(params: Params, shards: Path, out: Path, checkpoints: Path, **options: Unpack[Options]) -> History:
    """Train CLAP on a folder of shards and save the best validated weights as `out`.

    Raises DataError, ModelError and Interrupted as `stages.training.loop.train` does.
    """
    task = ClapTask(ShardReader(shards), params)
    identity = training_identity(params, "clap", "audio", **task.origin)
    history = train(task, checkpoints=checkpoints, identity=identity, **options)
    if history.best_step is not None:
        checkpoint.load(history.run / f"step-{history.best_step:08d}", task.state)
    limit_scales(task.clap)
    if is_main_process():
        with averaged_weights(task.state):
            history.figures |= whole_split(task)
            card = of_training(params, history, task.origin["data"]) | {"origin": task.origin}
            save(task.clap.eval(), out, card)
    return history


def save(clap: Clap, out: Path, card: dict[str, Any]) -> None:
    """Write a sealed `clap` folder: text_encoder/ and tokenizer/, as transformers reads them."""
    with model_folder(out, "clap", about(clap.params) | card) as folder:
        clap.model.save_pretrained(folder / TEXT_ENCODER)
        clap.tokenizer.save_pretrained(folder / TOKENIZER)


@torch.no_grad()
def whole_split(task: ClapTask) -> dict[str, Any]:
    """Retrieval among all tracks of the valid split, one clip each, by `embed_audio` and `embed_text`.

    `retrieval_tracks` is their number, without which no recall means anything; {} without a valid split.
    """
    clips, clap = task.valid_dataset, task.clap
    if clips is None:
        return {}
    audio, text = [], []
    for index in range(len(clips)):
        clip = clips[index, 0]
        audio.append(clap.embed_audio(clip["audio"][None], task.sample_rate))
        text.append(clap.embed_text([task.tracks[clip["track"]].caption]))
    figures = {name: float(value) for name, value in retrieval(torch.cat(audio), torch.cat(text)).items()}
    return {"retrieval": figures, "retrieval_tracks": len(clips)}
