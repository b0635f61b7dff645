"""What the two layouts hold in other shapes: joined matrices, weight norm, 1x1 convolutions, flattened EMA names.

A table of tensors is {name: tensor}; every function returns a new one.
"""

import re

from stages.errors import ModelError
from stages.tensors import Tensors
from stages.weights.names import EMA, UNET

QKV = re.compile(r"(.+\.attn\.qkv)\.(weight|bias)")
VAE_ATTENTION = re.compile(r".+\.mid\.attn_1\.(q|k|v|proj_out)\.weight")
NORM_PAIRS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))


def split_qkv(tensors: Tensors) -> Tensors:
    """HTSAT's query, key and value matrices, one above the other in the file -> `qkv[0]`, `qkv[1]`, `qkv[2]`."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        match = QKV.fullmatch(name)
        if match is None or not tensor.ndim or len(tensor) % 3:
            found[name] = tensor
        else:
            found |= {f"{match[1]}[{i}].{match[2]}": part for i, part in enumerate(tensor.chunk(3))}
    return found


def fold_weight_norm(tensors: Tensors) -> Tensors:
    """Weights of layers kept as magnitude and direction: w = g v / |v|, the norm over all but the first axis
    (Salimans & Kingma 2016, eq. 2; PyTorch's weight_norm with dim=0). Raises ModelError for half a pair."""
    found = dict(tensors)
    for magnitude, direction in NORM_PAIRS:
        for name in [name for name in found if name.endswith(f".{magnitude}")]:
            layer = name.removesuffix(magnitude)
            g, v = found.pop(name), found.pop(layer + direction, None)
            if v is None or g.shape != (len(v), *[1] * (v.ndim - 1)):
                raise ModelError(f"The weight norm of {layer}weight is not whole: {name} has no fitting {direction}.")
            found[f"{layer}weight"] = g * v / v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))
    return found


def to_matrices(tensors: Tensors) -> Tensors:
    """The VAE's attention as 1x1 convolutions (O, I, 1, 1) -> matrices (O, I)."""
    return {
        name: t[:, :, 0, 0] if VAE_ATTENTION.fullmatch(name) and t.shape[2:] == (1, 1) else t
        for name, t in tensors.items()
    }


def without_ema(tensors: Tensors) -> Tensors:
    """The UNet's moving average in the place of its last weights, where the file holds one.

    It is stored under the UNet's names without their dots. Raises ModelError when some have no average.
    """
    average = {name: tensor for name, tensor in tensors.items() if name.startswith(EMA)}
    rest = {name: tensor for name, tensor in tensors.items() if name not in average}
    if not average:
        return rest
    flat = {name: EMA + name.removeprefix("model.").replace(".", "") for name in rest if name.startswith(UNET)}
    lacking = [name for name in flat if flat[name] not in average]
    if lacking:
        raise ModelError(
            f"The file has moving averages of the UNet, but none of {', '.join(lacking)}.",
            "Give the file as its authors published it.",
        )
    return rest | {name: average.pop(flat[name]) for name in flat} | average
