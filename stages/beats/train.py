"""`musicldm train beats`: the Beat Transformer on rendered scores, whose beats are exact."""

import json
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.audio import io
from stages.beats.backends import SHIPPED
from stages.beats.clips import BeatClips, listen
from stages.beats.decode import decode
from stages.beats.features import MIX, log_mel
from stages.beats.model import SCALE_DB, Tracker, load_tracker, save_tracker
from stages.beats.transformer import BeatTransformer, Sizes, widen
from stages.data.score_beats.collection import INDEX, Piece, read_index
from stages.errors import DataError, ModelError
from stages.params import Params
from stages.progress import Progress, silent
from stages.store import model_digest, sha256
from stages.training.card import of_training
from stages.training.checkpoint import training_identity
from stages.training.devices import is_main_process
from stages.training.loop import History, Options, train
from stages.training.state import Backward, averaged_weights, build_state

TEMPO_WEIGHT = 0.05
TEST_PIECES = 100
SKIPPED_SECONDS = 5.0  # of each test piece, as in the literature


class BeatTask:
    """One step: the cross-entropy of every frame being a beat, and a downbeat, and of the crop's tempo."""

    name = "beats"

    phases: tuple[int, ...] = (0,)

    def __init__(
        self, params: Params, scores: Path, cache: Path, distil: Path | None = None, progress: Progress = silent
    ) -> None:
        torch.manual_seed(params.beats.train.seed)
        settings = params.beats
        self.params, self.settings = params, settings.train
        self.pieces = read_index(scores)
        frames = round(settings.crop_seconds * MIX.fps)
        of = {split: [piece for piece in self.pieces if piece.split == split] for split in ("train", "valid", "test")}
        if not of["train"]:
            raise DataError(f"{scores / INDEX} lists no piece to train on.", "Fetch more: --pieces 600")
        self.test = of["test"]
        taught = listen(distil, cache, progress) if distil is not None else []
        self.dataset = BeatClips(scores, of["train"], frames, cache, augment=True, progress=progress, taught=taught)
        self.valid_dataset = BeatClips(scores, of["valid"], frames, cache, augment=False) if of["valid"] else None
        first, second = settings.network.channels
        sizes = Sizes(1, (first, second), settings.network.width, settings.network.feedforward, settings.network.layers)
        self.network = BeatTransformer(sizes, dropout=0.0)
        if settings.init_from is not None:
            _begin(self.network, settings.init_from)
        modules: dict[str, nn.Module] = {"beat_transformer": self.network}
        self.state = build_state(modules, self.settings, len(self.dataset))

    def step(self, batch: dict[str, Tensor], _step: int, backward: Backward) -> dict[str, Tensor]:
        losses = self._losses(batch)
        backward("beat_transformer", losses["loss"])
        return losses

    def validate(self, batch: dict[str, Tensor], _generator: torch.Generator) -> dict[str, Tensor]:
        return self._losses(batch)

    def _losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits, tempo = self.state.modules["beat_transformer"]((batch["mel"] / SCALE_DB + 1).unsqueeze(1))
        beat, downbeat = F.binary_cross_entropy_with_logits(logits.float(), batch["beats"], reduction="none").mean(
            (0, 1)
        )
        of_tempo = -(batch["tempo"] * tempo.float().log_softmax(-1)).sum(-1).mean()
        return {"loss": beat + downbeat + TEMPO_WEIGHT * of_tempo, "beat": beat, "downbeat": downbeat,
                "tempo": of_tempo}  # fmt: skip

    def track_id(self, track: int) -> str:
        return self.dataset.ids[track]


def train_beats(
    params: Params,
    scores: Path,
    out: Path,
    checkpoints: Path,
    *,
    distil: Path | None = None,
    **options: Unpack[Options],
) -> History:
    """Train on the pieces of `data fetch score-beats` in `scores`, and save the tracker, sealed, as `out`.

    With `distil`, also on what madmom's networks hear in the audio of that folder. Ends with the F-measure of beats
    and downbeats on pieces of the test split. Raises what stages.training.loop.train does, and DataError for a
    folder without pieces.
    """
    task = BeatTask(params, scores, checkpoints / "beat-features", distil, options.get("progress", silent))
    digest = sha256(scores / INDEX)[:12]
    wanted = ("beats.network", "beats.crop_seconds", "beats.init_from", "beats.train", "data", "distil")
    taught = " ".join(file.audio.name for file in task.dataset.taught)
    start = None if params.beats.init_from is None else model_digest(_folder(params.beats.init_from))
    made_of = {"data": digest, "distil": taught, "beats.init_from": json.dumps(start)}  # a folder may move or change
    identity = {
        key: value for key, value in training_identity(params, "beats", **made_of).items() if key.startswith(wanted)
    }
    history = train(task, checkpoints=checkpoints, identity=identity, **options)
    if is_main_process():
        with averaged_weights(task.state):
            tracker = Tracker(task.network.eval().cpu(), MIX)
            history.figures["test"] = test_figures(tracker, scores, task.test[:TEST_PIECES], params)
            history.figures["distilled_from"] = "madmom" if task.dataset.taught else None
            if start is not None:
                history.figures["init_from"] = start
            save_tracker(tracker, out, of_training(params, history, digest))
    return history


def _folder(init_from: str) -> Path:
    return SHIPPED if init_from == "shipped" else Path(init_from)


def _begin(network: BeatTransformer, init_from: str) -> None:
    """Set the network to a trained one of its size or narrower. Raises ModelError for one that hears otherwise."""
    start = load_tracker(_folder(init_from))
    try:
        if (start.front_end, start.scaled) != (MIX, True):
            raise ValueError("it hears another spectrogram")
        widen(start.network, network)
    except ValueError as error:
        raise ModelError(
            f"The tracker {init_from} cannot be gone on from: {error}.",
            "Take its sizes, or multiples: -S beats.network.width=... and so on. Imported networks cannot be.",
        ) from error


def test_figures(tracker: Tracker, scores: Path, pieces: list[Piece], params: Params) -> dict[str, float | int]:
    """Mean F-measure (+-70 ms, mir_eval) of beats and downbeats over N whole pieces."""
    from mir_eval.beat import f_measure

    figures = []
    for piece in pieces:
        truth = np.loadtxt(scores / piece.beats, ndmin=2)
        found = decode(tracker([log_mel(io.stream(scores / piece.audio, MIX.sample_rate), MIX)]), MIX.fps, params.beats)
        sides = [bars[bars[:, 0] >= SKIPPED_SECONDS] for bars in (truth, found)]
        figures.append([
            f_measure(*(side[:, 0] for side in sides)),
            f_measure(*(side[side[:, 1] == 1, 0] for side in sides)),
        ])  # fmt: skip
    beats, downbeats = np.mean(figures, axis=0).tolist() if figures else (0.0, 0.0)
    return {"beat_f": round(beats, 4), "downbeat_f": round(downbeats, 4), "pieces": len(figures)}
