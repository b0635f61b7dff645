"""What the VAE is trained on: mel reconstruction, KL to the unit Gaussian, and a hinge PatchGAN.

The recipe of latent diffusion's first stage (Rombach et al. 2022, ldm/modules/losses/contperceptual.py) without
its image-perceptual term, as AudioLDM uses it. Its sums over a clip are divided by the clip's mel bins here, a
common factor that Adam does not see, so that figures do not depend on the clip's length. What is no multiple of the
loss, the limit of the adversarial weight, is divided with it.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHT_LIMIT = 1e4  # of the adaptive adversarial weight, of a loss that is summed over a clip
LEAK = 0.2


class PatchDiscriminator(nn.Module):
    """Log-mel images (B, 1, T, F) -> one score a patch (B, 1, T', F') (Isola et al. 2017).

    Group norm stands where the original has batch norm, so that a clip's score depends on no other clip
    of the batch and several processes compute what one does.
    """

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        widths = [channels * min(2**n, 8) for n in range(layers + 1)]
        body: list[nn.Module] = [nn.Conv2d(1, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(LEAK)]
        for n in range(1, layers + 1):
            stride = 2 if n < layers else 1
            body += [
                nn.Conv2d(widths[n - 1], widths[n], 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(math.gcd(8, widths[n]), widths[n]),
                nn.LeakyReLU(LEAK),
            ]
        self.body = nn.Sequential(*body, nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        for module in self.body:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image)


def kl_to_unit_gaussian(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, summed over a clip and averaged over the batch -> ()."""
    per_element = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)
    return per_element.flatten(1).sum(1).mean()


def vae_loss(mel: Tensor, made: Tensor, mean: Tensor, logvar: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    """(L1 of the mel per bin, KL term per mel bin times its weight), both ().

    L1 is the negative log-likelihood under a Laplace density of fixed scale 1 (log-variance 0).
    """
    bins = mel[0].numel()
    return F.l1_loss(made, mel), kl_weight * kl_to_unit_gaussian(mean, logvar) / bins


def hinge_judge_loss(real: Tensor, made: Tensor) -> Tensor:
    """What the discriminator minimises: scores of real mels above 1, of made ones below -1."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + made).mean())


def hinge_maker_loss(made: Tensor) -> Tensor:
    """What the decoder minimises: the negated score of what it made."""
    return -made.mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, bins: int) -> Tensor:
    """||grad of reconstruction|| / (||grad of adversarial|| + 1e-4), in [0, 1e4 / bins], detached (VQGAN, equation 7).

    Both gradients are those at the decoder's last layer; `bins` is what the reconstruction loss was divided by.
    """
    return (reconstruction.norm() / (adversarial.norm() + 1e-4)).clamp(0.0, WEIGHT_LIMIT / bins).detach()


def last_layer_gradient(loss: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `loss` at the last layer's `weight`, keeping the graph for the real backward pass."""
    return torch.autograd.grad(loss, weight, retain_graph=True)[0]
