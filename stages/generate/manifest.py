"""manifest.jsonl: a row for each clip, with all that decides its sound, and what came of it.

Knows no network, so that a run whose clips are all there ends before one is loaded.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from stages.audio.suffixes import SUFFIXES, WRITABLE
from stages.errors import DataError, UsageError
from stages.generate.prompts import Prompt
from stages.generate.settings import WHOLE, Settings
from stages.store import disk_errors, read_jsonl, write_jsonl

MANIFEST = "manifest.jsonl"
LOCK = ".manifest.lock"
AGAIN = "Remove that file, and make the clips again: musicldm generate"
FORMATS = tuple(suffix.removeprefix(".") for suffix in WRITABLE)
STDOUT = Path("-")
OUTCOME = frozenset({"clap_score", "candidate", "gain", "seconds_taken", "nearest", "nearest_start_seconds",
                     "similarity", "too_close"})  # fmt: skip


@dataclass(frozen=True)
class Target:
    """Where clips go: a folder, one file in it, or stdout."""

    folder: Path
    suffix: str
    name: str | None = None
    stdout: bool = False

    def named(self, prompts: list[Prompt]) -> list[Prompt]:
        """The prompts, the one of a file called after it."""
        return prompts if self.name is None else [replace(prompts[0], id=self.name)]


def choose_target(out: Path | None, suffix: str | None, typed: bool, takes: int, usual: Path) -> Target:
    """What `--out` and `--format` say together; without either, wav files in `usual`. Raises UsageError."""
    if out == STDOUT:
        if suffix not in (None, "wav", "raw"):
            raise UsageError(f"--format {suffix} cannot be streamed.", "To stdout go wav (the default) and raw.")
        return Target(Path(), suffix or "wav", stdout=True)
    if suffix == "raw":
        raise UsageError("--format raw goes to stdout only.", "Add: --out -")
    if out is None or os.path.isdir(out) or out.suffix.lower() not in SUFFIXES:  # noqa: PTH112
        return Target(out or usual, suffix or "wav")
    kind = out.suffix.lower().removeprefix(".")
    if out.suffix.lower() not in WRITABLE:
        raise UsageError(f"--out {out}: {kind} is read, but not written.", f"Written are: {', '.join(WRITABLE)}")
    if not typed:
        raise UsageError(f"--out {out} names one file; a file of prompts needs a folder.")
    if suffix not in (None, kind):
        raise UsageError(f"--out {out} and --format {suffix} contradict each other.")
    if takes > 1:
        raise UsageError(f"--out {out} names one file; --takes {takes} needs a folder.")
    return Target(out.parent, kind, out.stem)


@dataclass(frozen=True)
class Plan:
    """A folder's rows by id, the identity of every wanted clip by id, and the prompts whose clips are not there."""

    rows: dict[str, dict[str, Any]]
    wanted: dict[str, dict[str, Any]]
    todo: list[Prompt]


def plan_clips(
    prompts: Sequence[Prompt], settings: Settings, out: Path, suffix: str, plot: bool, model_digest: str,
    also: dict[str, Any],
) -> Plan:  # fmt: skip
    """What is to be made. `also` is what else decides the clips: an edit's or a gate's identity.

    A clip is there when its row has the same settings and model digest and its files exist. Raises UsageError
    for an unknown format, DataError when the folder's rows are malformed.
    """
    if suffix not in FORMATS:
        raise UsageError(f"--format {suffix} is none of {', '.join(FORMATS)}.")
    rows = _rows(out)
    wanted = {prompt.id: clip_identity(prompt, settings, suffix, model_digest) | also for prompt in prompts}
    todo = [prompt for prompt in prompts if not _done(rows.get(prompt.id), wanted[prompt.id], out, plot)]
    return Plan(rows, wanted, todo)


def gate_identity(digest: str, most: float | None, tries: int) -> dict[str, Any]:
    """What of a gate decides which clips come out, for the manifest."""
    return {"index": digest} if most is None else {"index": digest, "max_similarity": most, "tries": tries}


@contextmanager
def output_folder(out: Path) -> Iterator[None]:
    """Make `out` before work that takes long; where that fails, what is new of it and empty is removed again.

    Raises DataError when it cannot be made.
    """
    try:
        with disk_errors(out):
            new = [folder for folder in (out, *out.parents) if not folder.exists()]
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a name too long, a folder where none can be
        raise DataError(f"{out} cannot be written: {error.strerror}.", "Choose a folder you may write to.") from error
    try:
        yield
    except BaseException:
        for folder in new:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise


@contextmanager
def shared_rows(out: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """A folder's rows by id, which no other run can change meanwhile; they are written, atomically, at the end.

    Clips are to be written inside, so that of two runs with the same id file and row are of one. Raises DataError.
    """
    lock = out / LOCK
    with disk_errors(out), FileLock(lock):
        try:
            rows = _rows(out)
            yield rows
            write_jsonl(out / MANIFEST, list(rows.values()))
        finally:
            lock.unlink()  # who waits for it finds that it has no name any more, and makes another


def _rows(out: Path) -> dict[str, dict[str, Any]]:
    there = os.path.exists(out / MANIFEST)  # noqa: PTH110  (Path's raises for a name too long)
    return {row["id"]: row for row in read_manifest(out)} if there else {}


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """The rows of a generated folder. Raises DataError when it has none or they are malformed."""
    rows = read_jsonl(folder / MANIFEST, AGAIN)
    for number, row in enumerate(rows, start=1):
        wrong = next((key for key in ("id", "file", "prompt") if not isinstance(row.get(key), str)), None)
        if wrong is not None:
            raise DataError(f"{folder / MANIFEST}, row {number} has no text as `{wrong}`.", AGAIN)
    return rows


def clip_identity(prompt: Prompt, settings: Settings, suffix: str, model_digest: str) -> dict[str, Any]:
    """What of prompt, settings and model decides a clip, as its row begins."""
    row: dict[str, Any] = {
        "id": prompt.id, "file": f"{prompt.id}.{suffix}", "prompt": prompt.prompt, "negative": prompt.negative,
        "seed": prompt.seed, "sampler": settings.sampler, "steps": settings.steps, "guidance": prompt.guidance,
        "eta": settings.eta, "seconds": prompt.seconds, "candidates": settings.candidates,
        "model_digest": model_digest,
    }  # fmt: skip
    if settings.interval != WHOLE:
        row["guidance_interval"] = list(settings.interval)
    if settings.avoid:
        row["avoid_copies"] = settings.avoid
    if settings.reuse != 1:
        row["reuse"] = settings.reuse
    return row


def _done(row: dict[str, Any] | None, wanted: dict[str, Any], out: Path, plot: bool) -> bool:
    if row is None or {key: value for key, value in row.items() if key not in OUTCOME} != wanted:
        return False
    audio = out / wanted["file"]
    return audio.exists() and (not plot or audio.with_suffix(".png").exists())
