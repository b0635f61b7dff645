"""Beat-synchronous mixup (paper, section 3.2): which two clips, how much of each, and the mixed training pair.

A mixed clip has a number, and is a pure function of the number, the seed and the process's rank. So a
training that is resumed sees the same ones, and a bank of them is a window that slides over the numbers.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.audio.mel import clip_mel
from stages.beats.align import Indices, TrackTempo, draw_pair, partners, recordings
from stages.clap.model import Clap
from stages.data.shards import ShardReader
from stages.errors import DataError
from stages.ldm.conditioning import interpolate
from stages.ldm.latents import LatentReader, read_clip, sample_posterior
from stages.params import Params
from stages.vae.model import Vae
from stages.vocoder.model import Vocoder


@dataclass(frozen=True)
class Mix:
    """weight * first + (1 - weight) * second; both are windows of the latents."""

    first: int
    second: int
    weight: float


class Pairs:
    """Draws what is mixed with what, from the training split only.

    `simple`: any windows of two different tracks. `bam` and `blm`: both windows start on a downbeat, of
    tracks that `stages.beats.align.partners` allows. weight ~ Beta(mixup_alpha, mixup_beta).
    Raises DataError when no two tracks may be mixed.
    """

    def __init__(self, latents: LatentReader, shards: ShardReader, params: Params) -> None:
        self.ldm = params.ldm
        aligned = self.ldm.mixup != "simple"
        self._rows: dict[tuple[int, int], int] = {}
        starts: list[list[int]] = [[] for _ in shards.tracks]
        for row, window in enumerate(latents.windows):
            if shards.tracks[window.track].split == "train" and (window.on_downbeat or not aligned):
                starts[window.track].append(window.start)
                self._rows[window.track, window.start] = row
        self._tracks = [
            TrackTempo(info.tempo_bpm, info.tempo_group, info.metre, np.array(found, dtype=np.int64), info.artist,
                       info.title, info.recording)
            for info, found in zip(shards.tracks, starts, strict=True)
        ]  # fmt: skip
        windowed = np.flatnonzero([len(track.starts) for track in self._tracks])
        self._allowed = partners(self._tracks, params.tempo) if aligned else _Others(self._tracks)
        firsts = [track for track in windowed if len(self._allowed[track])]
        if not firsts:
            raise DataError(
                f"No two training tracks may be mixed by ldm.mixup {self.ldm.mixup}: none share tempo and metre.",
                "Add music, raise tempo.tolerance, lower tempo.min_confidence, or use --mixup simple.",
            )
        self._firsts = np.repeat(firsts, [len(self._tracks[track].starts) for track in firsts])  # even over windows

    def draw(self, seed: list[int]) -> Mix:
        """The mix of a seed, always the same one."""
        generator = np.random.default_rng([*seed, 0])
        first = int(generator.choice(self._firsts))
        weight = float(generator.beta(self.ldm.mixup_alpha, self.ldm.mixup_beta))
        pair = draw_pair(self._tracks, self._allowed, first, [*seed, 1])
        if pair is None:
            raise RuntimeError(f"track {first} was chosen for having partners, and has none")
        return Mix(self._rows[pair.first, pair.first_start], self._rows[pair.second, pair.second_start], weight)


class _Others(Sequence[Indices]):
    """Simple mixup's partners: every track that has a window and is of another recording."""

    def __init__(self, tracks: list[TrackTempo]) -> None:
        self._recordings = recordings(tracks)
        self._windowed = np.array([len(track.starts) > 0 for track in tracks])

    def __len__(self) -> int:
        return len(self._recordings)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return np.flatnonzero(self._windowed & (self._recordings != self._recordings[index]).all(axis=1))


class Mixer:
    """Makes mixed training pairs: latent (n, C, T / P, F / P), scaled, and condition (n, D).

    `simple` and `bam` mix normalised audio, x = l x1 + (1 - l) x2, and encode the mix by VAE and CLAP.
    `blm` mixes latents drawn from the posteriors, y = l y1 + (1 - l) y2, and takes CLAP's embedding of the
    audio that decoder and vocoder make of y (paper, equations of section 3.2). With `condition: text` the
    condition is the normalised l-interpolation of the two captions' embeddings, and nothing is vocoded.
    """

    def __init__(
        self, pairs: Pairs, latents: LatentReader, shards: ShardReader, vae: Vae, vocoder: Vocoder, clap: Clap,
        params: Params,
    ) -> None:  # fmt: skip
        self.pairs, self.latents, self.shards, self.params = pairs, latents, shards, params
        self.vae, self.vocoder, self.clap, self.mel = vae, vocoder, clap, clip_mel(vae.params)
        self.seed = params.ldm.train.seed

    @torch.no_grad()
    def make(self, numbers: list[int], rank: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The mixed clips of these numbers, on `device`."""
        for network in (self.vae, self.vocoder, self.clap, self.mel):
            network.to(device)
        seeds = [[self.seed, rank, number] for number in numbers]
        mixes = [self.pairs.draw(seed) for seed in seeds]
        weight = torch.tensor([mix.weight for mix in mixes], dtype=torch.float32, device=device)
        noise = torch.stack([_noise(seed, self.params.latent_shape) for seed in seeds]).to(device)
        audio = None
        if self.params.ldm.mixup == "blm":
            z = self.mix_latents(mixes, weight, noise)
        else:
            audio = self.mix_audio(mixes, weight)
            mean, logvar = self.vae.encode(self.mel(audio))
            z = sample_posterior(mean, logvar, noise[:, 0], self.vae.scale)
        if self.params.ldm.condition == "text":
            return z, interpolate(self._text(mixes, 0).to(device), self._text(mixes, 1).to(device), weight)
        audio = self.render(z) if audio is None else audio
        return z, self.clap.embed_audio(audio, self.params.audio.sample_rate)

    @torch.no_grad()
    def render(self, z: Tensor) -> Tensor:
        """Scaled latents -> audio (n, clip_samples), by decoder and vocoder."""
        return self.vocoder(self.vae.decode(z / self.vae.scale))[:, : self.params.audio.clip_samples]

    def mix_latents(self, mixes: list[Mix], weight: Tensor, noise: Tensor) -> Tensor:
        """weight (n,), posterior noise of both sides (n, 2, C, T / P, F / P) -> y, scaled (n, C, T / P, F / P)."""
        sides = []
        for side, rows in enumerate(zip(*((mix.first, mix.second) for mix in mixes), strict=True)):
            posteriors = [self.latents.posterior(row) for row in rows]
            mean, logvar = (torch.stack(part).to(weight.device) for part in zip(*posteriors, strict=True))
            sides.append(sample_posterior(mean, logvar, noise[:, side], self.vae.scale))
        return torch.lerp(sides[1], sides[0], weight[:, None, None, None])

    def mix_audio(self, mixes: list[Mix], weight: Tensor) -> Tensor:
        """weight (n,) -> x (n, clip_samples); both sides normalised before they are mixed."""
        sides = [
            torch.from_numpy(np.stack([self.clip(row) for row in rows])).to(weight.device)
            for rows in zip(*((mix.first, mix.second) for mix in mixes), strict=True)
        ]
        return torch.lerp(sides[1], sides[0], weight[:, None])

    def clip(self, row: int) -> np.ndarray:
        window = self.latents.windows[row]
        return read_clip(self.shards, window.track, window.start, self.params)

    def _text(self, mixes: list[Mix], side: int) -> Tensor:
        rows = [(mix.first, mix.second)[side] for mix in mixes]
        return torch.stack([self.latents.embedding(row, "text") for row in rows])


class Bank:
    """`ldm.mixup_bank` mixed clips kept ready; the oldest are replaced as training goes.

    At step s it holds the clips numbered R(s) ... R(s) + size - 1, with R(s) = floor(s * mixed clips a step /
    uses): each is drawn `ldm.mixup_bank_uses` times on average before it leaves. What it holds depends on
    the step alone, so resuming finds the same clips. They are made when first drawn, in chunks of fixed
    borders, since the batch a clip is computed in may move its last bits.
    """

    def __init__(self, mixer: Mixer, per_step: float) -> None:
        ldm = mixer.params.ldm
        self.mixer, self.size = mixer, ldm.mixup_bank
        self.rate = per_step / ldm.mixup_bank_uses
        self.chunk = min(ldm.mixup_bank, mixer.params.latents.batch_size)
        self._chunks: dict[int, tuple[Tensor, Tensor]] = {}
        self.uses: Counter[tuple[int, int]] = Counter()  # of each clip, by process and number

    def draw(self, step: int, count: int, rank: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """`count` of the clips held at `step`, chosen evenly by torch's global generator."""
        first = int(step * self.rate)
        numbers = (first + torch.randint(self.size, (count,))).tolist()
        self._chunks = {index: made for index, made in self._chunks.items() if (index + 1) * self.chunk > first}
        for index in sorted({number // self.chunk for number in numbers} - self._chunks.keys()):
            clips = list(range(index * self.chunk, (index + 1) * self.chunk))
            self._chunks[index] = self.mixer.make(clips, rank, device)
        self.uses.update((rank, number) for number in numbers)
        found = [[part[number % self.chunk] for part in self._chunks[number // self.chunk]] for number in numbers]
        return torch.stack([z for z, _ in found]), torch.stack([condition for _, condition in found])

    def clips_made(self, steps: int) -> int:
        """How many clips a training of so many steps makes."""
        return self.size + int(steps * self.rate)

    def statistics(self) -> dict[str, float]:
        """How many mixed clips were trained on, and how often each, at the mean and at most."""
        uses = self.uses.values()
        return {"clips": len(uses), "mean_uses": sum(uses) / max(1, len(uses)), "most_uses": max(uses, default=0)}

    def hold_one_chunk(self, device: torch.device) -> float:
        """For measuring: keep to the first chunk for good; returns the seconds that one of its clips took to make."""
        self.size, self.rate = self.chunk, 0.0
        self.draw(0, 1, 0, device)  # what is made first also pays for the start of libraries
        self._chunks.clear()
        started = time.perf_counter()
        self.draw(0, 1, 0, device)[1].sum().item()  # waits for the device
        return (time.perf_counter() - started) / self.chunk


def _noise(seed: list[int], shape: tuple[int, int, int]) -> Tensor:
    """Both sides' posterior noise (2, C, T / P, F / P), from the mix's seed."""
    generator = np.random.default_rng([*seed, 2])
    return torch.from_numpy(generator.standard_normal((2, *shape), dtype=np.float32))
