"""What a collection says about its files: caption tables and sidecar files."""

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from stages import tabular
from stages.audio.suffixes import SUFFIXES
from stages.errors import DataError
from stages.tabular import SUFFIXES as TABLE_SUFFIXES
from stages.tabular import TEXT_LIMIT

FIELDS = ("caption", "title", "artist", "album", "licence")
COLUMNS = ("path", *FIELDS)
NEEDED = ("path", "caption")
TABLE_NAMES = ("manifest", "captions", "metadata", "attribution")
_DEPTH = 20  # folders of a path that are compared
Row = dict[str, str]


def find_table(folder: Path) -> Path | None:
    """The caption table that lies in a collection under one of the usual names, if there is one."""
    there = {path.name.lower(): path for path in sorted(folder.iterdir(), reverse=True)}
    names = (f"{name}{suffix}" for name in TABLE_NAMES for suffix in TABLE_SUFFIXES)
    return next((there[name] for name in names if name in there and is_file(there[name])), None)


def read_captions(path: Path, columns: Mapping[str, str], notes: list[str]) -> list[Row]:
    """Rows with `path`, `caption` and whichever other COLUMNS the table has; `columns` maps ours to the table's.

    Ours may also go by one of their `tabular.USUAL_NAMES`. What was guessed of the file is added to `notes`. Raises
    DataError naming the line of a row that cannot be used, or the columns where one is missing or more than one may
    be meant, and MissingDependencyError for Parquet without pyarrow.
    """
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(f"{path} is no caption table; write one of {', '.join(TABLE_SUFFIXES)}.")
    unknown = sorted(columns.keys() - set(COLUMNS))
    if unknown:
        raise DataError(f"--column {unknown[0]}=...: columns are {', '.join(COLUMNS)}.")
    table = tabular.read_table(path, "Name the caption table with --captions FILE.", notes)
    if not table.columns:
        table.cells()  # says why, where all lines of JSON are bad
    names = {field: _column(path, table.columns, field, columns) for field in COLUMNS}
    missing = [field for field, name in names.items() if name is None and (field in NEEDED or field in columns)]
    if missing:
        wanted = " and ".join(f"`{columns.get(field, field)}`" for field in missing)
        raise DataError(
            f"{path} has no column {wanted}; it has {', '.join(table.columns) or 'none'}.",
            f"Name the right ones with: {' '.join(f'--column {field}=NAME' for field in missing)}, "
            "or manifest.columns in params.yaml",
        )
    return [
        {field: _cell(row.get(name), field, table.where(source)) for field, name in names.items() if name is not None}
        for source, row in zip(table.rows, table.cells(), strict=True)
    ]


def _column(where: Path, there: Collection[str], field: str, mapped: Mapping[str, str]) -> str | None:
    """The name that `field` has there: the mapped one, its own, or the only usual one."""
    if field in mapped:
        return mapped[field] if mapped[field] in there else None
    found = tabular.candidates(there, field)
    if len(found) > 1:
        raise DataError(
            f"{where} has no column `{field}`, but {len(found)} that may be it: {', '.join(found)}.",
            f"Choose one: --column {field}={found[0]}, or manifest.columns in params.yaml",
        )
    return found[0] if found else None


def _cell(value: object, field: str, where: str) -> str:
    """A cell as clean text; a path as it is, since names may hold any white space."""
    text = checked(value, f"{where}: the {field}")
    return text if field == "path" else clean(text)


def clean(value: object) -> str:
    """One line of text: NFC, runs of white space (and the line breaks of quoted cells) and of control characters,
    which no prompt may hold, made one space."""
    return " ".join(re.sub("[\0-\x1f\x7f-\x9f]", " ", unicodedata.normalize("NFC", _text(value))).split())


def checked(value: object, what: str) -> str:
    """The value as text. Raises DataError, beginning with `what`, for text that cannot be written or read again."""
    text, items = _text(value), value if isinstance(value, list | tuple) else [value]
    if any(isinstance(item, dict | list) for item in items):
        problem = "is an object, not text"
    elif broken := re.search("[\0\ud800-\udfff]", text):
        problem = f"holds {'a NUL character' if broken[0] == chr(0) else 'half a character (a lone surrogate)'}"
    elif len(text) > TEXT_LIMIT:
        problem = f"has {len(text):,} characters, more than {TEXT_LIMIT:,}"
    else:
        return text
    raise DataError(f"{what} {problem}.", "Correct that text.")


def _text(value: object) -> str:
    if value is None or value != value:  # NaN is how data frames write an empty cell
        return ""
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def sidecar(path: Path, columns: Mapping[str, str]) -> Row:
    """Fields of `song.txt` (its text is the caption) or `song.json` beside `song.wav`; empty if there is none.

    Raises DataError when a sidecar is there but cannot be read.
    """
    for base in (path.with_suffix(""), path):
        text, data = base.with_name(base.name + ".txt"), base.with_name(base.name + ".json")
        if is_file(text):
            return {"caption": _cell(tabular.read_text(text), "caption", str(text))}
        if is_file(data):
            return _json_sidecar(data, columns)
    return {}


def _json_sidecar(path: Path, columns: Mapping[str, str]) -> Row:
    try:
        fields = tabular.parse_json(tabular.read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise DataError(f"{path} must hold an object with a `caption`.")
    names = {field: _column(path, fields, field, columns) for field in FIELDS}
    return {field: _cell(fields[name], field, str(path)) for field, name in names.items() if name is not None}


def is_file(path: Path) -> bool:
    """Whether there is a file that can be reached; a name that is too long, or a closed folder, is none."""
    try:
        return path.is_file()
    except OSError:
        return False


class Match(NamedTuple):
    """The collection's file that a table means, or the reason why it means none; sorted from sure to guessed."""

    rank: int  # 0 its path, 1 its name, 2 its name with another suffix, 3 none
    path: str
    reason: str = ""

    @property
    def is_named(self) -> bool:
        """Whether the file goes by that name, and not by one with another suffix."""
        return self.rank < 2


class Lookup:
    """Finds the file that a table means: by its path, else by the longest end of it that a file has."""

    def __init__(self, root: Path, table: Path, paths: list[str]) -> None:
        """`paths` of the collection's files are relative to `root`; the table's may be, or to its own folder."""
        self._folders = (root.absolute(), table.parent.absolute())
        self._exact = {unicodedata.normalize("NFC", path): path for path in paths}
        by_end: dict[str, list[str]] = {}
        for path in paths:
            for end in _ends(path):
                by_end.setdefault(end, []).append(path)
        self._by_end = by_end
        self._choose = cache(lambda end, name: _one_of(by_end[end], name))

    def match(self, rows: Iterable[Row]) -> tuple[dict[str, Row], list[tuple[str, str]]]:
        """The row of each file that has one, and (path, reason) of every row left out; sure matches go first."""
        listed: dict[str, Row] = {}
        left_out = []
        for found, row in sorted(((self.find(row["path"]), row) for row in rows), key=lambda pair: pair[0].rank):
            if found.reason:
                left_out.append((row["path"], found.reason))
            elif found.path in listed:
                left_out.append((row["path"], "is in the caption table again; the first row is used"))
            else:
                listed[found.path] = row
        return listed, left_out

    def find(self, wanted: str) -> Match:
        """`wanted` may be of another machine, a URL, in other letter case, and lack its suffix or have another."""
        if not wanted.strip():
            return Match(3, "", "a row of the caption table has no path")
        spellings = _spellings(wanted)
        for spelled, folder in product(spellings, self._folders):
            path = self._exact.get(os.path.relpath(folder / spelled, self._folders[0]))
            if path is not None:
                return Match(0, path)
        for spelled in spellings:
            end = next((end for end in _ends(spelled) if end in self._by_end), None)
            if end is not None:
                return self._choose(end, spelled.rpartition("/")[2])
        return Match(3, "", "is in the caption table, but is no audio file of the folder")


def _spellings(wanted: str) -> list[str]:
    """A path as it is, with the slashes of Windows turned, without blanks around it, and of a URL."""
    wanted = unicodedata.normalize("NFC", wanted)
    turned = wanted.replace("\\", "/")
    local = re.sub(r"[?#].*", "", turned.partition("://")[2]) if "://" in turned else turned
    return list(dict.fromkeys([wanted, turned, turned.strip(), unicodedata.normalize("NFC", unquote(local.strip()))]))


def _ends(path: str) -> Iterator[str]:
    """`a/b/c`, `b/c` and `c` of A/b/C.wav."""
    base, suffix = os.path.splitext(path)  # noqa: PTH122  (a Path would drop what Windows takes for a drive)
    bare = unicodedata.normalize("NFC", (base if suffix.lower() in SUFFIXES else path).casefold())
    parts = [part for part in bare.split("/") if part not in ("", ".")][-_DEPTH:]
    return ("/".join(parts[start:]) for start in range(len(parts)))


def _one_of(paths: list[str], name: str) -> Match:
    """The only one of paths that is called `name`, letters' case aside where that is unique, or is called so but
    for its suffix."""
    names = [unicodedata.normalize("NFC", path.rpartition("/")[2]) for path in paths]
    equal = [path for path, own in zip(paths, names, strict=True) if own == name]
    alike = equal or [path for path, own in zip(paths, names, strict=True) if own.casefold() == name.casefold()]
    found = alike or paths
    if len(found) == 1:
        return Match(1 if alike else 2, found[0])
    count = "two" if len(found) == 2 else len(found)
    return Match(3, "", f"is in the caption table, but {count} files are called {name}: {found[0]}, {found[1]}"
                        f"{', ...' if len(found) > 2 else ''}")  # fmt: skip
