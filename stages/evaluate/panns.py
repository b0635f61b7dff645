"""PANN Cnn14, the AudioSet tagger whose features FD, IS and KL are measured on (Kong et al. 2020, arXiv 1912.10211).

waveform (B, L) -> log-mel (B, 1, T, 64) -> six blocks of two convolutions -> mean over mel, max + mean over
time (B, 2048) -> fc1, ReLU: the embedding (B, 2048) -> 527 AudioSet logits. Reads the authors' checkpoints.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.errors import ModelError
from stages.tensors import fit, read_tensors

CLASSES = 527
N_MELS = 64
WIDTHS = (64, 128, 256, 512, 1024, 2048)
POWER_FLOOR = 1e-10  # -100 dB
_DERIVED = ("spectrogram_extractor.", "logmel_extractor.")  # Fourier and mel matrices, which we compute


@dataclass(frozen=True)
class FrontEnd:
    """What the published Cnn14 of one sample rate was trained with."""

    sample_rate: int
    n_fft: int
    hop_length: int
    f_min: float
    f_max: float


FRONT_ENDS = {
    16_000: FrontEnd(16_000, 512, 160, 50.0, 8_000.0),
    32_000: FrontEnd(32_000, 1024, 320, 50.0, 14_000.0),
}


class LogMel(nn.Module):
    """Waveform (B, L) -> (B, 1, L // hop + 1, 64) in dB: power 2, periodic Hann, reflected edges, Slaney mel."""

    window: Tensor
    filters: Tensor

    def __init__(self, front: FrontEnd) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(
            front.n_fft // 2 + 1, N_MELS, front.f_min, front.f_max, front.sample_rate, norm="slaney",
            mel_scale="slaney",
        )  # fmt: skip
        self.front = front
        self.register_buffer("window", torch.hann_window(front.n_fft), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = torch.stft(
            waveform, self.front.n_fft, self.front.hop_length, window=self.window, return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        mel = power.transpose(1, 2) @ self.filters
        return (10 * mel.clamp(min=POWER_FLOOR).log10())[:, None]


class Block(nn.Module):
    """(B, C, T, F) -> (B, C', T / pool, F / pool)."""

    def __init__(self, before: int, after: int, pool: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return x if self.pool == 1 else F.avg_pool2d(x, self.pool)


class Cnn14(nn.Module):
    """The network in inference. Tensor names are those of the published checkpoints."""

    def __init__(self, front: FrontEnd) -> None:
        super().__init__()
        self.mel = LogMel(front)
        self.bn0 = nn.BatchNorm2d(N_MELS)
        for number, (before, after) in enumerate(zip((1, *WIDTHS), WIDTHS, strict=False), start=1):
            self.add_module(f"conv_block{number}", Block(before, after, 1 if number == len(WIDTHS) else 2))
        self.fc1 = nn.Linear(WIDTHS[-1], WIDTHS[-1])
        self.fc_audioset = nn.Linear(WIDTHS[-1], CLASSES)

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Waveform (B, L) at the network's rate -> embedding (B, 2048), logits (B, 527)."""
        x = self.bn0(self.mel(waveform).transpose(1, 3)).transpose(1, 3)
        for number in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"conv_block{number}")(x)
        x = x.mean(dim=3)
        embedding = self.fc1(x.amax(dim=2) + x.mean(dim=2)).relu()
        return embedding, self.fc_audioset(embedding)


def load_cnn14(path: Path, sample_rate: int) -> Cnn14:
    """The network with a checkpoint's weights (`Cnn14_16k_mAP=0.438.pth`, `Cnn14_mAP=0.431.pth`), in eval mode.

    Raises ModelError when the file is not such a checkpoint, name by name and shape by shape.
    """
    front = FRONT_ENDS[sample_rate]
    state = read_tensors(path)
    window = state.get("spectrogram_extractor.stft.conv_real.weight")
    bins, f_max = front.n_fft // 2 + 1, front.f_max
    if window is not None and tuple(window.shape) != (bins, 1, front.n_fft):
        rates = ", ".join(f"{rate // 1000} kHz: n_fft {one.n_fft}" for rate, one in FRONT_ENDS.items())
        raise ModelError(
            f"{path} was trained with an n_fft of {window.shape[-1]}, not with {front.n_fft} up to {f_max:.0f} Hz.",
            f"Choose evaluate.backbone by the checkpoint's rate ({rates}).",
        )
    network = Cnn14(front)
    fit(network, {name: value for name, value in state.items() if not name.startswith(_DERIVED)}, path)
    return network.eval().requires_grad_(False)
