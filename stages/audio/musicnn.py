"""musicnn: a convolutional music tagger, and the embedding it tags from (Pons and Serra, arXiv 1909.06654).

The weights ship with the project; stages/audio/weights/README.md says where they come from. Two networks of one
shape: `MTT_musicnn`, trained on MagnaTagATune, and `MSD_musicnn`, trained on the Million Song Dataset.
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.tensors import fit, read_tensors

Name = Literal["MTT_musicnn", "MSD_musicnn"]
WEIGHTS = Path(__file__).parent / "weights"

SAMPLE_RATE = 16_000
N_FFT = 512
HOP_SAMPLES = 256
N_MELS = 96
PATCH_FRAMES = 187  # 3 s, as in training; patches do not overlap
PATCHES_AT_ONCE = 1  # bounds memory: a patch needs 30 MB inside the network; more at once are no faster
EPSILON = 1e-3  # of TensorFlow's batch normalisation

LABELS: dict[Name, list[str]] = {
    "MTT_musicnn": [
        "guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast", "piano",
        "ambient", "beat", "violin", "vocal", "synth", "female", "indian", "opera", "male", "singing", "vocals",
        "no vocals", "harpsichord", "loud", "quiet", "flute", "woman", "male vocal", "no vocal", "pop", "soft",
        "sitar", "solo", "man", "classic", "choir", "voice", "new age", "dance", "male voice", "female vocal",
        "beats", "harp", "cello", "no voice", "weird", "country", "metal", "female voice", "choral",
    ],
    "MSD_musicnn": [
        "rock", "pop", "alternative", "indie", "electronic", "female vocalists", "dance", "00s",
        "alternative rock", "jazz", "beautiful", "metal", "chillout", "male vocalists", "classic rock", "soul",
        "indie rock", "Mellow", "electronica", "80s", "folk", "90s", "chill", "instrumental", "punk", "oldies",
        "blues", "hard rock", "ambient", "acoustic", "experimental", "female vocalist", "guitar", "Hip-Hop",
        "70s", "party", "country", "easy listening", "sexy", "catchy", "funk", "electro", "heavy metal",
        "Progressive rock", "60s", "rnb", "indie pop", "sad", "House", "happy",
    ],
}  # fmt: skip


class LogMel(nn.Module):
    """Waveform (B, L) at 16 kHz -> log10(1 + 10000 power mel), (B, L // 256 + 1, 96).

    librosa's melspectrogram with its defaults of 2019 (Slaney mel, reflected edges), which the networks were
    trained on; their rounding to half precision is left out.
    """

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(
            N_FFT // 2 + 1, N_MELS, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = torch.stft(waveform, N_FFT, HOP_SAMPLES, window=self.window, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        return torch.log10(1 + 10_000 * (power.transpose(1, 2) @ self.filters))


class FrontEnd(nn.Module):
    """Filters of `frames` x `bins`, then the best place on the mel axis: (B, T, 96) -> (B, filters, T).

    The network normalises before it looks for the best place. The normalisation keeps or turns the order
    of each filter's values, so looking first, at the greatest or the least, gives the same and costs less.
    """

    def __init__(self, frames: int, bins: int, filters: int) -> None:
        super().__init__()
        self.frames, self.bins = frames, bins
        self.conv = nn.Linear(frames * bins, filters)  # a convolution, written as the matrix product it is
        self.norm = nn.BatchNorm1d(filters, eps=EPSILON)

    def forward(self, mel: Tensor) -> Tensor:
        before = (self.frames - 1) // 2  # TensorFlow's "same" puts the odd frame behind
        padded = F.pad(mel, (0, 0, before, self.frames - 1 - before))
        places = padded.unfold(1, self.frames, 1).unfold(2, self.bins, 1)  # (B, T, P, frames, bins)
        found = self.conv(places.flatten(3))
        best = torch.where(self.norm.weight > 0, found.amax(dim=2), found.amin(dim=2))
        return self.norm(best.relu().transpose(1, 2))


class Middle(nn.Module):
    """(B, C, T) -> (B, 64, T), looking 7 frames wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 64, 7, padding=3)
        self.norm = nn.BatchNorm1d(64, eps=EPSILON)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.conv(features).relu())


class MusicNN(nn.Module):
    """The whole network in inference: front-end, three densely connected layers, pooling over time, tags."""

    def __init__(self, labels: list[str]) -> None:
        super().__init__()
        self.labels = labels
        self.mel = LogMel()
        self.norm = nn.BatchNorm2d(1, eps=EPSILON)
        self.front = nn.ModuleList([
            FrontEnd(7, int(0.4 * N_MELS), 204), FrontEnd(7, int(0.7 * N_MELS), 204),  # timbre
            FrontEnd(128, 1, 51), FrontEnd(64, 1, 51), FrontEnd(32, 1, 51),  # rhythm
        ])  # fmt: skip
        self.middle = nn.ModuleList([Middle(561), Middle(64), Middle(64)])
        self.pool_norm = nn.BatchNorm1d(1506, eps=EPSILON)
        self.hidden = nn.Linear(1506, 200)
        self.hidden_norm = nn.BatchNorm1d(200, eps=EPSILON)
        self.tags = nn.Linear(200, len(labels))

    def patch_features(self, patches: Tensor) -> Tensor:
        """Log-mel patches (B, T, 96) -> the penultimate layer (B, 200)."""
        mel = self.norm(patches.unsqueeze(1)).squeeze(1)
        front = torch.cat([block(mel) for block in self.front], dim=1)
        first = self.middle[0](front)
        second = self.middle[1](first) + first
        third = self.middle[2](second) + second
        features = torch.cat([front, first, second, third], dim=1)
        pooled = torch.stack([features.amax(dim=2), features.mean(dim=2)], dim=2).flatten(1)
        return self.hidden_norm(self.hidden(self.pool_norm(pooled)).relu())

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Waveform (B, L) float32 at 16 kHz -> tag probabilities (B, 50) and embedding (B, 200).

        Both are means over the whole 3 s patches, from the beginning on; what is shorter than one patch is
        repeated to fill it, as in the networks' training. Bit-stable for equal input.
        """
        shortest = (PATCH_FRAMES - 1) * HOP_SAMPLES
        if waveform.shape[1] < shortest:
            waveform = waveform.repeat(1, -(-shortest // waveform.shape[1]))[:, :shortest]
        mel = self.mel(waveform)
        count = mel.shape[1] // PATCH_FRAMES
        patches = mel[:, : count * PATCH_FRAMES].unflatten(1, (count, PATCH_FRAMES)).flatten(0, 1)
        embedding = torch.cat([self.patch_features(some) for some in patches.split(PATCHES_AT_ONCE)])
        tags = self.tags(embedding).sigmoid()
        batch = (len(waveform), count)
        return tags.unflatten(0, batch).mean(dim=1), embedding.unflatten(0, batch).mean(dim=1)


def load_musicnn(name: Name) -> MusicNN:
    """One of the two networks with its weights, in eval mode, without gradients."""
    model, file = MusicNN(LABELS[name]), WEIGHTS / f"{name}.safetensors"
    fit(model, read_tensors(file), file)
    return model.eval().requires_grad_(False)
