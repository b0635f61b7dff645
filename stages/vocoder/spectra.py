"""A loss on spectra at several resolutions at once, which no single window's blind spots escape."""

import torch
from torch import Tensor
from torch.nn import functional as F

SIZES = (256, 512, 1024, 2048)
FLOOR = 1e-3  # of magnitudes under the logarithm
QUIET = 1e-2  # mean magnitude below which a clip's relative error counts less
RELATIVE_WEIGHT = 0.3  # single quiet clips make the relative term large


def stft_loss(made: Tensor, real: Tensor) -> Tensor:
    """Waveforms (B, L), (B, L) -> (): mean over SIZES of the magnitudes' L1 in logarithms and relative error.

    After Yamamoto et al. 2020 (Parallel WaveGAN, equations 4 to 6), with L1 in both terms.
    """
    terms = []
    for size in SIZES:
        window = torch.hann_window(size, device=real.device)
        a, b = (torch.stft(x.float(), size, size // 4, size, window, return_complex=True).abs() for x in (made, real))
        relative = (a - b).abs().mean((1, 2)) / (b.mean((1, 2)) + QUIET)
        terms.append(F.l1_loss((a + FLOOR).log(), (b + FLOOR).log()) + RELATIVE_WEIGHT * relative.mean())
    return torch.stack(terms).mean()
