"""VGGish, whose 128-d features of 0.96 s FAD is measured on (Hershey et al. 2017; Kilgour et al. 2019).

waveform (B, L) at 16 kHz -> log-mel patches (B * P, 1, 96, 64) -> VGG -> (B, P, 128). Without the PCA of the
YouTube-8M release, and without the last ReLU, as audioldm_eval measures it. Reads torchvggish's checkpoint.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from stages.tensors import fit, read_tensors

SAMPLE_RATE = 16_000
WINDOW_SAMPLES, HOP_SAMPLES, N_FFT = 400, 160, 512
N_MELS, F_MIN, F_MAX = 64, 125.0, 7500.0
LOG_OFFSET = 0.01
PATCH_FRAMES = 96
PATCH_SECONDS = PATCH_FRAMES * HOP_SAMPLES / SAMPLE_RATE
_LAYOUT: tuple[int | None, ...] = (64, None, 128, None, 256, 256, None, 512, 512, None)  # None pools by 2


def mel_filters() -> Tensor:
    """(257, 64): triangles between equal steps of HTK mel, linear in mel, the first bin left out."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127 * torch.log1p(hertz / 700)

    bins = mel(torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1, dtype=torch.float64))[:, None]
    low, high = mel(torch.tensor([F_MIN, F_MAX], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, N_MELS + 2, dtype=torch.float64)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    filters[0] = 0
    return filters


class LogMel(nn.Module):
    """Waveform (B, L) -> ln(magnitude mel + 0.01) in whole patches (B, P, 96, 64); the rest is dropped.

    In double precision, as the published front-end.
    """

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW_SAMPLES, dtype=torch.float64), persistent=False)
        self.register_buffer("filters", mel_filters(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        frames = waveform.double().unfold(1, WINDOW_SAMPLES, HOP_SAMPLES) * self.window
        mel = torch.fft.rfft(frames, N_FFT).abs() @ self.filters
        logarithm = (mel + LOG_OFFSET).log()
        count = logarithm.shape[1] // PATCH_FRAMES
        return logarithm[:, : count * PATCH_FRAMES].unflatten(1, (count, PATCH_FRAMES)).float()


class VGGish(nn.Module):
    """The network; tensor names are torchvggish's."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = LogMel()
        layers: list[nn.Module] = []
        before = 1
        for width in _LAYOUT:
            if width is None:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 4 * 6, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128)
        )

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveform (B, L) at 16 kHz -> (B, P, 128), one row for each whole 0.96 s; at least one must fit."""
        patches = self.mel(waveform)
        maps = self.features(patches.flatten(0, 1)[:, None])
        rows = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))  # channels last, as TensorFlow flattens
        return rows.unflatten(0, patches.shape[:2])


def load_vggish(path: Path) -> VGGish:
    """The network with torchvggish's weights (`vggish-10086976.pth`), in eval mode. Raises ModelError."""
    state = {name: value for name, value in read_tensors(path).items() if not name.startswith("pproc.")}
    network = VGGish()
    fit(network, state, path)
    return network.eval().requires_grad_(False)
