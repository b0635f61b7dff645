"""How the public MusicLDM and AudioLDM checkpoints name the tensors of each network.

Every function takes a tensor's name in our folders (diffusers' and transformers') and gives the public one. The names
are facts of the public code: openaimodel.py and diffusionmodules/model.py of MusicLDM and AudioLDM, models.py of
HiFi-GAN, htsat.py and model.py of LAION's CLAP.
"""

import re

from stages.errors import ModelError
from stages.params import Ldm, Vae

UNET = "model.diffusion_model."
EMA = "model_ema."
VAE = "first_stage_model."
VOCODER = "first_stage_model.vocoder."
CLAP = "cond_stage_model.model."
SCALE = "scale_factor"
NULL = "null_condition"  # ours: earlier versions exported the learned null condition under this name

_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "film_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_CLAP_ENDS = {"linear1": "0", "linear2": "2"}
_CLAP_BLOCK = {
    "attention.self.query": "attn.qkv[0]",  # rows of one matrix, see stages.weights.tensors
    "attention.self.key": "attn.qkv[1]",
    "attention.self.value": "attn.qkv[2]",
    "attention.self": "attn",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}


def unet_name(ours: str, ldm: Ldm) -> str:
    """Of a `UNet2DConditionModel`: the public UNet counts all its blocks through, up- and downsampling included."""
    module, _, end = ours.rpartition(".")
    if module in _UNET_ENDS:
        return f"{_UNET_ENDS[module]}.{end}"
    middle = re.fullmatch(r"mid_block\.(\w+\.\d)\.(.+)", ours)
    if middle:
        return f"middle_block.{_UNET_MIDDLE[middle[1]]}.{_inside(middle[1], middle[2])}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", ours)
    if match is None:
        raise ModelError(f"The public layout has no place for the UNet's tensor {ours}.")
    side, block, kind, layer, inside = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (ldm.layers_per_block + 1)}.0.op.{end}"
        place = f"input_blocks.{1 + block * (ldm.layers_per_block + 1) + layer}"
    else:
        if kind == "upsamplers":
            behind = 2 if ldm.attention[::-1][block] else 1
            return f"output_blocks.{(block + 1) * (ldm.layers_per_block + 1) - 1}.{behind}.{inside}"
        place = f"output_blocks.{block * (ldm.layers_per_block + 1) + layer}"
    return f"{place}.{int(kind == 'attentions')}.{_inside(kind, inside)}"


def _inside(kind: str, name: str) -> str:
    """A tensor inside a residual block; attention's names are the same on both sides."""
    if kind.startswith("attentions"):
        return name
    module, _, end = name.partition(".")
    return f"{_UNET_RESNET[module]}.{end}"


def vae_name(ours: str, vae: Vae) -> str:
    """Of an `AutoencoderKL`: the public decoder counts its levels from the finest, ours from the coarsest."""
    name = ours.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    attention = re.fullmatch(r"(.+)mid_block\.attentions\.0\.(.+)\.(weight|bias)", name)
    if attention:
        return f"{attention[1]}mid.attn_1.{_VAE_ATTENTION[attention[2]]}.{attention[3]}"
    last = len(vae.block_out_channels) - 1
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{last - int(m[1])}", name)
    return name.replace(".resnets.", ".block.").replace(".upsamplers.0.", ".upsample.")


def vocoder_name(ours: str) -> str:
    """Of a `SpeechT5HifiGan`."""
    return re.sub(r"^upsampler\.", "ups.", ours)


def clap_name(ours: str) -> str:
    """Of a `ClapModel`: LAION's CLAP has the same two towers."""
    projection = re.fullmatch(r"(audio|text)_projection\.(linear\d)\.(.+)", ours)
    if projection:
        return f"{projection[1]}_projection.{_CLAP_ENDS[projection[2]]}.{projection[3]}"
    if ours.startswith("text_model."):
        return ours.replace("text_model.", "text_branch.", 1)
    name = ours.replace("audio_model.audio_encoder.", "audio_branch.").replace(".batch_norm.", ".bn0.")
    block = re.fullmatch(r"(.+\.blocks\.\d+)\.(.+)\.(\w+)", name)
    if block is None:
        return name
    return f"{block[1]}.{_CLAP_BLOCK[block[2]]}.{block[3]}"
