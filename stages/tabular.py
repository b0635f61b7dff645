"""Users' tables (CSV and TSV as spreadsheets write them, JSON, JSON lines, Parquet), and our own CSV.

What has one meaning is read; what has none, or two, is refused with its line.
"""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from stages.errors import DataError, MissingDependencyError

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
TEXT_LIMIT = 100_000  # characters of a caption or prompt; csv readers refuse a cell of 131,073
USUAL_NAMES = {  # of columns, without blanks, dashes, underscores and capitals
    "path": {"path", "file", "filename", "filepath", "audio", "audiofile", "audiopath", "location", "wav"},
    "caption": {"caption", "captions", "description", "prompt", "text"},
    "title": {"title", "trackname", "tracktitle"},
    "artist": {"artist", "artistname", "performer"},
    "album": {"album", "albumname", "albumtitle"},
    "licence": {"licence", "license"},
    "prompt": {"prompt", "prompts", "caption", "description", "text"},
}
_CELL_LIMIT = 1 << 24  # characters; columns that nobody asks for may hold whole books
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SAVE_AS_UTF8 = "Save it again as UTF-8 (spreadsheets call it CSV UTF-8)."


@dataclass(frozen=True)
class Row:
    """One row: its cells by column, or the problem why it has none."""

    line: int  # where it begins, from 1; its number in JSON and Parquet, which have no lines
    cells: dict[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class Table:
    """The rows of a file that are not empty."""

    path: Path
    columns: list[str]
    rows: list[Row]

    def where(self, row: Row) -> str:
        return f"{self.path}, {'line' if self.path.suffix.lower() not in ('.json', '.parquet') else 'row'} {row.line}"

    def cells(self) -> list[dict[str, Any]]:
        """The cells of all rows. Raises DataError at the first that has a problem."""
        for row in self.rows:
            if row.problem:
                raise DataError(
                    f"{self.where(row)} {row.problem}.",
                    'Correct it. A cell that holds the separator needs quotes: "slow, sad piano".',
                )
        return [row.cells for row in self.rows]


def read_table(path: Path, remedy: str = "", notes: list[str] | None = None, quoted: bool = True) -> Table:
    """Read a table by its suffix, one of SUFFIXES in any letter case; any other is read as CSV.

    The separator is what a first line `sep=;` says, else the one that the header has most of. `notes` as in
    `read_text`, `quoted` as in `read_cells`. Raises DataError when the file as a whole cannot be read, with `remedy`
    when there is none, and MissingDependencyError for Parquet without pyarrow.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    text = read_text(path, remedy, notes)
    if suffix == ".jsonl":
        return _json_lines(path, text)
    if suffix == ".json":
        return _json(path, text)
    return _separated(path, read_cells(path, text, quoted))


def read_text(path: Path, remedy: str = "", notes: list[str] | None = None) -> str:
    """Text with `\\n` at line ends: UTF-8, or UTF-16 or UTF-32 with a byte-order mark.

    Text that is Windows-1252 by its looks is read when the caller takes `notes`, and noted there, else refused.
    Raises DataError, with `remedy` when there is no such file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no {path}.", remedy) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        text = _windows_1252(path, data, error, notes)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str) -> Any:
    """Raises ValueError, with a reason for a person, for what is not JSON, nests too deeply or has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise ValueError(str(error).partition(";")[0]) from None  # what follows is for programmers


def candidates(columns: Iterable[str], field: str) -> list[str]:
    """The columns that may hold `field`: the one of that name, else all of its USUAL_NAMES."""
    columns = list(columns)
    if field in columns:
        return [field]
    usual = USUAL_NAMES.get(field, {field})
    return [name for name in columns if re.sub(r"[\s_-]", "", name).lower() in usual]


def read_cells(path: Path, text: str, quoted: bool = True) -> Iterator[tuple[int, list[str]]]:
    """The line where it begins, and the cells, of each row that has any; not `quoted`: a quote is a letter.

    Raises DataError naming the line of a row with a quote that is never closed, or closed within a cell.
    """
    first, _, rest = text.partition("\n")
    named = re.fullmatch(r'"?sep=(.)"?[,;\s]*', first, re.IGNORECASE)
    before, text = (1, rest) if named else (0, text)
    delimiter = named[1] if named else _delimiter(text, path.suffix.lower())
    by_line = quoted and delimiter == "\t" and _is_one_row_a_line(text)
    quoting: Literal[0, 3] = csv.QUOTE_NONE if by_line or not quoted else csv.QUOTE_MINIMAL
    csv.field_size_limit(_CELL_LIMIT)
    lines = (match[0] for match in re.finditer(r"[^\n]*\n|[^\n]+", text))
    reader, line = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True), before + 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield line, [_plain(cell, by_line) for cell in row]
            line = before + reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line} is malformed: {error}.", "Close its quotes; double one in a cell."
        ) from error


def csv_text(header: Sequence[str], rows: Iterable[Mapping[str, object] | Sequence[object]]) -> str:
    """CSV as this project writes it, `\\n` at line ends. A row is its cells, or a mapping from column to cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([row.get(name) for name in header] if isinstance(row, Mapping) else row for row in rows)
    return text.getvalue()


def _delimiter(text: str, suffix: str) -> str:
    header = re.sub(r'"[^"]*"', "", text.lstrip("\n").partition("\n")[0])
    if suffix == ".tsv":
        return "\t" if "\t" in header else max("\t,;", key=header.count)
    return max(",;\t", key=header.count)


def _is_one_row_a_line(text: str) -> bool:
    """Whether no cell of a tab-separated text can run over lines, since every line has all its tabs."""
    return len({match[0].count("\t") for match in re.finditer(r"[^\n]*\S[^\n]*", text)}) == 1


def _plain(cell: str, unquote: bool) -> str:
    """A cell without the quotes around it, and without a spreadsheet's mark for text: `="01"`."""
    if unquote and re.fullmatch(r'"([^"]|"")*"', cell):
        cell = cell[1:-1].replace('""', '"')
    return cell[2:-1] if re.fullmatch(r'="[^"]*"', cell) else cell


def _separated(path: Path, rows: Iterator[tuple[int, list[str]]]) -> Table:
    _, header = next(rows, (1, []))
    names = [name.strip() for name in header]
    while names and not names[-1]:
        names.pop()
    columns = [name for name in names if name]  # a table's index has no name
    _check_names(path, columns)
    found = []
    for line, row in rows:
        if any(cell.strip() for cell in row[len(names) :]):
            found.append(Row(line, {}, f"has {len(row)} cells under {len(names)} columns"))
        else:
            row += [""] * (len(names) - len(row))  # spreadsheets leave out empty cells at the end
            found.append(Row(line, {name: cell for name, cell in zip(names, row, strict=False) if name}))
    return Table(path, columns, found)


def _check_names(path: Path, columns: list[str]) -> None:
    if broken := next((name for name in columns if "\0" in name), None):
        raise DataError(f"{path} has a NUL character in the column name {broken!r}.", _SAVE_AS_UTF8)
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise DataError(f"{path} has the column `{twice[0]}` more than once.", "Rename or remove one of them.")


def _json(path: Path, text: str) -> Table:
    try:
        data = parse_json(text)
    except ValueError as error:
        if _is_json(text.lstrip().partition("\n")[0]):
            return _json_lines(path, text)
        raise DataError(f"{path} is not JSON: {error}.") from error
    return _records(path, _objects(path, data))


def _is_json(text: str) -> bool:
    try:
        return isinstance(parse_json(text), dict)
    except ValueError:
        return False


def _json_lines(path: Path, text: str) -> Table:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    rows = [_json_row(number, line) for number, line in lines]
    return Table(path, list(dict.fromkeys(key for row in rows for key in row.cells)), rows)


def _json_row(number: int, line: str) -> Row:
    try:
        cells = parse_json(line)
    except ValueError as error:
        return Row(number, {}, f"is not JSON: {error}")
    return Row(number, cells) if isinstance(cells, dict) else Row(number, {}, "is no JSON object")


def _objects(path: Path, data: Any) -> list[Any]:
    """A list of objects, alone or under one key; or an object from a file's path to its caption or object."""
    if not isinstance(data, dict):
        return data if isinstance(data, list) else [data]
    lists = [key for key, value in data.items() if _is_objects(value)]
    if len(lists) > 1:
        raise DataError(f"{path} has lists of objects under {', '.join(lists)}.", "Keep one of them.")
    if lists:
        return list(data[lists[0]])
    if candidates(data, "path") and candidates(data, "caption"):
        return _by_column(path, data)
    rows = {key: value if isinstance(value, dict) else {"caption": value} for key, value in data.items()}
    return [row if candidates(row, "path") else {"path": key, **row} for key, row in rows.items()]


def _by_column(path: Path, data: dict[str, Any]) -> list[Any]:
    """Rows of an object that holds a list, or an object by row, for each column; or the one row that it is."""
    if not all(isinstance(column, dict | list) for column in data.values()):
        return [data]
    columns = [column if isinstance(column, dict) else dict(enumerate(column)) for column in data.values()]
    if any(column.keys() != columns[0].keys() for column in columns):
        raise DataError(f"{path} has columns that are not of the same rows.", "Write a list of objects, one a row.")
    return [{name: column[key] for name, column in zip(data, columns, strict=True)} for key in columns[0]]


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _records(path: Path, rows: list[Any]) -> Table:
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} must hold objects with `path` and `caption`.")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return Table(path, columns, [Row(number, row) for number, row in enumerate(rows, start=1)])


def _parquet(path: Path) -> Table:
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise MissingDependencyError(f"Reading {path} needs the package pyarrow.", "pip install pyarrow") from None
    try:
        table = parquet.read_table(path)
        _check_names(path, table.column_names)
        return _records(path, table.to_pylist())
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _windows_1252(path: Path, data: bytes, error: UnicodeDecodeError, notes: list[str] | None) -> str:
    line = data.count(b"\n", 0, error.start) + 1
    try:
        if error.encoding != "utf-8" or not _looks_western(data):
            raise error
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        what = f"{path}, line {line} cannot be read: it is not {error.encoding.upper()} text."
        raise DataError(what, _SAVE_AS_UTF8) from error
    shown = text[max(error.start - 30, data.rfind(b"\n", 0, error.start) + 1) : error.start + 30].partition("\n")[0]
    reads = f"Windows-1252, where line {line} reads: {shown.strip()}"
    if notes is None:
        raise DataError(f"{path} is not UTF-8 but, it seems, {reads}", _SAVE_AS_UTF8) from error
    notes.append(f"{path} is not UTF-8; it was read as {reads}")
    return text


def _looks_western(data: bytes) -> bool:
    """Whether text that is not UTF-8 may be Windows-1252: not damaged UTF-8, not binary, no words of other scripts."""
    loose = data.decode("utf-8", "replace")
    broken = loose.count("\ufffd")
    whole = len(re.findall(r"[^\x00-\x7f]", loose)) - broken
    return whole < broken and not re.search(rb"[\x00-\x08\x0e-\x1f]|[\x80-\xff]{4}", data)
