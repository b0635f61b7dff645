"""The forward process and its targets, as pure functions (Ho et al. 2020; paper, section 3.1).

alpha_bar (N,) float32 is the cumulative product of 1 - beta; t (B,) int64 counts from 0 to N - 1.
"""

import torch
from torch import Tensor

from stages.params import Ldm


def alphas_cumprod(ldm: Ldm) -> Tensor:
    """alpha_bar (N,) of the `scaled_linear` schedule: sqrt(beta) is linear from beta_start to beta_end."""
    root = torch.linspace(ldm.beta_start**0.5, ldm.beta_end**0.5, ldm.diffusion_steps, dtype=torch.float32)
    return torch.cumprod(1 - root.square(), dim=0)


def add_noise(z: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_t = sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) noise, with alpha_bar_t (B,) (Ho et al., eq. 4)."""
    alpha_bar = _over(alpha_bar, z)
    return alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * noise


def target(z: Tensor, noise: Tensor, alpha_bar: Tensor, prediction: str) -> Tensor:
    """What the network predicts: the noise, or v = sqrt(alpha_bar_t) noise - sqrt(1 - alpha_bar_t) z
    (Salimans & Ho 2022, section 4)."""
    if prediction == "epsilon":
        return noise
    alpha_bar = _over(alpha_bar, z)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * z


def min_snr_weights(alpha_bar: Tensor, gamma: float, prediction: str) -> Tensor:
    """Loss weights (B,): min(SNR, gamma) / SNR for noise, / (SNR + 1) for v (Hang et al. 2023, section 3.4)."""
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)


def few_times(steps: int, total: int) -> Tensor:
    """(steps + 1,) int64: the times that few steps visit, from the noisiest, total - 1, to 0, the clean latents."""
    return torch.linspace(total - 1, 0, steps + 1).round().long()


def levels(alpha_bar: Tensor, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of signal and noise, each (B, 1, 1, 1), at times t (B,); at time 0 all is signal."""
    at = torch.where(t == 0, torch.ones(()), alpha_bar[t])
    return _over(at.sqrt().to(like), like), _over((1 - at).sqrt().to(like), like)


def log_snr(alpha_bar: Tensor, t: Tensor) -> Tensor:
    """log(signal / noise) (B,), infinite at time 0."""
    at = torch.where(t == 0, torch.ones(()), alpha_bar[t])
    return (at / (1 - at)).log() / 2


def _over(alpha_bar: Tensor, z: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return alpha_bar.view(-1, *[1] * (z.ndim - 1))
