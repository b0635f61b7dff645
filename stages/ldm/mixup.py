"""Beat-synchronous mixup (paper, section 3.2): which two clips, how much of each, and the mixed training pair.

A mixed clip has a number, and is a pure function of the number, the seed and the process's rank. So a
training that is resumed sees the same ones, and a bank of them is a window that slides over the numbers.
"""

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.audio.mel import clip_mel
from stages.beats.align import Candidate, counted, others, partners, reasons, remedies
from stages.clap.model import Clap
from stages.data.dataset import normalise_audio
from stages.data.shards import ShardReader, TrackInfo
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
    """Draws what is mixed with what, from the training split only: a track, its partner, and a window of each.

    `simple`: windows of the grid, of two different recordings. `bam` and `blm`: both windows start on a downbeat, of
    tracks that `stages.beats.align.partners` allows by the section `tempo` as it is now.
    weight ~ Beta(mixup_alpha, mixup_beta). Raises DataError when no two tracks may be mixed.
    """

    def __init__(self, latents: LatentReader, shards: ShardReader, params: Params) -> None:
        self.ldm = params.ldm
        windows, training = latents.windows, [i for i, track in enumerate(shards.tracks) if track.split == "train"]
        aligned = self.ldm.mixup != "simple"
        self._rows = np.flatnonzero(windows.on_downbeat if aligned else windows.on_grid)
        of = windows.track[self._rows]
        self._first, self._stop = np.searchsorted(of, training, "left"), np.searchsorted(of, training, "right")
        counts = (self._stop - self._first).tolist()
        tracks = [_candidate(shards.tracks[i], starts) for i, starts in zip(training, counts, strict=True)]
        self._partners = partners(tracks, params.tempo) if aligned else others(tracks)
        self._firsts = np.flatnonzero(self._partners.counts)
        if not len(self._firsts):
            raise _nothing_to_mix(tracks, params)

    def draw(self, seed: list[int]) -> Mix:
        """The mix of a seed, always the same one."""
        generator = np.random.default_rng(seed)
        first = int(generator.choice(self._firsts))
        second = self._partners.draw(first, generator)
        rows = [int(generator.integers(self._first[track], self._stop[track])) for track in (first, second)]
        weight = float(generator.beta(self.ldm.mixup_alpha, self.ldm.mixup_beta))
        return Mix(int(self._rows[rows[0]]), int(self._rows[rows[1]]), weight)


def _candidate(info: TrackInfo, starts: int) -> Candidate:
    return Candidate(info.tempo_bpm, info.mean_bpm, info.tempo_confidence, info.metre, info.n_downbeats, starts,
                     info.artist, info.title, info.recording)  # fmt: skip


def _nothing_to_mix(tracks: list[Candidate], params: Params) -> DataError:
    """Why no two of the training tracks may be mixed, and what would change it."""
    why, helps = "they are one recording", ["--mixup none"]
    if params.ldm.mixup != "simple":
        why = counted(reasons(tracks, params.tempo)) or "there is no music to train on"
        simple = ["--mixup simple"] if others(tracks).counts.any() else []
        helps = [*remedies(tracks, params.tempo), *simple, *helps]
    return DataError(
        f"No two of the {len(tracks)} training tracks may be mixed by ldm.mixup {params.ldm.mixup}: {why}.",
        f"Add music, or take one of: {'; '.join(helps)}.",
    )


class Mixer:
    """Makes mixed training pairs: latent (n, C, T / P, F / P), scaled, and condition (n, D).

    `simple` and `bam` mix normalised audio, x = l x1 + (1 - l) x2, and encode the mix by VAE and CLAP.
    `blm` mixes latents drawn from the posteriors, y = l y1 + (1 - l) y2, and takes CLAP's embedding of the
    audio that decoder and vocoder make of y (paper, equations of section 3.2). What VAE and CLAP get is normalised
    as every other clip. With `condition: text` the
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
        noise = torch.stack([posterior_noise(seed, self.params.latent_shape) for seed in seeds]).to(device)
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
        """Scaled latents -> normalised audio (n, clip_samples), by decoder and vocoder."""
        return render(z, self.vae, self.vocoder, self.params)

    def mix_latents(self, mixes: list[Mix], weight: Tensor, noise: Tensor) -> Tensor:
        """weight (n,), posterior noise of both sides (n, 2, C, T / P, F / P) -> y, scaled (n, C, T / P, F / P)."""
        sides = []
        for side, rows in enumerate(zip(*((mix.first, mix.second) for mix in mixes), strict=True)):
            posteriors = [self.latents.posterior(row) for row in rows]
            mean, logvar = (torch.stack(part).to(weight.device) for part in zip(*posteriors, strict=True))
            sides.append(sample_posterior(mean, logvar, noise[:, side], self.vae.scale))
        return torch.lerp(sides[1], sides[0], weight[:, None, None, None])

    def mix_audio(self, mixes: list[Mix], weight: Tensor) -> Tensor:
        """weight (n,) -> x (n, clip_samples), normalised; so were both sides before they were mixed."""
        sides = [
            torch.from_numpy(np.stack([self.clip(row) for row in rows])).to(weight.device)
            for rows in zip(*((mix.first, mix.second) for mix in mixes), strict=True)
        ]
        return mix_clips(sides[0], sides[1], weight, self.params.audio.peak)

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


@torch.no_grad()
def render(z: Tensor, vae: Vae, vocoder: Vocoder, params: Params) -> Tensor:
    """Scaled latents (n, C, T / P, F / P) -> normalised audio (n, clip_samples), by decoder and vocoder."""
    audio = vocoder(vae.decode(z / vae.scale))[:, : params.audio.clip_samples]
    return normalise_audio(audio, params.audio.peak)


def mix_clips(first: Tensor, second: Tensor, weight: Tensor, peak: float) -> Tensor:
    """Normalised clips (n, L) of both sides and weight (n,) -> weight * first + (1 - weight) * second, normalised."""
    return normalise_audio(torch.lerp(second, first, weight[:, None]), peak)


def posterior_noise(seed: list[int], shape: tuple[int, int, int]) -> Tensor:
    """Both sides' posterior noise (2, C, T / P, F / P), from the mix's seed."""
    generator = np.random.default_rng([*seed, 2])
    return torch.from_numpy(generator.standard_normal((2, *shape), dtype=np.float32))
