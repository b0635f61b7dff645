"""How the UNet, the VAE's decoder and the vocoder are run: by PyTorch as they are, or by OpenVINO.

    eager      float32, the reference
    bf16       weights and activations in bfloat16, where the processor multiplies it faster (AMX, AMD's AVX-512, CUDA)
    openvino   OpenVINO's CPU kernels, compiled once and kept on disk (extra `openvino`); bfloat16, too, where faster

A backend stands in the networks' places inside the
pipeline; who calls them sees no difference. Networks are compiled for one shape; all latents are made in windows of
one shape (stages.generate.windows).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.caches import cache_home
from stages.errors import UsageError
from stages.generate.memory import Holder, Shelf, shelve
from stages.generate.pipeline import Pipeline
from stages.generate.reuse import SplitUnet
from stages.generate.settings import check_backend, is_installed
from stages.precision import cpu_multiplies_bfloat16
from stages.store import atomic_folder

GRAPH = "model.xml"
Compiled = Callable[..., Any]
Maker = Callable[[tuple[Tensor, ...]], Compiled]


@dataclass(frozen=True)
class Backend:
    """How to run, whether in bfloat16, and why so, in a line for people."""

    name: str
    half: bool
    why: str

    @property
    def channels_last(self) -> bool:
        """Whether the UNet's weights are to lie so: PyTorch's convolutions want it, OpenVINO arranges it itself."""
        return self.name != "openvino"


def default_cache() -> Path:
    """Where compiled networks are kept."""
    return cache_home() / "musicldm" / "backends"


def load_pipeline(
    folder: Path,
    few_steps: bool = False,
    backend: str = "auto",
    device: str | torch.device | None = None,
    cache: Path | None = None,
) -> tuple[Pipeline, Backend]:
    """The pipeline of a model folder on the backend that is asked for; a large one's networks take turns in memory.

    Raises what `Pipeline.load` and `choose_backend` do.
    """
    pipeline, kept = Pipeline.load(folder, device, few_steps), cache or default_cache()
    chosen = choose_backend(backend, pipeline, kept)
    use_backend(pipeline, chosen, kept, shelve(pipeline, folder, chosen.channels_last))
    return pipeline, chosen


def choose_backend(wanted: str, pipeline: Pipeline, cache: Path) -> Backend:
    """`wanted`, or for "auto" the fastest that costs nothing to begin with.

    Compiling takes longer than making a few clips, so "auto" takes what was compiled before and compiles nothing.
    Raises UsageError for an unknown name, MissingDependencyError for one that is not installed.
    """
    check_backend(wanted)
    device = pipeline.device
    if wanted == "openvino" and device.type != "cpu":
        raise UsageError(f"OpenVINO runs on the CPU here, the model is on {device}.", "Take --backend auto.")
    half = has_fast_bfloat16(device)
    if wanted != "auto":
        return Backend(wanted, wanted == "bf16" or (half and wanted == "openvino"), "as asked for")
    if device.type == "cpu" and is_installed("openvino") and (cache / _key(half, pipeline)).is_dir():
        return Backend("openvino", half, "this model was compiled before")
    if half:
        return Backend("bf16", half, f"this {device.type} is fast in it")
    return Backend("eager", half, "no fast bfloat16, and --backend openvino was never run on this model")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and cpu_multiplies_bfloat16()


def use_backend(pipeline: Pipeline, backend: Backend, cache: Path, shelf: Shelf | None = None) -> None:
    """Put the backend's engines in the places of the pipeline's networks, in place.

    On a `shelf` the compiled forms are let go like weights, and opened again when they are wanted.
    """
    decoder, vocoder = pipeline.vae.network.decoder, pipeline.vocoder.network
    order = torch.channels_last if backend.channels_last else torch.contiguous_format
    split = SplitUnet(pipeline.ldm.unet.to(memory_format=order))
    cores: dict[str, tuple[nn.Module, dict[str, nn.Module]]] = {
        "unet": (pipeline.ldm.unet, {"whole": _Whole(split, order), "outer": _Outer(split, order)}),
        "vae": (decoder, {"decode": _Decoder(decoder)}),
        "vocoder": (vocoder, {"vocode": vocoder}),
    }
    engines = {}
    for name, (network, entries) in cores.items():
        ready = _nothing if shelf is None else partial(shelf.open, network)
        makers: dict[str, Maker]
        if backend.name == "openvino":
            folder = cache / _key(backend.half, pipeline) / name
            makers = {entry: _OpenVino(core, folder / entry, ready, backend.half) for entry, core in entries.items()}
        elif backend.half:
            _halve(network)
            makers = {entry: _Eager(_Half(core), ready) for entry, core in entries.items()}
        else:
            makers = {entry: _Eager(core, ready) for entry, core in entries.items()}
        engines[name] = Engine(network, makers)
        if shelf is not None and backend.name == "openvino":
            shelf.add(engines[name], Holder(lambda: None, engines[name].made.clear))
    pipeline.ldm.unet = _UnetEngine(engines["unet"])
    pipeline.vae.network.decoder = _DecoderEngine(engines["vae"])
    pipeline.vocoder.network = _VocoderEngine(engines["vocoder"])


def _halve(network: Any) -> None:
    """Weights in bfloat16, but a vocoder's last layer in float32: 8 bits of a sample would be heard as noise."""
    nn.Module.to(network, torch.bfloat16)  # not diffusers' own, which warns of what these networks do not have
    last = getattr(network, "conv_post", None) or getattr(network, "head", None)  # HiFi-GAN's, Vocos'
    if last is not None:
        last.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def _nothing() -> None:
    """Weights that are always there need no making ready."""


def _key(half: bool, pipeline: Pipeline) -> Path:
    """What a compiled network belongs to: weights, OpenVINO's version, precision."""
    from importlib.metadata import version

    number, of = "bf16" if half else "fp32", "-few-steps" * pipeline.few_steps
    return Path(f"{pipeline.digest}{of}") / f"openvino-{version('openvino')}-{number}"


# What is compiled: the networks with tensors only going in and coming out


class _Whole(nn.Module):
    def __init__(self, split: SplitUnet, order: torch.memory_format) -> None:
        super().__init__()
        self.split, self.order = split, order

    def forward(self, z: Tensor, t: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        return self.split.whole(z.contiguous(memory_format=self.order), t, condition)


class _Outer(nn.Module):
    def __init__(self, split: SplitUnet, order: torch.memory_format) -> None:
        super().__init__()
        self.split, self.order = split, order

    def forward(self, z: Tensor, t: Tensor, condition: Tensor, inner: Tensor) -> Tensor:
        return self.split.outer(z.contiguous(memory_format=self.order), t, condition, inner)


class _Decoder(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z)


class _Half(nn.Module):
    """A network in bfloat16 with float32 on both sides; times, which need more digits, go in as they are."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, *tensors: Tensor) -> Any:
        found = self.core(*(tensor if tensor.ndim < 2 else tensor.to(torch.bfloat16) for tensor in tensors))
        return found.float() if isinstance(found, Tensor) else tuple(each.float() for each in found)


# What calls them as their networks were called


class Engine(nn.Module):
    """One network with its entries; each shape that comes has a compiled form of its own, opened when it is first
    wanted."""

    def __init__(self, network: nn.Module, makers: dict[str, Maker]) -> None:
        super().__init__()
        self.network, self.makers = network, makers
        self.made: dict[tuple[Any, ...], Compiled] = {}

    def forward(self, entry: str, *tensors: Tensor) -> Any:
        key = (entry, *(tensor.shape for tensor in tensors))
        if key not in self.made:
            self.made[key] = self.makers[entry](tensors)
        return self.made[key](*tensors)


class _UnetEngine(nn.Module):
    """In the place of diffusers' UNet, and a Split."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def whole(self, z: Tensor, t: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        result, inner = self.engine("whole", z, _time(t, z), condition)
        return result, inner

    def outer(self, z: Tensor, t: Tensor, condition: Tensor, inner: Tensor) -> Tensor:
        result: Tensor = self.engine("outer", z, _time(t, z), condition, inner)
        return result

    def forward(self, z: Tensor, t: Tensor, class_labels: Tensor, **_: Any) -> tuple[Tensor]:
        return (self.whole(z, t, class_labels)[0],)


def _time(t: Tensor, like: Tensor) -> Tensor:
    return t.reshape(-1)[:1].float().to(like.device)


class _DecoderEngine(nn.Module):
    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, z: Tensor, *_: Any) -> Any:
        return self.engine("decode", z)


class _VocoderEngine(nn.Module):
    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, mel: Tensor) -> Any:
        return self.engine("vocode", mel)


# The ways to compile: inputs of one shape -> a function for that shape


class _Eager:
    def __init__(self, core: nn.Module, ready: Callable[[], None]) -> None:
        self.core, self.ready = core, ready

    def __call__(self, _inputs: tuple[Tensor, ...]) -> Compiled:
        return self._run

    def _run(self, *tensors: Tensor) -> Any:
        self.ready()
        return self.core(*tensors)


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

        def run(*tensors: Tensor) -> Any:
            found = compiled([tensor.numpy() for tensor in tensors])
            copies = tuple(torch.from_numpy(found[output].copy()) for output in compiled.outputs)
            return copies if len(copies) > 1 else copies[0]

        return run


def _openvino() -> Any:
    """The package, without the telemetry that it installs: its converter sends usage counts where it finds it."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


def _shape_name(inputs: tuple[Tensor, ...]) -> str:
    return "-".join("x".join(str(size) for size in tensor.shape) for tensor in inputs)
