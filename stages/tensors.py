"""Weights files: one strict reader of safetensors and torch checkpoints, and one strict loader.

A checkpoint is a pickle. torch's `weights_only` runs none of its code, but a small pickle can still fill the memory. So
its operations are checked first: only those that `torch.save` writes for tensors and plain numbers are allowed.
"""

import pickle
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.errors import ModelError

Tensors = dict[str, Tensor]
USUAL = "Give a file as its authors published it, or a .safetensors of its tensors."
TABLES = ("state_dict", "generator", "model")  # where published checkpoints keep their tensors
MOST_OPERATIONS = 300_000  # of a pickle; a tensor takes about 40
MOST_PICKLE_BYTES = 64 * 2**20
MOST_SHARED = 4  # times a file's size that its tensors may have together: some are stored once and named twice
LISTED = 5  # differences that an error spells out
_ZIP, _LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch's two formats begin
_LEGACY_PICKLES = 4  # after that magic number: protocol, system, content, storages' keys
# Plain numbers that CLAP's and Lightning's files keep beside their tensors: losses, dates, learning rates.
_NUMBERS: list[Any] = [np.dtype, *{type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8", "b1")}]
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
_GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|torch(\.storage)? \w+Storage"
    r"|torch (Size|device|bfloat16|float\d+|u?int\d+|bool)|numpy dtype|numpy\._?core\.multiarray scalar|_codecs encode"
)
_VALUES = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
           "SHORT_BINSTRING"}  # fmt: skip
_MARK = object()
_DAMAGE = (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, OverflowError,
           StopIteration, struct.error, zipfile.BadZipFile, pickle.UnpicklingError)  # fmt: skip


def read_tensors(path: Path, remedy: str = USUAL) -> Tensors:
    """The tensors by name of a .safetensors or torch file, its `state_dict`, `generator` or `model` where it has one.

    Raises ModelError, with `remedy`, for any other file, one that would have to be unpickled, and one that claims to
    hold more than its size allows.
    """
    found = load_file(path, remedy)
    for key in TABLES:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(_is_plain(value) for value in found.values()):
        raise ModelError(f"{path} does not hold a table of tensors.", remedy)
    if sum(tensor.nbytes for tensor in found.values()) > MOST_SHARED * path.stat().st_size:
        raise ModelError(f"{path} stands for more tensors than it holds.", remedy)
    strange = [name for name in found if not isinstance(name, str)]
    if strange:
        raise ModelError(f"{path} has a tensor with the key {strange[0]!r:.50}, which is no name.", remedy)
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def load_file(path: Path, remedy: str = USUAL) -> Any:
    """What a .safetensors or torch file holds: tensors, numbers and tables of them. Raises as `read_tensors`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file as load_safetensors

    if not path.is_file():
        raise ModelError(f"{path} is no file." if path.exists() else f"There is no {path}.", remedy)
    try:
        with path.open("rb") as file:
            start = file.read(len(_LEGACY))
        if path.suffix != ".safetensors" and (start.startswith(_ZIP) or start == _LEGACY):
            return _load_checkpoint(path, mapped=start != _LEGACY)
        return load_safetensors(path)
    except (*_DAMAGE, SafetensorError) as error:
        raise ModelError(f"{path} is no checkpoint of tensors: {_first_line(error)}", remedy) from error


def fit(network: nn.Module, tensors: Tensors, source: object, remedy: str = USUAL, assign: bool = False) -> None:
    """Load `tensors` into `network`: names, shapes and kinds of numbers must be its own, all of them.

    They become of the network's precision. With `assign` they take the place of its own, as `torch.device("meta")`
    needs it. Raises ModelError.
    """
    wanted = network.state_dict()
    problems = [problem for name, mine in wanted.items() if (problem := misfit(name, tensors.get(name), mine))]
    problems += [f"{name} has no place" for name in tensors.keys() - wanted.keys()]
    if problems:
        more = "; ..." if len(problems) > LISTED else ""
        raise ModelError(
            f"{source} cannot be loaded as {type(network).__name__}, {len(problems)} tensors differ: "
            f"{'; '.join(sorted(problems)[:LISTED])}{more}.",
            remedy,
        )
    state = {name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()}
    network.load_state_dict(state, strict=True, assign=assign)


def misfit(name: str, found: Tensor | None, wanted: Tensor) -> str | None:
    """What keeps a tensor from the place of `wanted`, in words; None when nothing does. (1,) is no scalar."""
    if found is None:
        return f"{name} is missing, it should be {shape_of(wanted)}"
    if found.shape != wanted.shape:
        return f"{name} is {shape_of(found)}, it should be {shape_of(wanted)}"
    if _kind(found) != _kind(wanted):
        return f"{name} holds {_kind(found)} numbers, it should hold {_kind(wanted)} ones"
    return None


def shape_of(tensor: Tensor) -> str:
    return "a scalar" if not tensor.ndim else " x ".join(str(size) for size in tensor.shape)


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "real" if tensor.is_floating_point() else "logical" if tensor.dtype == torch.bool else "whole"


def _is_plain(value: object) -> bool:
    """Whether it is a tensor in memory of its own, not one that stands for more than was stored."""
    return (
        isinstance(value, Tensor)
        and type(value) in (Tensor, nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not str(value.dtype).endswith("_x2")  # two numbers in a byte, which torch turns into no other kind
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def _load_checkpoint(path: Path, mapped: bool) -> Any:
    if mapped:
        _check_zip(path)
    else:
        _check_legacy(path)
    with torch.serialization.safe_globals([*_NUMBERS, _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar")]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _check_zip(path: Path) -> None:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed, which torch.save's files are not")
        if sum(member.file_size for member in members) > size:
            raise ValueError("it says it holds more bytes than it has")
        if len({member.filename for member in members}) < len(members):
            raise ValueError("it holds two files of one name")
        contents = [member for member in members if member.filename.endswith("data.pkl")]
        if len(contents) != 1 or contents[0].file_size > MOST_PICKLE_BYTES:
            raise ValueError("it has no data.pkl of a checkpoint's size")
        with archive.open(contents[0]) as file:
            _walk(file, size)


def _check_legacy(path: Path) -> None:
    """The format of torch before 1.6: pickles in a row, then the storages."""
    with path.open("rb") as file:
        file.seek(len(_LEGACY))
        for _ in range(_LEGACY_PICKLES):
            _walk(file, path.stat().st_size)


def _walk(file: IO[bytes], size: int) -> None:
    """Follow one pickle's operations without building its objects; a list stands for each.

    Raises UnpicklingError for what torch.save does not write, and for storages, or copies from the pickle's memo, that
    add up to more than the file's `size`.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    storages: set[str] = set()
    stored = copied = 0
    value: Any
    for count, (operation, value, _) in enumerate(pickletools.genops(file)):
        name = operation.name
        if count > MOST_OPERATIONS or copied > size or stored > size:
            raise pickle.UnpicklingError("it unpacks to more than a checkpoint of its size holds")
        if name == "GLOBAL":
            if not _GLOBALS.fullmatch(value):
                raise pickle.UnpicklingError(f"it asks for {value.replace(' ', '.')}, which is no tensor")
            stack.append(value)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name == "BINPERSID":
            _, _, key, _, elements, *_ = stack.pop()
            stored += 0 if key in storages else abs(elements)
            storages.add(key)
            stack.append([])
        elif name in ("REDUCE", "BUILD"):
            parts = stack.pop()
            copied += len(parts) + sum(len(part) for part in parts if isinstance(part, str | list))
            if name == "REDUCE":
                stack[-1] = []
        elif name in _VALUES and not (isinstance(value, int) and abs(value) >= 2**63):
            stack.append(value)
        else:
            _group(stack, name)


def _group(stack: list[Any], name: str) -> None:
    """The operations that make and fill lists, tuples and dictionaries."""
    if name == "MARK":
        stack.append(_MARK)
    elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
        stack.append([])
    elif name == "TUPLE":
        stack.append(_since_mark(stack))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        stack[-int(name[-1]) :] = [stack[-int(name[-1]) :]]
    elif name in ("APPENDS", "SETITEMS"):
        items = _since_mark(stack)
        stack[-1].extend(items)
    elif name in ("APPEND", "SETITEM"):
        items = [stack.pop() for _ in range(1 if name == "APPEND" else 2)]
        stack[-1].extend(items)
    elif name not in ("PROTO", "STOP"):
        raise pickle.UnpicklingError(f"its operation {name} is none that torch.save writes")


def _since_mark(stack: list[Any]) -> list[Any]:
    place = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
    items = stack[place + 1 :]
    del stack[place:]
    return items


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".") + "."
