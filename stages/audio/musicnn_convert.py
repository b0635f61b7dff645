"""From the musicnn authors' TensorFlow 1 checkpoints to stages/audio/weights, without TensorFlow.

To repeat it:

    pip download --no-deps musicnn==0.1.0 && unzip musicnn-0.1.0-py3-none-any.whl
    python -c "from pathlib import Path; from stages.audio.musicnn_convert import convert; \
               convert(Path('musicnn/MTT_musicnn'), 'MTT_musicnn'); convert(Path('musicnn/MSD_musicnn'), 'MSD_musicnn')"

A checkpoint's `.index` is a LevelDB table (blocks of key-value pairs with shared prefixes, a footer that
points to the block of blocks); each value is a BundleEntryProto that says where in `.data-00000-of-00001`
the tensor's raw bytes lie (tensorflow/core/protobuf/tensor_bundle.proto).
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.audio.musicnn import LABELS, WEIGHTS, MusicNN, Name
from stages.errors import ModelError
from stages.store import atomic_file

TABLE_MAGIC = 0xDB4775248B80FB57
FLOAT32 = 1  # DT_FLOAT of tensorflow/core/framework/types.proto

# our modules in the order in which the authors' graph makes them, which is how TensorFlow numbers them
CONVOLUTIONS = [f"{room}.{i}.conv" for room, n in (("front", 5), ("middle", 3)) for i in range(n)]
NORMS = ["norm", *(name.replace("conv", "norm") for name in CONVOLUTIONS), "pool_norm", "hidden_norm"]
DENSE = ["hidden", "tags"]
NORM_TENSORS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def convert(folder: Path, name: Name) -> Path:
    """Write weights/<name>.safetensors from the checkpoint in `folder`; returns its path."""
    from safetensors.torch import save_file

    target = WEIGHTS / f"{name}.safetensors"
    with atomic_file(target) as temporary:
        save_file(convert_checkpoint(f"{folder}/"), temporary)
    return target


def convert_checkpoint(prefix: str) -> dict[str, Tensor]:
    """The state of a MusicNN from `<prefix>.index` and `<prefix>.data-00000-of-00001`.

    Raises ModelError unless every tensor of the checkpoint, the optimizer's aside, has its place and shape.
    """
    stored = {name: data for name, data in read_checkpoint(prefix).items() if not _of_optimizer(name)}
    state = MusicNN(LABELS["MTT_musicnn"]).state_dict()
    wanted = {name for name in state if not name.endswith("num_batches_tracked")}
    places = _places()
    if stored.keys() != places.keys() or set(places.values()) != wanted:
        odd = sorted(stored.keys() ^ places.keys()) or sorted(wanted ^ set(places.values()))
        raise ModelError(f"{prefix} is not a checkpoint of musicnn: {odd[0]} is of one side only.")
    for source, target in places.items():
        tensor = _to_torch(stored[source], target)
        if tensor.shape != state[target].shape:
            raise ModelError(f"{prefix}: {source} has shape {tuple(tensor.shape)}, not {tuple(state[target].shape)}.")
        state[target] = tensor
    return state


def _places() -> dict[str, str]:
    places = {}
    for kind, modules in (("conv2d", CONVOLUTIONS), ("dense", DENSE)):
        for number, module in enumerate(modules):
            places[f"{_numbered(kind, number)}/kernel"] = f"{module}.weight"
            places[f"{_numbered(kind, number)}/bias"] = f"{module}.bias"
    for number, module in enumerate(NORMS):
        for theirs, ours in NORM_TENSORS.items():
            places[f"{_numbered('batch_normalization', number)}/{theirs}"] = f"{module}.{ours}"
    return places


def _numbered(kind: str, number: int) -> str:
    return f"{kind}_{number}" if number else kind


def _of_optimizer(name: str) -> bool:
    return "/Adam" in name or name in ("beta1_power", "beta2_power")


def _to_torch(data: NDArray[np.float32], target: str) -> Tensor:
    """Matrices from (in, out); convolutions from (time, features, 1, out)."""
    if data.ndim == 4 and target.startswith("middle"):
        data = data[:, :, 0].transpose(2, 1, 0)
    elif data.ndim > 1:
        data = data.reshape(-1, data.shape[-1]).T
    return torch.from_numpy(data.copy())


def read_checkpoint(prefix: str) -> dict[str, NDArray[np.float32]]:
    """All float32 tensors of a one-shard TensorFlow checkpoint by name. Raises ModelError for another file."""
    table = Path(f"{prefix}.index").read_bytes()
    data = Path(f"{prefix}.data-00000-of-00001").read_bytes()
    tensors = {}
    for key, value in _table(table, prefix):
        if not key:  # the header: number of shards, byte order
            continue
        kind, shape, start, size = _entry(value)
        if kind != FLOAT32:
            raise ModelError(f"{prefix}: {key.decode()} is of type {kind}, not float32.")
        tensors[key.decode()] = np.frombuffer(data[start : start + size], dtype="<f4").reshape(shape)
    return tensors


def _entry(message: bytes) -> tuple[int, list[int], int, int]:
    """Type, shape, offset and size in bytes of a BundleEntryProto; protocol buffers leave out zeros."""
    numbers, shape = {1: 0, 4: 0, 5: 0}, []
    for number, value in _fields(message):
        if isinstance(value, int):
            numbers[number] = value
        elif number == 2:
            sizes = [dict(_fields(size)) for part, size in _fields(value) if part == 2 and isinstance(size, bytes)]
            shape = [int(size.get(1, 0)) for size in sizes]
    return numbers[1], shape, numbers[4], numbers[5]


def _table(table: bytes, name: str) -> Iterator[tuple[bytes, bytes]]:
    footer = table[-48:]
    if struct.unpack("<Q", footer[40:])[0] != TABLE_MAGIC:
        raise ModelError(f"{name}.index is not the index of a TensorFlow checkpoint.")
    _, _, place = _varints(footer, 0, 2)
    offset, size, _ = _varints(footer, place, 2)
    for _, handle in _block(table, offset, size):
        yield from _block(table, *_varints(handle, 0, 2)[:2])


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if table[offset + size]:
        raise ModelError("The checkpoint's index is compressed.")
    block = table[offset : offset + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    end, place, key = size - 4 * (restarts + 1), 0, b""
    while place < end:
        shared, own, length, place = _varints(block, place, 3)
        key = key[:shared] + block[place : place + own]
        place += own
        yield key, block[place : place + length]
        place += length


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protocol buffer message."""
    place = 0
    while place < len(message):
        tag, place = _varints(message, place, 1)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, place = _varints(message, place, 1)
            yield number, value
        else:
            length = {1: 8, 5: 4}.get(wire)
            if length is None:
                length, place = _varints(message, place, 1)
            yield number, message[place : place + length]
            place += length


def _varints(data: bytes, place: int, count: int) -> list[int]:
    """`count` base-128 numbers from `place` on, and the place behind them."""
    found = []
    for _ in range(count):
        value = shift = 0
        while data[place] & 0x80:
            value |= (data[place] & 0x7F) << shift
            shift, place = shift + 7, place + 1
        found.append(value | data[place] << shift)
        place += 1
    return [*found, place]
