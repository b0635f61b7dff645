"""How the UNet, the VAE's decoder and the vocoder are run: by PyTorch as they are, or compiled once and kept on disk.

    eager      float32, the reference
    bf16       PyTorch's autocast to bfloat16, where the processor has matrix units for it (AMX, CUDA)
    compile    AOTInductor: C++ generated, compiled and kept; needs a C++ compiler
    openvino   OpenVINO's CPU kernels (extra `openvino`)

A backend stands in the networks' places inside the pipeline; who calls them sees no difference. Networks are
compiled for one shape; all latents are made in windows of one shape (stages.generate.windows).
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.errors import MissingDependencyError, ModelError, UsageError
from stages.generate.memory import Holder, Shelf
from stages.generate.pipeline import Pipeline
from stages.store import atomic_folder

BACKENDS = ("auto", "eager", "bf16", "compile", "openvino")
PACKAGE, GRAPH = "model.pt2", "model.xml"
Compiled = Callable[..., Tensor]


@dataclass(frozen=True)
class Backend:
    """How to run, and why so, in a line for people."""

    name: str
    why: str

    @property
    def channels_last(self) -> bool:
        """Whether the UNet's weights are to lie so: PyTorch's convolutions want it, compilers arrange it themselves."""
        return self.name in ("eager", "bf16")


def default_cache() -> Path:
    """Where compiled networks are kept: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "musicldm" / "backends"


def choose_backend(wanted: str, pipeline: Pipeline, cache: Path) -> Backend:
    """`wanted`, or for "auto" the fastest that costs nothing to begin with.

    Compiling takes longer than making a few clips, so "auto" takes what was compiled before and compiles nothing.
    Raises UsageError for an unknown name, MissingDependencyError for one that is not installed.
    """
    if wanted not in BACKENDS:
        raise UsageError(f"--backend {wanted} is none of {', '.join(BACKENDS)}.")
    if not _is_installed(wanted):
        raise MissingDependencyError("OpenVINO is not installed.", "pip install 'musicldm[openvino]'")
    if wanted == "openvino" and pipeline.device.type != "cpu":
        raise UsageError(
            f"OpenVINO runs on the CPU here, the model is on {pipeline.device}.", "Take --backend compile."
        )
    if wanted != "auto":
        return Backend(wanted, "as asked for")
    if has_fast_bfloat16(pipeline.device):
        return Backend("bf16", f"{pipeline.device.type} has matrix units for bfloat16")
    for name in ("openvino", "compile"):
        if _is_installed(name) and (cache / _key(name, pipeline)).is_dir():
            return Backend(name, "this model was compiled before")
    return Backend("eager", "no matrix units, and --backend openvino or compile was never run on this model")


def _is_installed(backend: str) -> bool:
    """To be asked before `_key`, which holds the package's version."""
    return backend != "openvino" or find_spec("openvino") is not None


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported())


def use_backend(pipeline: Pipeline, backend: Backend, cache: Path, shelf: Shelf | None = None) -> None:
    """Put the backend's engines in the places of the pipeline's networks, in place.

    On a `shelf` the compiled forms are let go like weights, and opened again when they are wanted.
    """
    unet = _UnetCore(pipeline.ldm.unet, backend.channels_last)
    cores = (unet, _DecoderCore(pipeline.vae.network.decoder), pipeline.vocoder.network)
    networks = (pipeline.ldm.unet, pipeline.vae.network.decoder, pipeline.vocoder.network)
    half = backend.name == "bf16" or has_fast_bfloat16(pipeline.device)
    engines = []
    for core, network, name in zip(cores, networks, ("unet", "vae", "vocoder"), strict=True):
        ready = _nothing if shelf is None else partial(shelf.open, network)
        folder = cache / _key(backend.name, pipeline) / name
        make: Callable[[tuple[Tensor, ...]], Compiled]
        if backend.name == "openvino":
            make = _OpenVino(core, folder, ready, half)
        elif backend.name == "compile":
            make = _Inductor(_Autocast(core) if half else core, folder, ready)
        else:
            make = _Eager(_Autocast(core) if backend.name == "bf16" else core)
        engines.append(Engine(core, make))
        if shelf is not None and backend.name in ("compile", "openvino"):
            shelf.add(engines[-1], Holder(lambda: None, engines[-1].made.clear))
    pipeline.ldm.unet = _UnetEngine(engines[0])
    pipeline.vae.network.decoder = _DecoderEngine(engines[1])
    pipeline.vocoder.network = engines[2]


def _nothing() -> None:
    """Weights that are always there need no making ready."""


def _key(backend: str, pipeline: Pipeline) -> Path:
    """What a compiled network belongs to: weights, program, version of the compiler."""
    from importlib.metadata import version

    maker = "openvino" if backend == "openvino" else "torch"
    return Path(pipeline.digest) / f"{backend}-{version(maker)}"


# What is compiled: the networks with tensors only going in and coming out


class _UnetCore(nn.Module):
    def __init__(self, unet: Any, channels_last: bool) -> None:
        super().__init__()
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.unet = unet.to(memory_format=self.format)

    def forward(self, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        z = z.contiguous(memory_format=self.format)
        return self.unet(z, t, encoder_hidden_states=None, class_labels=condition, return_dict=False)[0]


class _DecoderCore(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z)


class _Autocast(nn.Module):
    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, *tensors: Tensor) -> Tensor:
        with torch.autocast(tensors[0].device.type, torch.bfloat16):
            return self.core(*tensors).float()


# What calls them as their networks were called


class Engine(nn.Module):
    """One network; each shape that comes has a compiled form of its own, which is opened when it is first wanted."""

    def __init__(self, core: nn.Module, make: Callable[[tuple[Tensor, ...]], Compiled]) -> None:
        super().__init__()
        self.core, self.make = core, make
        self.made: dict[tuple[torch.Size, ...], Compiled] = {}

    def forward(self, *tensors: Tensor) -> Tensor:
        shapes = tuple(tensor.shape for tensor in tensors)
        if shapes not in self.made:
            self.made[shapes] = self.make(tensors)
        return self.made[shapes](*tensors)


class _UnetEngine(nn.Module):
    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, z: Tensor, t: Tensor, class_labels: Tensor, **_: Any) -> tuple[Tensor]:
        return (self.engine(z, t.reshape(-1)[:1].float().to(z.device), class_labels),)


class _DecoderEngine(nn.Module):
    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, z: Tensor, *_: Any) -> Tensor:
        return self.engine(z)


# The ways to compile: inputs of one shape -> a function for that shape


class _Eager:
    def __init__(self, core: nn.Module) -> None:
        self.core = core

    def __call__(self, _inputs: tuple[Tensor, ...]) -> Compiled:
        return self.core


class _Inductor:
    """Ahead of time, so that the next command needs no compiler and no tracing."""

    def __init__(self, core: nn.Module, folder: Path, ready: Callable[[], None]) -> None:
        self.core, self.folder, self.ready = core, folder, ready

    def __call__(self, inputs: tuple[Tensor, ...]) -> Compiled:
        folder = self.folder / _shape_name(inputs)
        if not (folder / PACKAGE).exists():
            self.ready()
            with torch.no_grad(), atomic_folder(folder) as temporary:
                exported = torch.export.export(self.core.eval(), inputs)
                try:
                    torch._inductor.aoti_compile_and_package(exported, package_path=str(temporary / PACKAGE))
                except (RuntimeError, torch._inductor.exc.CppCompileError) as error:
                    reason = str(error).strip().splitlines()[0]
                    raise ModelError(
                        f"The network cannot be compiled here: {reason}", "Take --backend eager."
                    ) from error
        return _InferenceOnly(torch._inductor.aoti_load_package(str(folder / PACKAGE)))


class _InferenceOnly:
    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled

    def __call__(self, *tensors: Tensor) -> Tensor:
        with torch.no_grad():
            return self.compiled(*(tensor.detach() for tensor in tensors))


class _OpenVino:
    """Converted once into a file of graph and weights, which OpenVINO compiles when it is opened."""

    def __init__(self, core: nn.Module, folder: Path, ready: Callable[[], None], half: bool) -> None:
        self.core, self.folder, self.ready, self.half = core, folder, ready, half

    def __call__(self, inputs: tuple[Tensor, ...]) -> Compiled:
        openvino = _openvino()
        folder = self.folder / _shape_name(inputs)
        if not (folder / GRAPH).exists():
            self.ready()
            with torch.no_grad(), atomic_folder(folder) as temporary:
                converted = openvino.convert_model(self.core.eval(), example_input=inputs)
                converted.reshape({number: list(tensor.shape) for number, tensor in enumerate(inputs)})
                openvino.save_model(converted, temporary / GRAPH, compress_to_fp16=False)
        settings = {
            "CACHE_DIR": str(folder),  # of the compiled form: opened in a tenth of the time
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if self.half else "f32",
        }
        compiled = openvino.Core().compile_model(folder / GRAPH, "CPU", settings)
        return lambda *tensors: torch.from_numpy(compiled([tensor.numpy() for tensor in tensors])[0].copy())


def _openvino() -> Any:
    """The package, without the telemetry that it installs: its converter sends usage counts where it finds it."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


def _shape_name(inputs: tuple[Tensor, ...]) -> str:
    return "-".join("x".join(str(size) for size in tensor.shape) for tensor in inputs)
