"""What is to be generated: prompts typed on the command line or listed in a file."""

import hashlib
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from stages import tabular
from stages.errors import DataError, UsageError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
COLUMNS = ("prompt", "id", "seed", "negative", "guidance", "seconds")
SEED_LIMIT = 2**32  # torch's CPU generator keeps these bits of a seed only
NO_TESTS = "Type a prompt, or let some music be for tests: musicldm prep manifest -S manifest.split_by=auto"
ID_BYTES = 120  # leaves room for a suffix below the 255 bytes of common file systems


@dataclass(frozen=True)
class Prompt:
    """One clip to make. `id` names its file."""

    id: str
    prompt: str
    seed: int
    negative: str | None
    guidance: float
    seconds: float


@dataclass(frozen=True)
class BadRow:
    """A row of a prompts file that cannot be used; `line` counts from 1, a csv header included."""

    line: int
    reason: str


@dataclass(frozen=True)
class Defaults:
    """What a prompt has that does not say otherwise; row n of a file takes the seed `seed + n`.

    `check` raises UsageError for a length that cannot be made.
    """

    seed: int
    negative: str | None
    guidance: float
    seconds: float
    check: Callable[[float], object] = lambda _: None


def typed_prompt(text: str, defaults: Defaults) -> Prompt:
    """The prompt of one command. Raises UsageError for text or settings that cannot be used."""
    try:
        prompt = _prompt({"prompt": text}, 0, defaults, "typed")
    except ValueError as error:
        raise UsageError(
            f"The prompt cannot be used: {error}.", 'Write it as: musicldm generate "calm piano"'
        ) from None
    return Prompt(**{**vars(prompt), "id": f"{slug(prompt.prompt)}-{prompt.seed}"})


def read_prompts(path: Path, defaults: Defaults, of_tests: bool = False) -> tuple[list[Prompt], list[BadRow]]:
    """The prompts of a .csv or .tsv (header with `prompt` and any of COLUMNS), .jsonl (same keys) or .txt (one a line).

    Rows without an id are called after their number. `of_tests`: the file is the test split's, by `prep captions`.
    Raises DataError when the file as a whole is unusable.
    """
    rows = _rows(path)
    prompts: list[Prompt] = []
    bad: list[BadRow] = []
    taken: set[str] = set()
    for number, row in enumerate(rows):
        try:
            if row.problem:
                raise ValueError(row.problem)
            prompt = _prompt(row.cells, number, defaults, f"prompt-{number + 1:04d}")
            if prompt.id.casefold() in taken:
                raise ValueError(f"the id {prompt.id!r} was used above")
        except ValueError as error:
            bad.append(BadRow(row.line, str(error)))
        else:
            taken.add(prompt.id.casefold())
            prompts.append(prompt)
    if not rows and of_tests:
        raise DataError(f"There is no test split: {path} holds no prompts.", NO_TESTS)
    if not rows:
        raise DataError(f"{path} holds no prompts.", "Write one prompt a line, or a csv with the column `prompt`.")
    if not prompts:
        raise DataError(f"{path} holds no usable prompt; line {bad[0].line}: {bad[0].reason}.", "Correct its rows.")
    return prompts, bad


def takes(prompts: list[Prompt], count: int) -> list[Prompt]:
    """Each prompt `count` times: first as it is, then with seeds that no other prompt has, `<id>-take2` and so on.

    Raises DataError when a name is taken.
    """
    more = [
        replace(prompt, id=f"{prompt.id}-take{take + 1}", seed=prompt.seed + take * len(prompts))
        for take in range(1, count)
        for prompt in prompts
    ]
    known = {prompt.id.casefold() for prompt in prompts}
    clash = next((prompt.id for prompt in more if prompt.id.casefold() in known), None)
    if clash is not None:
        raise DataError(f"The id {clash} is that of a prompt and of another prompt's take.", "Rename one of them.")
    return [*prompts, *more]


def with_tempo(prompt: Prompt, bpm: float) -> Prompt:
    """The prompt in the words of the training captions, "..., 120 BPM", unless it names a tempo itself."""
    return prompt if "bpm" in prompt.prompt.lower() else replace(prompt, prompt=f"{prompt.prompt}, {bpm:.0f} BPM")


def slug(text: str) -> str:
    """A short file name of small ASCII letters; texts without any are named by their hash."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")
    return words[:48].rstrip("-") or hashlib.sha256(text.encode()).hexdigest()[:12]


def _rows(path: Path) -> list[tabular.Row]:
    """Rows with keys of COLUMNS, or the problem of one that cannot be used."""
    suffix, remedy = path.suffix.lower(), f"Name a file of prompts: {', '.join(SUFFIXES)}."
    if suffix not in SUFFIXES:
        raise DataError(f"{path} is none of {', '.join(SUFFIXES)}.", "Rename it to what it holds.")
    if suffix == ".txt":
        lines = tabular.read_text(path, remedy).split("\n")
        return [tabular.Row(n, {"prompt": line}) for n, line in enumerate(lines, start=1) if line.strip()]
    table = tabular.read_table(path, remedy)
    found = {field: tabular.candidates(table.columns, field) for field in COLUMNS}
    fields = {names[0]: field for field, names in found.items() if len(names) == 1}
    unknown = [name for name in table.columns if name not in fields]
    if suffix != ".jsonl" and (unknown or "prompt" not in fields.values()):
        what = f"has the unknown column {unknown[0]!r}" if unknown else "has no column `prompt`"
        raise DataError(f"{path} {what}.", f"Its first line may name: {', '.join(COLUMNS)}.")
    return [_renamed(row, fields) for row in table.rows]


def _renamed(row: tabular.Row, fields: dict[str, str]) -> tabular.Row:
    unknown = next((key for key in row.cells if key not in fields), None)
    if unknown is not None:
        return tabular.Row(row.line, {}, f"has the unknown key {_shown(unknown)}")
    return tabular.Row(row.line, {fields[key]: value for key, value in row.cells.items()}, row.problem)


def _prompt(row: dict[str, Any], number: int, defaults: Defaults, name: str) -> Prompt:
    """Raises ValueError with the reason, for a person."""
    given = {key: value for key, value in row.items() if value is not None and value != ""}
    seed = _number(given, "seed", defaults.seed + number, whole=True)
    guidance = _number(given, "guidance", defaults.guidance)
    seconds = _number(given, "seconds", defaults.seconds)
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"the seed {_shown(given.get('seed', seed))} is not between 0 and {SEED_LIMIT - 1}")
    if guidance < 0:
        raise ValueError(f"the guidance {guidance:g} is negative")
    if seconds <= 0:
        raise ValueError(f"{seconds:g} seconds is no length")
    try:
        defaults.check(seconds)
    except UsageError as error:
        raise ValueError(error.message.removesuffix(".")) from None
    text = clean_text(given.get("prompt", ""), "prompt")
    if not text:
        raise ValueError("the prompt is empty")
    negative = given.get("negative", defaults.negative)
    return Prompt(
        id=_file_name(given.get("id", name)),
        prompt=text,
        seed=int(seed),
        negative=clean_text(negative, "negative prompt") or None if negative is not None else None,
        guidance=guidance,
        seconds=seconds,
    )


def clean_text(text: Any, what: str) -> str:
    """White space folded to single blanks. Raises ValueError for other control characters, lone surrogates and
    texts over tabular.TEXT_LIMIT."""
    if not isinstance(text, str):
        raise ValueError(f"the {what} is not text")
    folded = " ".join(text.split())
    if len(folded) > tabular.TEXT_LIMIT:
        raise ValueError(f"the {what} has {len(folded):,} characters, more than {tabular.TEXT_LIMIT:,}")
    wrong = next((c for c in folded if unicodedata.category(c) in ("Cc", "Cs")), None)
    if wrong is not None:
        raise ValueError(f"the {what} holds the control character U+{ord(wrong):04X}")
    return folded


def _number(given: dict[str, Any], key: str, default: float, whole: bool = False) -> float:
    value = given.get(key, default)
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not abs(number) < float("inf") or (whole and number != int(number)):
        raise ValueError(f"the {key} {_shown(value)} is not a {'whole ' if whole else ''}number in range")
    return number


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."


def _file_name(name: Any) -> str:
    text = unicodedata.normalize("NFC", str(name))
    if not re.fullmatch(r"[\w-][\w.\- ]*", text) or len(text.encode()) > ID_BYTES or text.endswith((".", " ")):
        raise ValueError(f"the id {_shown(text)} cannot be a file name (letters, digits and _ - first; . and blanks "
                         f"within; at most {ID_BYTES} bytes)")  # fmt: skip
    if PureWindowsPath(text).is_reserved():
        raise ValueError(f"the id {text!r} is a name that Windows keeps for a device")
    return text
