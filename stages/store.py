"""Files that are whole or not there: atomic writes, checksums, and trained-model folders."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from stages.errors import DataError, DiskFullError, ModelError
from stages.params import Params

CARD = "musicldm.json"
CARD_SCHEMA = 1
SEALED = ("schema", "kind", "musicldm", "files")  # what model_folder itself writes into a card
LOCK = "lock"  # in a temporary folder, held by its writer
MOST_CONFIG_BYTES = 4_000_000  # of a model's JSON files; parsed, it takes some ten times as much
MORE_SPACE = "Free space or choose another --work folder, then run the same command again; it goes on."


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk under `path` into a DataError that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"{path} does not fit its disk, which is full ({_free(path) / 1e6:.1f} MB left).", MORE_SPACE
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise DataError(
                f"{path} cannot be written: {error.strerror}.", "Choose a folder you may write to."
            ) from error
        raise


def require_space(path: Path, needed: float) -> None:
    """Raise DiskFullError when fewer than `needed` bytes are free on the disk that `path` is or will be on."""
    free = _free(path)
    if free < needed:
        raise DiskFullError(
            f"{path} needs about {needed / 1e6:.1f} MB, and its disk has {free / 1e6:.1f} MB left.", MORE_SPACE
        )


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder`, by a lock file beside it that the system frees when a process dies.

    Beside and not in it, where it would be part of the result. Raises DataError while another run holds it.
    Temporary files in `folder` are then of processes that died and are removed: before the work those of earlier
    runs, whose space it may need, and after it those of this run's workers, which would be part of the result.
    """
    folder = folder.absolute()  # "." has no name
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(
            f"Another process is at work in {folder}.", "Wait for it to end, or choose another folder."
        ) from None
    try:
        _remove_leftovers(folder)
        yield
        _remove_leftovers(folder)
    finally:
        lock.release()


def _remove_leftovers(folder: Path) -> None:
    for leftover in [path for path in folder.rglob(".*-*") if path.name.startswith((".tmp-", ".old-"))]:
        if leftover.is_dir():
            for kept in leftover.iterdir() if leftover.name.startswith(".old-") else ():
                _put_back(kept, leftover.with_name(kept.name))
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)  # it may have been in such a folder


class CheckedFile(io.FileIO):
    """A file for libraries that lose an error of the disk (libsndfile) or crash at it (HDF5).

    It seems to take every write; `check` raises the OSError of the first that failed.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view, done = memoryview(data).cast("B"), 0
        try:
            while done < len(view):
                done += super().write(view[done:])
        except OSError as error:
            self.error = self.error or error
        return len(view)

    def check(self) -> None:
        if self.error is not None:
            raise self.error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`, else removed.

    The temporary name keeps the suffix, since encoders choose the format by it.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            _fsync(temporary)
            temporary.replace(path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, else it is removed.

    Between two renames what was at `path` lies in `.old-*` beside it, where `restore` finds it should this process die.
    """
    with disk_errors(path), scratch_folder(path) as scratch:
        temporary = scratch / path.name
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            _fsync(file)
        old = scratch.with_name(scratch.name.replace(".tmp-", ".old-", 1))
        try:
            if path.exists():
                old.mkdir()
                path.replace(old / path.name)
            temporary.replace(path)
            _fsync(path.parent)
        finally:
            _put_back(old / path.name, path)
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, removed at the end; first those that dead processes left there are.

    Its lock, which the system frees when a process dies, tells others that it is in use.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    restore(path)
    for leftover in _beside(path, "tmp"):
        with _abandoned(leftover) as dead:
            if dead:
                shutil.rmtree(leftover, ignore_errors=True)
    folder, lock = _new_scratch(path)
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def _new_scratch(path: Path) -> tuple[Path, FileLock]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".tmp-{path.name}-", dir=path.parent))
        lock = FileLock(folder / LOCK, timeout=0)
        with suppress(Timeout, FileNotFoundError):  # another process took it for abandoned before it was locked
            lock.acquire()
            return folder, lock


def restore(path: Path) -> bool:
    """Put back what a writer of `path` moved away and, killed between its two renames, did not replace; what it
    replaced is removed. Returns whether there is something at `path` now."""
    for old in _beside(path, "old"):
        with _abandoned(old.with_name(old.name.replace(".old-", ".tmp-", 1))) as dead:
            if dead:
                _put_back(old / path.name, path)
                shutil.rmtree(old, ignore_errors=True)
    return path.exists()


def _beside(path: Path, kind: str) -> list[Path]:
    name = re.compile(rf"\.{kind}-{re.escape(path.name)}-[a-z0-9_]+")
    return [file for file in path.parent.glob(f".{kind}-*") if name.fullmatch(file.name)]


@contextmanager
def _abandoned(scratch: Path) -> Iterator[bool]:
    """Whether no process is at work in a scratch folder, which none can begin to be meanwhile."""
    lock = FileLock(scratch / LOCK, timeout=0)
    try:
        if scratch.exists():
            lock.acquire()
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _put_back(old: Path, path: Path) -> None:
    if old.exists() and not path.exists():
        old.replace(path)


def refuse_existing(path: Path) -> None:
    """Raise DataError when there is something at `path`, for commands that never replace what they find."""
    if restore(path) and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path} is there already.", "Choose another folder, or remove it.")


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write strict JSON (no NaN), sorted by nothing: keys keep the order that a reader wants."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(path: Path, remedy: str, most_bytes: int | None = None) -> str:
    """A text file, with or without a byte order mark. Raises DataError, with `remedy`, when it cannot be read."""
    try:
        if not path.exists():
            restore(path.parent)
        if most_bytes is not None and path.stat().st_size > most_bytes:
            raise DataError(f"{path} has more than {most_bytes // 10**6} MB, which no such file has.", remedy)
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"There is no {path}.", remedy) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.", remedy) from error


def read_json(path: Path, remedy: str, most_bytes: int | None = None) -> Any:
    """Parse a JSON file of ours. Raises DataError, with `remedy`, when it is missing or malformed."""
    try:
        return json.loads(read_text(path, remedy, most_bytes))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}.", remedy) from error


def read_config(path: Path, remedy: str) -> dict[str, Any]:
    """One of the small JSON files of a model, an object. Raises ModelError, with `remedy`."""
    try:
        found = read_json(path, remedy, MOST_CONFIG_BYTES)
    except DataError as error:
        raise ModelError(error.message, remedy) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} cannot be read: it holds a {type(found).__name__}, not an object.", remedy)
    return found


def read_jsonl(path: Path, remedy: str) -> list[dict[str, Any]]:
    """Parse a JSON-lines file of ours, objects all. Raises DataError naming the first bad line."""
    rows = []
    for number, line in enumerate(read_text(path, remedy).removesuffix("\n").split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line else []
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}.", remedy) from error
        if rows and not isinstance(rows[-1], dict):
            raise DataError(f"{path}, line {number} is no JSON object.", remedy)
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in flat memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def model_folder(path: Path, kind: str, card: dict[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder to save a model in; then seal it with `musicldm.json` and move it into place.

    The seal holds `kind`, the caller's `card` (preset, digests, steps, data), versions, and every file's
    size and SHA-256.
    """
    with atomic_folder(path) as temporary:
        yield temporary
        files = {
            str(file.relative_to(temporary)): {"bytes": file.stat().st_size, "sha256": sha256(file)}
            for file in sorted(temporary.rglob("*"))
            if file.is_file()
        }
        seal = {"schema": CARD_SCHEMA, "kind": kind, "musicldm": version("musicldm"), **card, "files": files}
        (temporary / CARD).write_text(json.dumps(seal, indent=2) + "\n", encoding="utf-8")


def card_facts(card: dict[str, Any]) -> dict[str, Any]:
    """What a card says of its model, for the card of a copy: all but what `model_folder` writes itself."""
    return {key: value for key, value in card.items() if key not in SEALED}


def _inside(name: str) -> str:
    """The path of a file in its folder, and of none outside it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError("it is not inside the folder")
    return name


class _File(BaseModel):
    """A file as a seal lists it."""

    model_config = ConfigDict(strict=True)
    bytes: Annotated[int, Field(ge=0)]
    sha256: str


class _FewStepsParams(BaseModel):
    model_config = ConfigDict(strict=True)
    steps: Annotated[int, Field(gt=0)]


class _FewSteps(BaseModel):
    """What a pipeline's card says of its few-step weights, as far as it is read before they are."""

    model_config = ConfigDict(strict=True)
    params: _FewStepsParams


class _Seal(BaseModel):
    """What every card has, and the types of what some have."""

    model_config = ConfigDict(strict=True)
    kind: str
    musicldm: str | None = None
    preset: str | None = None
    params: dict[str, Any] | None = None
    few_steps: _FewSteps | None = None
    files: dict[Annotated[str, AfterValidator(_inside)], _File]


def model_card(path: Path, kind: str | None = None) -> dict[str, Any]:
    """The seal of a model folder. Raises ModelError when there is none, it is malformed, or of another kind or
    schema."""
    train = f"Make it with: musicldm train {kind or 'ldm'}"
    if not (path / CARD).exists() and not (restore(path) and (path / CARD).exists()):
        raise ModelError(f"{path} is not a model folder of musicldm (no {CARD}).", train)
    card = read_config(path / CARD, train)
    if card.get("schema") != CARD_SCHEMA:
        raise ModelError(
            f"{path} has schema {card.get('schema')}; this version reads {CARD_SCHEMA}.", "Update musicldm."
        )
    try:
        _Seal.model_validate(card)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ModelError(f"{path / CARD} is malformed at {where}: {problem['msg']}.", train) from error
    if kind is not None and card["kind"] != kind:
        raise ModelError(f"{path} holds a {card['kind']} model, not a {kind} model.", train)
    return card


def model_params(path: Path, kind: str | None = None) -> Params:
    """The parameters that a model folder was made with. Raises ModelError as `model_card`, and for unknown ones."""
    card = model_card(path, kind)
    try:
        return Params.model_validate(card.get("params"))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "all of them"
        raise ModelError(
            f"{path} was made by musicldm {card.get('musicldm')} with parameters that this version does not read "
            f"({where}).", "Update musicldm."
        ) from error  # fmt: skip


def verify_model(path: Path) -> list[str]:
    """What differs between a model folder and its seal, one sentence a file; empty when all is well."""
    sealed = model_card(path)["files"]
    found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {CARD}
    problems = [f"{name} is missing" for name in sorted(sealed.keys() - found)]
    problems += [f"{name} is not part of the model" for name in sorted(found - sealed.keys())]
    problems += [
        f"{name} was altered" for name in sorted(sealed.keys() & found) if sha256(path / name) != sealed[name]["sha256"]
    ]
    return problems


def model_digest(path: Path, parts: tuple[str, ...] = ()) -> str:
    """Twelve hex digits that name a model folder's weights and configs (from its seal), or those of some `parts`
    of it, folders in it: copies of a part have one name, whatever lies beside them."""
    files = model_card(path)["files"]
    chosen = {name: seal for name, seal in files.items() if not parts or Path(name).parts[0] in parts}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def _free(path: Path) -> int:
    """Bytes free on the disk of `path`, or of what there is of it."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
