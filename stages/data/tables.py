"""What a collection says about its files: caption tables and sidecar files."""

import csv
import io
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from stages.errors import DataError, MissingDependencyError

FIELDS = ("caption", "title", "artist", "album", "licence")
NEEDED = ("path", "caption")
TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
TABLE_NAMES = ("manifest", "captions", "metadata", "attribution")
Row = dict[str, str]


def find_table(folder: Path) -> Path | None:
    """The caption table that lies in a collection under one of the usual names, if there is one."""
    names = (folder / f"{name}{suffix}" for name in TABLE_NAMES for suffix in TABLE_SUFFIXES)
    return next((path for path in names if path.is_file()), None)


def read_table(path: Path, columns: Mapping[str, str]) -> list[Row]:
    """Rows with `path`, `caption` and whichever other FIELDS the table has; `columns` maps ours to the table's.

    Raises DataError naming the line of a malformed row, or the columns found where one is missing, and
    MissingDependencyError for Parquet without pyarrow.
    """
    unknown = sorted(columns.keys() - {*NEEDED, *FIELDS})
    if unknown:
        raise DataError(f"--column {unknown[0]}=...: columns are {', '.join(dict.fromkeys([*NEEDED, *FIELDS]))}.")
    names = {field: columns.get(field, field) for field in dict.fromkeys([*NEEDED, *FIELDS])}
    raw = _raw_rows(path)
    found = list(dict.fromkeys(key for row in raw for key in row))
    missing = [field for field in names if names[field] not in found and (field in NEEDED or field in columns)]
    if missing:
        wanted = " and ".join(f"`{names[field]}`" for field in missing)
        raise DataError(
            f"{path} has no column {wanted}; it has {', '.join(found) or 'none'}.",
            f"Name the right ones with: {' '.join(f'--column {field}=NAME' for field in missing)}",
        )
    rows = [{field: clean(row.get(name)) for field, name in names.items()} for row in raw]
    for row, source in zip(rows, raw, strict=True):
        row["path"] = str(source.get(names["path"]) or "")  # as it is: names may hold any white space
    return rows


def clean(value: object) -> str:
    """One line of text: NFC, runs of white space (and the line breaks of quoted cells) made one space."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        value = ", ".join(str(item) for item in value)
    return " ".join(unicodedata.normalize("NFC", str(value)).replace("\0", " ").split())


def sidecar(path: Path, columns: Mapping[str, str]) -> Row:
    """Fields of `song.txt` (its text is the caption) or `song.json` beside `song.wav`; empty if there is none.

    Raises DataError when a sidecar is there but cannot be read.
    """
    for base in (path.with_suffix(""), path):
        text, data = base.with_name(base.name + ".txt"), base.with_name(base.name + ".json")
        if is_file(text):
            return {"caption": clean(_text(text))}
        if is_file(data):
            fields = _json(data, _text(data))
            if not isinstance(fields, dict):
                raise DataError(f"{data} must hold an object with a `caption`.")
            return {field: clean(fields.get(columns.get(field, field))) for field in FIELDS}
    return {}


def is_file(path: Path) -> bool:
    """Whether there is a file that can be reached; a name that is too long, or a closed folder, is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _raw_rows(path: Path) -> list[dict[str, Any]]:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"There is no caption file {path}.")
    if suffix == ".parquet":
        return _parquet(path)
    if suffix in (".csv", ".tsv"):
        return list(_separated(path, "," if suffix == ".csv" else "\t"))
    if suffix == ".jsonl":
        lines = enumerate(_text(path).split("\n"), start=1)
        rows = [_json(path, line, f", line {number}") for number, line in lines if line.strip()]
    elif suffix == ".json":
        rows = _json_rows(_json(path, _text(path)))
    else:
        raise DataError(f"{path} is no caption table; write one of {', '.join(TABLE_SUFFIXES)}.")
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} must hold objects with `path` and `caption`.")
    return rows


def _json_rows(data: Any) -> list[Any]:
    """A list of objects, or an object from path to caption or to an object."""
    if isinstance(data, dict):
        return [{"path": key, **(value if isinstance(value, dict) else {"caption": value})}
                for key, value in data.items()]  # fmt: skip
    return data if isinstance(data, list) else [data]


def _separated(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 24)
    text = _text(path)
    header_line = text.partition("\n")[0]
    if delimiter == "," and "," not in header_line and ";" in header_line:
        delimiter = ";"  # as spreadsheets write where the comma divides decimals
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            if len(row) > len(header):
                raise DataError(
                    f"{path}, line {reader.line_num} has {len(row)} cells under {len(header)} columns.",
                    'Put cells that hold a comma in quotes: "slow, sad piano".',
                )
            if row:
                yield dict(zip(header, row, strict=False))
        if reader.line_num <= 1:
            yield dict.fromkeys(header, "")  # so that a wrong header is told even without rows
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is malformed: {error}.") from error


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise MissingDependencyError(f"Reading {path} needs the package pyarrow.", "pip install pyarrow") from None
    try:
        return list(parquet.read_table(path).to_pylist())
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def _text(path: Path) -> str:
    """UTF-8 with or without a byte-order mark, or UTF-16 with one (as spreadsheets write)."""
    try:
        data = path.read_bytes()
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return data.decode(encoding)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}).", "Save it again as UTF-8.") from error


def _json(path: Path, text: str, where: str = "") -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}{where} is not JSON: {error}.") from error


class Lookup:
    """Finds the collection's file that a table means: by its path, else by a name or stem that is unique."""

    def __init__(self, root: Path, table: Path, paths: list[str]) -> None:
        """`paths` of the collection's files are relative to `root`; the table's may be, or to its own folder."""
        self._folders = (root.absolute(), table.parent.absolute())
        self._exact = {unicodedata.normalize("NFC", path): path for path in paths}
        self._loose: dict[str, list[str]] = {}
        for path in paths:
            name = PurePosixPath(unicodedata.normalize("NFC", path))
            for key in {name.name, name.stem}:
                self._loose.setdefault(key, []).append(path)

    def find(self, wanted: str) -> str | None:
        """The file's path as the collection spells it, or None where there is none or more than one."""
        wanted = unicodedata.normalize("NFC", wanted)
        for spelled in (wanted, wanted.replace("\\", "/")):
            for folder in self._folders:
                path = os.path.relpath(folder / spelled, self._folders[0])
                if path in self._exact:
                    return self._exact[path]
        loose = self._loose.get(PurePosixPath(wanted.replace("\\", "/")).name, [])
        return loose[0] if len(loose) == 1 else None
