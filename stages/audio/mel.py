"""The one mel front-end: VAE, vocoder and CLAP all see sound through it, each with its own settings."""

from typing import Literal

import torch
from torch import Tensor, nn

from stages.params import Params

Scale = Literal["ln-magnitude", "db-power"]


class MelSpectrogram(nn.Module):
    """Waveform (B, L) float32 in [-1, 1] -> log-mel (B, T, n_mels) float32.

    STFT with a periodic Hann window and reflected edges of n_fft / 2, then Slaney filters with Slaney norm.
    `ln-magnitude`: ln(max(magnitude mel, floor)), T = L // hop_length, the frame centred behind the last
    full hop dropped, as HiFi-GAN and AudioLDM define it (public MusicLDM code, utilities/audio/stft.py).
    `db-power`: 10 log10(max(power mel, floor)), T = L // hop_length + 1, as CLAP's feature extractor.
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self,
        sample_rate: int,
        n_fft: int,
        win_length: int,
        hop_length: int,
        n_mels: int,
        f_min: float,
        f_max: float,
        floor: float,
        scale: Scale = "ln-magnitude",
    ) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        self.n_fft, self.win_length, self.hop_length = n_fft, win_length, hop_length
        self.n_mels, self.floor, self.scale = n_mels, floor, scale
        filters = mel_filter_bank(n_fft // 2 + 1, n_mels, f_min, f_max, sample_rate, norm="slaney", mel_scale="slaney")
        self.register_buffer("window", torch.hann_window(win_length), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)  # (n_fft / 2 + 1, n_mels)

    @property
    def silence(self) -> float:
        """The value of every bin where there is no sound; what short clips are padded with."""
        floor = torch.tensor(self.floor)
        return float(floor.log() if self.scale == "ln-magnitude" else 10 * floor.log10())

    def forward(self, waveform: Tensor) -> Tensor:
        # autocast would run the STFT's products in bfloat16, which the log then magnifies
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform.float(),
                self.n_fft,
                self.hop_length,
                self.win_length,
                self.window,
                center=True,
                pad_mode="reflect",
                return_complex=True,
            )
            if self.scale == "ln-magnitude":
                frames = waveform.shape[-1] // self.hop_length
                magnitude = spectrum[..., :frames].abs().transpose(-1, -2)
                return (magnitude @ self.filters).clamp(min=self.floor).log()
            power = spectrum.abs().square().transpose(-1, -2)
            return 10 * (power @ self.filters).clamp(min=self.floor).log10()


def clip_mel(params: Params) -> MelSpectrogram:
    """The front-end of VAE and vocoder: (B, L) -> (B, L // hop_length, n_mels)."""
    mel = params.mel
    return MelSpectrogram(
        params.audio.sample_rate, mel.n_fft, mel.win_length, mel.hop_length, mel.n_mels, mel.f_min, mel.f_max,
        mel.log_floor,
    )  # fmt: skip


def clap_mel(params: Params) -> MelSpectrogram:
    """The front-end of CLAP's audio tower: (B, L at clap.sample_rate) -> (B, L // hop + 1, n_mels) in dB."""
    clap = params.clap
    return MelSpectrogram(
        clap.sample_rate, clap.n_fft, clap.n_fft, clap.hop_length, clap.n_mels, clap.f_min, clap.f_max,
        floor=1e-10, scale="db-power",
    )  # fmt: skip
