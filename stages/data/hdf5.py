"""HDF5 restricted to plain datasets stored in the file itself: no links, filters or external data."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import h5py
import numpy as np
from numpy.typing import DTypeLike

from stages.store import CheckedFile

HDF5_VERSION = ("v110", "v110")  # from 1.10 on, HDF5 keeps checksums of its metadata too
KEPT_OPEN = 4096  # datasets of a process: the first read of one takes three times as long as the next
Value = TypeVar("Value", str, int, float)
Handle = TypeVar("Handle")


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file to write; what the disk refused is raised as OSError at the end, where HDF5 would crash."""
    with CheckedFile(path, "w+") as disk:
        with h5py.File(disk, "w", libver=HDF5_VERSION) as file:
            yield file
        disk.check()


def member(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset:
    """What lies at `path` in the file itself. Raises KeyError where nothing does, OSError for a link elsewhere."""
    place = group
    for name in path.split("/"):
        link = place.get(name, getlink=True)
        if link is None:
            raise KeyError(f"{path} is missing")
        if not isinstance(link, h5py.HardLink):
            raise OSError(f"{path} is a link to another place")
        place = place[name]
    return place


def dataset(group: h5py.Group, path: str, dtype: DTypeLike, shape: tuple[int | None, ...]) -> h5py.Dataset:
    """The dataset at `path`, of this type and shape (None: any length).

    Raises OSError unless it is plain: stored whole in this file, in one piece or in chunks no larger than itself, with
    no filter but the checksum. Else it could be read from other files, or be larger than the memory.
    """
    found = member(group, path)
    if not isinstance(found, h5py.Dataset) or found.dtype != np.dtype(dtype):
        raise OSError(f"{path} is no dataset of {np.dtype(dtype)}")
    if found.ndim != len(shape) or any(want not in (None, has) for want, has in zip(shape, found.shape, strict=True)):
        raise OSError(f"{path} has the shape {found.shape}, not {shape}")
    if found.is_virtual or found.external:
        raise OSError(f"{path} lies in other files")
    made = found.id.get_create_plist()
    filters = {made.get_filter(number)[0] for number in range(made.get_nfilters())}
    if filters - {h5py.h5z.FILTER_FLETCHER32}:
        raise OSError(f"{path} has a filter that is not the checksum")
    if any(part > whole for part, whole in zip(found.chunks or (), found.shape, strict=False)):
        raise OSError(f"{path} has chunks larger than itself")
    if found.id.get_storage_size() < found.size * found.dtype.itemsize:
        raise OSError(f"{path} is larger than what is stored of it")
    return found


def attribute(group: h5py.Group, name: str, kind: type[Value]) -> Value:
    """One value of a group or file. Raises KeyError when there is none, OSError when it is of another type."""
    value = group.attrs[name]
    plain = value.item() if isinstance(value, np.generic) else value
    if kind is float and isinstance(plain, int):
        plain = float(plain)
    if not isinstance(plain, kind):
        raise OSError(f"its {name} is {plain!r:.50}")
    return plain


def open_keyed(path: Path, key: str) -> h5py.File:
    """A file to read, without a cache of chunks; open as long as a dataset of it is. Raises OSError for another key."""
    file = h5py.File(path, "r", locking=False, rdcc_nbytes=0)
    if attribute(file, "key", str) != key:
        raise OSError("it holds other data than the index says")
    return file


class OpenHandles(Generic[Handle]):
    """Files or datasets that stay open, by name: the latest KEPT_OPEN of them, each opened once per process.

    Pickled it is empty, and so it is after a fork, since a handle taken over shares its parent's state.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Handle] = {}
        self._process = os.getpid()

    def __reduce__(self) -> Any:
        return type(self), ()

    def get(self, name: str, opened: Callable[[], Handle]) -> Handle:
        """The handle of this name; `opened` makes it."""
        if self._process != os.getpid():
            self._kept, self._process = {}, os.getpid()
        found = self._kept.pop(name, None)
        self._kept[name] = found = opened() if found is None else found
        if len(self._kept) > KEPT_OPEN:
            del self._kept[next(iter(self._kept))]  # the one not asked for the longest
        return found
