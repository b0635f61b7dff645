"""Large models one network at a time: what is not at work holds no weights.

Making a clip uses the networks one after another: CLAP's text tower, UNet, VAE, vocoder, CLAP's audio tower. Their
files are mapped, so that letting weights go costs nothing, and having them again a read from the system's cache.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from stages.clap.model import TEXT_ENCODER
from stages.generate.pipeline import Pipeline
from stages.ldm.model import UNET
from stages.ldm.model import WEIGHTS as UNET_WEIGHTS
from stages.vae.model import FOLDER as VAE
from stages.vae.model import WEIGHTS as VAE_WEIGHTS
from stages.vocoder.model import FOLDER as VOCODER
from stages.vocoder.model import WEIGHTS as VOCODER_WEIGHTS

LARGE_BYTES = 1e9  # of a pipeline's weights; below, a reload costs more than its memory is worth
CLAP_WEIGHTS = "model.safetensors"


@dataclass
class Holder:
    """Weights that can be let go and had again."""

    open: Callable[[], None]
    close: Callable[[], None]


class Shelf:
    """Lets one holder at a time have its weights."""

    def __init__(self) -> None:
        self.holders: list[Holder] = []
        self.by_module: dict[nn.Module, Holder] = {}
        self.current: Holder | None = None

    def add(self, module: nn.Module, holder: Holder) -> None:
        """From now on `holder` is opened before `module` runs, and the others closed."""
        self.holders.append(holder)
        self.by_module[module] = holder
        holder.close()
        module.register_forward_pre_hook(lambda *_: self.enter(holder))

    def open(self, module: nn.Module) -> None:
        """Have a module's weights without running it, to compile it."""
        self.enter(self.by_module[module])

    def enter(self, holder: Holder) -> None:
        if holder is self.current:
            return
        for other in self.holders:
            if other is not holder:
                other.close()
        _give_back()
        holder.open()
        self.current = holder


def shelve(pipeline: Pipeline, folder: Path, channels_last: bool = True) -> Shelf | None:
    """Put the networks of a large pipeline on the CPU, loaded from `folder`, on a shelf; None for small ones.

    None for one with few-step weights, too: they were added to the UNet's and are in no file.
    `channels_last`: the order of axes that the UNet's weights are to have, as PyTorch's convolutions want them.
    """
    size = sum(parameter.nbytes for parameter in pipeline.parameters())
    if size < LARGE_BYTES or pipeline.few_steps or pipeline.device.type != "cpu":
        return None
    shelf, clap = Shelf(), pipeline.clap.model
    towers, plain, last = folder / TEXT_ENCODER / CLAP_WEIGHTS, torch.contiguous_format, torch.channels_last
    for module, file, prefix, order in (
        (clap.text_model, towers, "text_model.", plain),
        (clap.audio_model, towers, "audio_model.", plain),
        (pipeline.ldm.unet, folder / UNET / UNET_WEIGHTS, "", last if channels_last else plain),
        (pipeline.vae.network.encoder, folder / VAE / VAE_WEIGHTS, "encoder.", last),
        (pipeline.vae.network.decoder, folder / VAE / VAE_WEIGHTS, "decoder.", last),
        (pipeline.vocoder.network, folder / VOCODER / VOCODER_WEIGHTS, "", plain),
    ):
        shelf.add(module, _mapped(module, file, prefix, order))
    return shelf


def _give_back() -> None:
    """Have glibc return what the last network's activations left behind; other C libraries keep to themselves."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _mapped(module: nn.Module, file: Path, prefix: str, order: torch.memory_format) -> Holder:
    """The parameters of `module`, which `file` has under their names after `prefix`, in that order of axes."""
    parameters = dict(module.named_parameters())

    def read() -> None:
        for name, parameter in parameters.items():
            with safe_open(file, "pt") as stored:  # anew for each, so that what was copied is not mapped as well
                tensor = stored.get_tensor(prefix + name)
            kept = order if tensor.ndim == 4 else torch.preserve_format
            parameter.data = tensor.to(parameter.dtype, memory_format=kept)
            del tensor

    def forget() -> None:
        for parameter in parameters.values():
            parameter.data = parameter.new_empty(0)

    return Holder(read, forget)
