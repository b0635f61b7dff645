"""The answers of a listening test in one SQLite file (WAL): what was acknowledged is on the disk."""

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.errors import DataError
from stages.evaluate.listening import HIGHEST, LOWEST, SCALES, Rating
from stages.tabular import csv_text
from stages.web.refused import Refused
from stages.web.survey_clips import Prepared, Source
from stages.web.survey_plan import plan

DATABASE = "survey.db"
CLIPS = "clips"
CLOCK_SECONDS = 0.25  # a sound card's clock may run ahead of the server's by so much
ANSWER_KEYS = (
    "participant", "age", "background", "group", "position", "item", "caption", "model", "scale", "value",
    "answered_at", "group_finished",
)  # fmt: skip
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS clips (
    token TEXT PRIMARY KEY, item TEXT NOT NULL, caption TEXT NOT NULL, model TEXT NOT NULL, sha256 TEXT NOT NULL,
    seconds REAL NOT NULL, UNIQUE (item, model)) STRICT;
CREATE TABLE IF NOT EXISTS participants (
    number INTEGER PRIMARY KEY, cookie TEXT NOT NULL UNIQUE, form TEXT NOT NULL UNIQUE, age TEXT NOT NULL,
    background TEXT NOT NULL, consented_at REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS slots (
    participant INTEGER NOT NULL REFERENCES participants, place INTEGER NOT NULL, position INTEGER NOT NULL,
    token TEXT NOT NULL REFERENCES clips, fetched_at REAL, heard_at REAL,
    PRIMARY KEY (participant, place, position)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
    participant INTEGER NOT NULL, place INTEGER NOT NULL, position INTEGER NOT NULL, scale TEXT NOT NULL,
    value INTEGER NOT NULL CHECK (value BETWEEN {LOWEST} AND {HIGHEST}), answered_at REAL NOT NULL,
    PRIMARY KEY (participant, place, position, scale),
    FOREIGN KEY (participant, place, position) REFERENCES slots) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS finished (
    participant INTEGER NOT NULL REFERENCES participants, place INTEGER NOT NULL, finished_at REAL NOT NULL,
    PRIMARY KEY (participant, place)) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Design:
    """What must not change while a survey runs. `models` in the folders' order."""

    models: list[str]
    items: list[str]
    groups: int
    seed: int


@dataclass(frozen=True)
class Slot:
    """One clip in front of one participant."""

    position: int
    token: str
    seconds: float
    heard: bool
    ratings: dict[str, int]


class SurveyStore:
    """One connection, used from one thread. Changes are visible at once and safe after `commit` (with fsync), so
    that the answers of many people can share one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._db = sqlite3.connect(folder / DATABASE, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.executescript(SCHEMA)
        except sqlite3.Error as error:
            message = f"{folder / DATABASE} cannot be used: {error}."
            raise DataError(message, "Choose another --survey folder.") from error

    def close(self) -> None:
        self.commit()
        self._db.close()

    def holds(self, design: Design, sources: Sequence[Source]) -> bool:
        """Whether the survey was laid out already, with just this. Raises DataError when with something else."""
        found = self._db.execute("SELECT value FROM meta WHERE key = 'design'").fetchone()
        if found is None:
            return False
        clips = {(s.item, s.caption, s.model, s.sha256) for s in sources}
        same = json.loads(found[0]) == vars(design)
        if not same or clips != set(self._db.execute("SELECT item, caption, model, sha256 FROM clips")):
            raise DataError(
                f"{self.folder / DATABASE} holds a survey of other clips or settings.",
                "Give the folders, --groups and --seed it was begun with, or another --survey folder.",
            )
        return True

    def lay_out(self, design: Design, clips: Sequence[Prepared]) -> None:
        with self._write():
            self._db.execute("INSERT INTO meta VALUES ('design', ?)", (json.dumps(vars(design)),))
            rows = [
                (c.token, c.source.item, c.source.caption, c.source.model, c.source.sha256, c.seconds) for c in clips
            ]
            self._db.executemany("INSERT INTO clips VALUES (?, ?, ?, ?, ?, ?)", rows)
        self.commit()

    @cached_property
    def design(self) -> Design:
        found = self._db.execute("SELECT value FROM meta WHERE key = 'design'").fetchone()
        if found is None:
            raise DataError(f"{self.folder / DATABASE} holds no survey yet.", "Begin: musicldm eval listen serve")
        return Design(**json.loads(found[0]))

    def clip_seconds(self) -> float:
        return float(self._db.execute("SELECT min(seconds) FROM clips").fetchone()[0])

    def enter(self, form: str, age: str, background: str) -> str:
        """A new participant and their whole plan; the same `form` again gives the same cookie."""
        with self._write():
            known = self._db.execute("SELECT cookie FROM participants WHERE form = ?", (form,)).fetchone()
            if known is not None:
                return str(known[0])
            design, cookie = self.design, secrets.token_urlsafe(24)
            number = self._db.execute("SELECT count(*) FROM participants").fetchone()[0]
            row = (number, cookie, form, age, background, time.time())
            self._db.execute("INSERT INTO participants VALUES (?, ?, ?, ?, ?, ?)", row)
            tokens = {(i, m): t for t, i, m in self._db.execute("SELECT token, item, model FROM clips")}
            own = plan(number, design.items, design.models, design.groups, design.seed)
            rows = [
                (number, place, position, tokens[item, model])
                for place, (item, *order) in enumerate(own, 1)
                for position, model in enumerate(order, 1)
            ]
            self._db.executemany("INSERT INTO slots VALUES (?, ?, ?, ?, NULL, NULL)", rows)
            return cookie

    def participant(self, cookie: str | None) -> int | None:
        found = self._db.execute("SELECT number FROM participants WHERE cookie = ?", (cookie,)).fetchone()
        return None if found is None else int(found[0])

    def next_place(self, participant: int) -> int | None:
        """The first group that is not finished, counted from 1; None at the end."""
        done = self._db.execute("SELECT count(*) FROM finished WHERE participant = ?", (participant,)).fetchone()[0]
        return int(done) + 1 if done < self.design.groups else None

    def group(self, participant: int, place: int) -> tuple[str, list[Slot]]:
        """The caption and clips of one group, with what was heard and rated. Raises Refused(404)."""
        where = (participant, place)
        rows = self._db.execute(
            "SELECT position, token, seconds, heard_at, caption FROM slots JOIN clips USING (token) "
            "WHERE participant = ? AND place = ? ORDER BY position", where,
        ).fetchall()  # fmt: skip
        if not rows:
            raise Refused(404, "There is no such group in your survey.")
        ratings: dict[int, dict[str, int]] = {}
        given = "SELECT position, scale, value FROM answers WHERE participant = ? AND place = ?"
        for position, scale, value in self._db.execute(given, where):
            ratings.setdefault(position, {})[scale] = value
        slots = [Slot(p, t, s, heard is not None, ratings.get(p, {})) for p, t, s, heard, _ in rows]
        return rows[0][4], slots

    def fetched(self, participant: int, place: int, position: int) -> Path:
        """The file of a slot's clip; the first time is written down."""
        token, fetched_at, _, _ = self._slot(participant, place, position)
        if fetched_at is None:
            self._stamp("fetched_at", participant, place, position)
        return self.folder / CLIPS / f"{token}.wav"

    def heard(self, participant: int, place: int, position: int) -> None:
        """The clip was played to its end. Raises Refused when less time has gone by than it lasts."""
        _, fetched_at, heard_at, seconds = self._slot(participant, place, position)
        if heard_at is not None:
            return
        if fetched_at is None or time.time() - fetched_at < seconds - CLOCK_SECONDS:
            raise Refused(409, "This clip cannot have been heard to its end yet; please play it.")
        self._stamp("heard_at", participant, place, position)

    def rate(self, participant: int, place: int, position: int, scale: str, value: int) -> None:
        """Write one answer. The same again changes nothing; another value replaces it until the group is done."""
        _, _, heard_at, _ = self._slot(participant, place, position)
        if scale not in SCALES:
            raise Refused(422, f"The scale must be one of {', '.join(SCALES)}.")
        if not LOWEST <= value <= HIGHEST:
            raise Refused(422, f"A rating is a whole number from {LOWEST} to {HIGHEST}.")
        if heard_at is None:
            raise Refused(409, "Please hear the clip to its end before you rate it.")
        with self._write():
            key = (participant, place, position, scale)
            same = "SELECT value FROM answers WHERE participant = ? AND place = ? AND position = ? AND scale = ?"
            old = self._db.execute(same, key).fetchone()
            if old is not None and old[0] == value:
                return
            if self._finished(participant, place):
                raise Refused(409, "This group is finished; its ratings can no longer be changed.")
            self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", (*key, value, time.time()))

    def finish(self, participant: int, place: int) -> None:
        """Close a group. Once more changes nothing. Raises Refused while ratings are missing."""
        _, slots = self.group(participant, place)
        missing = sum(len(SCALES) - len(slot.ratings) for slot in slots)
        if missing:
            raise Refused(409, f"{missing} rating(s) of this group are still missing.")
        if place != self.next_place(participant) and not self._finished(participant, place):
            raise Refused(409, "The groups before this one come first.")
        with self._write():
            row = (participant, place, time.time())
            self._db.execute("INSERT OR IGNORE INTO finished VALUES (?, ?, ?)", row)

    def answers(self) -> list[dict[str, Any]]:
        """Every answer with all that is known about it, in the order of participants, groups and clips."""
        rows = self._db.execute(
            "SELECT a.participant, age, background, a.place, a.position, item, caption, model, scale, value, "
            "answered_at, f.place IS NOT NULL FROM answers a JOIN participants p ON p.number = a.participant "
            "JOIN slots s ON (s.participant, s.place, s.position) = (a.participant, a.place, a.position) "
            "JOIN clips USING (token) LEFT JOIN finished f ON (f.participant, f.place) = (a.participant, a.place) "
            "ORDER BY a.participant, a.place, a.position, scale"
        )
        return [dict(zip(ANSWER_KEYS, row, strict=True)) | {"group_finished": bool(row[-1])} for row in rows]

    def ratings(self) -> list[Rating]:
        """The answers of finished groups."""
        return [
            Rating(str(row["participant"]), row["item"], row["model"], row["scale"], row["value"])
            for row in self.answers()
            if row["group_finished"]
        ]

    def counts(self) -> dict[str, int]:
        """Participants who began, who finished every group, and all answers."""
        began = self._db.execute("SELECT count(*) FROM participants").fetchone()[0]
        groups = self.design.groups
        whole = "SELECT count(*) FROM (SELECT 1 FROM finished GROUP BY participant HAVING count(*) = ?)"
        finished = self._db.execute(whole, (groups,)).fetchone()[0]
        answers = self._db.execute("SELECT count(*) FROM answers").fetchone()[0]
        return {"began": began, "finished": finished, "answers": answers}

    def _slot(self, participant: int, place: int, position: int) -> tuple[str, float | None, float | None, float]:
        found = self._db.execute(
            "SELECT token, fetched_at, heard_at, seconds FROM slots JOIN clips USING (token) "
            "WHERE participant = ? AND place = ? AND position = ?", (participant, place, position),
        ).fetchone()  # fmt: skip
        if found is None:
            raise Refused(404, "There is no such clip in your survey.")
        return tuple(found)

    def _stamp(self, column: str, participant: int, place: int, position: int) -> None:
        with self._write():
            self._db.execute(
                f"UPDATE slots SET {column} = ? WHERE participant = ? AND place = ? AND position = ?",  # noqa: S608
                (time.time(), participant, place, position),
            )

    def _finished(self, participant: int, place: int) -> bool:
        query = "SELECT 1 FROM finished WHERE participant = ? AND place = ?"
        return self._db.execute(query, (participant, place)).fetchone() is not None

    def commit(self) -> None:
        """Write all that was changed since the last commit to the disk; only then may it be acknowledged."""
        if self._db.in_transaction:
            try:
                self._db.execute("COMMIT")
            except sqlite3.Error:
                self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _write(self) -> Iterator[None]:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("SAVEPOINT change")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK TO change")
            raise
        finally:
            self._db.execute("RELEASE change")


def open_existing(folder: Path) -> SurveyStore:
    """The survey in `folder`, to be read beside a running server. Raises DataError when there is none."""
    if not (folder / DATABASE).is_file():
        raise DataError(f"{folder} holds no {DATABASE}.", "Begin a survey: musicldm eval listen serve DIR_A DIR_B")
    return SurveyStore(folder)


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """`SurveyStore.answers` as a table with a header. A cell that a spreadsheet would run is quoted by a '."""
    return csv_text(ANSWER_KEYS, [{key: _inert(value) for key, value in row.items()} for row in rows])


def _inert(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell
