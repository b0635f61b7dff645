"""Embeddings already computed, in one SQLite file: by the window's samples, the network and the preprocessing.

A batch is stored when it is done, so that an interrupted evaluation goes on where it stopped; a file whose
audio changed, or another network or preprocessing, has another key and is never mistaken for this one.
"""

import hashlib
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.errors import DataError
from stages.store import disk_errors

SCHEMA = 1
BUSY_SECONDS = 60.0  # another evaluation may be writing
_TABLE = (
    "CREATE TABLE IF NOT EXISTS embeddings "
    "(key BLOB PRIMARY KEY, patches INTEGER, vectors BLOB, logits BLOB) WITHOUT ROWID"
)


@dataclass(frozen=True)
class Entry:
    """One window's vectors (P, D) float32, and tag logits (K,) float64 or None."""

    vectors: NDArray[np.float32]
    logits: NDArray[np.float64] | None


def key(samples: NDArray[np.float32], backbone: str, preprocessing: str) -> bytes:
    """32 bytes that name the embedding of these samples."""
    digest = hashlib.sha256(f"{SCHEMA}\n{backbone}\n{preprocessing}\n".encode())
    digest.update(np.ascontiguousarray(samples).tobytes())
    return digest.digest()


class EmbeddingCache:
    """A dictionary on disk. Raises DataError when the file is no cache of ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(self._open()) as database, database:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute(_TABLE)
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{path} is no cache of embeddings: {error}.", "Delete it; it is only made to save time."
            ) from error

    def find(self, keys: Sequence[bytes]) -> list[Entry | None]:
        with closing(self._open()) as database:
            return [self._entry(database, wanted) for wanted in keys]

    def add(self, keys: Sequence[bytes], entries: Sequence[Entry]) -> None:
        rows = [
            (k, len(e.vectors), e.vectors.tobytes(), None if e.logits is None else e.logits.tobytes())
            for k, e in zip(keys, entries, strict=True)
        ]
        with disk_errors(self.path), closing(self._open()) as database, database:
            database.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?)", rows)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=BUSY_SECONDS)

    @staticmethod
    def _entry(database: sqlite3.Connection, wanted: bytes) -> Entry | None:
        row = database.execute("SELECT patches, vectors, logits FROM embeddings WHERE key = ?", (wanted,)).fetchone()
        if row is None:
            return None
        vectors = np.frombuffer(row[1], np.float32).reshape(row[0], -1)
        return Entry(vectors, None if row[2] is None else np.frombuffer(row[2], np.float64))
