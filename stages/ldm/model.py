"""The denoising UNet and the learned null condition (paper, section 3.1 and appendix A).

z_t (B, C, T / P, F / P), t (B,), condition (B, D) -> predicted noise or v, as z_t
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.errors import ModelError
from stages.ldm.conditioning import with_null
from stages.params import Params
from stages.store import model_params
from stages.tensors import misfit, read_tensors
from stages.training.checkpoint import load_weights

UNET, NULL = "unet", "null_condition.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def build_unet(params: Params) -> UNet2DConditionModel:
    """A diffusers UNet with random weights, of the sizes in `params.ldm`.

    The CLAP vector goes through a linear layer and is concatenated with the time embedding; transformers
    attend to the latent only, twice each, since their cross-attention gets no other sequence than its own:
    both as in the public MusicLDM (diffusers' MusicLDMPipeline and its conversion script). There,
    `attention_head_dim` is the *number* of heads.
    """
    ldm = params.ldm
    channels, frames, bins = params.latent_shape
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in ldm.attention]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(ldm.attention)]
    return UNet2DConditionModel(
        sample_size=(frames, bins),
        in_channels=channels,
        out_channels=channels,
        down_block_types=tuple(down),
        mid_block_type="UNetMidBlock2DCrossAttn" if ldm.attention[-1] else "UNetMidBlock2D",
        up_block_types=tuple(up),
        block_out_channels=tuple(ldm.block_out_channels),
        layers_per_block=ldm.layers_per_block,
        norm_num_groups=ldm.norm_num_groups,
        cross_attention_dim=tuple(ldm.block_out_channels),
        attention_head_dim=tuple(ldm.attention_heads),
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=params.clap.projection_dim,
        class_embeddings_concat=True,
    )


class LatentDiffusion(nn.Module):
    """UNet and null condition, trained together."""

    def __init__(self, params: Params, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.params, self.unet = params, unet
        self.null = nn.Parameter(torch.zeros(params.clap.projection_dim))

    def forward(self, z: Tensor, t: Tensor, condition: Tensor, dropped: Tensor | None = None) -> Tensor:
        """One prediction of the network; `dropped` (B,) bool marks, in training, who gets the null condition."""
        condition = with_null(condition, self.null, dropped)
        return self.unet(z, t, encoder_hidden_states=None, class_labels=condition, return_dict=False)[0]

    def save(self, folder: Path) -> None:
        """Write `unet/` and the null condition into a pipeline folder."""
        self.unet.to(memory_format=torch.contiguous_format).save_pretrained(folder / UNET)
        save_file({"null": self.null.detach().float().cpu().contiguous()}, folder / NULL)


def load_ldm(folder: Path) -> LatentDiffusion:
    """UNet and null condition of a trained pipeline folder, in eval mode. Raises ModelError."""
    params = model_params(folder, "ldm")
    with torch.device("meta"):  # see load_weights
        unet = build_unet(params)
    model = LatentDiffusion(params, unet)
    read_weights(model, folder)
    return model.eval()


def read_weights(model: LatentDiffusion, folder: Path) -> None:
    """Copy a pipeline folder's weights into `model`; every name and shape must be the same. Raises ModelError."""
    remedy = "Use the params it was trained with; `musicldm model info` shows its preset."
    load_weights(model.unet, folder / UNET / WEIGHTS, remedy)
    with torch.no_grad():
        model.null.copy_(read_null(folder / NULL, model.null, remedy))


def read_null(file: Path, wanted: Tensor, remedy: str) -> Tensor:
    """A learned null condition, shaped as `wanted`. Raises ModelError."""
    found = read_tensors(file, remedy).get("null")
    problem = misfit("null", found, wanted)
    if problem is not None or found is None:
        raise ModelError(f"{file} does not fit: {problem}.", remedy)
    return found
