"""The training clip nearest to a generated one, for `musicldm generate` while it is at work."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.audio.io import FULL_SCALE, quantise
from stages.errors import DataError
from stages.evaluate.backbones import ClapBackbone, clap_name
from stages.evaluate.embeddings import SILENCE_PEAK, Segment, embed, preprocessing, windows
from stages.evaluate.index import INDEX, TrainingIndex
from stages.generate.gate import Neighbour
from stages.params import Audio
from stages.store import sha256

DIGEST_DIGITS = 12


def index_digest(index: Path) -> str:
    """Twelve hex digits that name an index: its music, network and preprocessing. Raises DataError."""
    TrainingIndex(index)
    return sha256(index / INDEX)[:DIGEST_DIGITS]


class NearestTraining:
    """Looks through an index folder with the CLAP it was made with, as `eval novelty` will do.

    `claps` are model folders, one of which must have made the index; `audio` is what the clips are made in. Raises
    DataError when none of them has, or the index was made with other preprocessing.
    """

    def __init__(self, index: Path, claps: Sequence[Path], audio: Audio) -> None:
        self.index, self.audio = TrainingIndex(index), audio
        wanted = self.index.backbone
        folder = next((f for f in claps if f.is_dir() and clap_name(f) == wanted), None)
        if folder is None:
            raise DataError(
                f"The index {index} was made with the network {wanted}, which is none of: "
                f"{', '.join(map(str, claps))}.",
                "Build it again: musicldm eval index",
            )
        self.backbone = ClapBackbone(folder, audio.sample_rate)
        self.index.check(wanted, preprocessing(audio, self.backbone))

    def __call__(self, waveform: Tensor) -> Neighbour:
        """Waveform (L,) in [-1, 1] -> the training window most similar to one of its windows, heard in 16 bits.

        Silence is near to nothing."""
        samples = quantise(waveform.cpu().numpy()).astype(np.float32) / np.float32(FULL_SCALE)
        if np.abs(samples).max(initial=0.0) <= SILENCE_PEAK:
            return Neighbour("", 0.0, 0.0, torch.zeros(self.index.vectors.shape[1]))
        size, rate = self.audio.clip_samples, self.audio.sample_rate
        segments = [Segment("clip", s / rate, samples[s : s + size], rate) for s in windows(len(samples), size)]
        found = embed(segments, self.backbone, self.audio, "clip")
        similarity, rows = self.index.search(found.vectors)
        best = int(similarity.argmax())
        track, start = self.index.place(int(rows[best]))
        vector = torch.from_numpy(np.array(self.index.vectors[rows[best]], dtype=np.float32))
        return Neighbour(track, start, min(float(similarity[best]), 1.0), vector)
