"""The listening test as a web application: consent, groups of clips, thanks (paper, appendix D).

A browser learns captions and positions only: a clip's address is its place in the participant's own survey.
"""

import asyncio
import re
import secrets
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi import Path as Path_
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse

from stages.errors import UsageError
from stages.evaluate.listening import HIGHEST, LOWEST
from stages.progress import Progress, silent
from stages.store import atomic_folder, disk_errors
from stages.web.http import TEMPLATES, json_body, new_app, number_field, text_field
from stages.web.refused import Refused
from stages.web.survey_clips import find_sources, prepare
from stages.web.survey_store import CLIPS, Design, SurveyStore

COOKIE = "musicldm_survey"
GATHER_SECONDS = 0.004
RATING_SECONDS = 12  # beside hearing a clip, for the minutes that are told beforehand
COOKIE_SECONDS = 30 * 24 * 3600
Number = Annotated[int, Path_(ge=0, le=10_000)]
FORM = re.compile(r"[A-Za-z0-9_-]{32}")
AGES = ("18-24", "25-34", "35-44", "45-54", "55-64", "65 or over", "I would rather not say")
BACKGROUNDS = (
    "I listen to music only", "I play or sing for myself", "I had years of lessons", "I work in music or audio",
    "I would rather not say",
)  # fmt: skip
QUESTIONS = {
    "relevance": "How well does it match the description?",
    "quality": "How clear is the sound, how free of noise?",
    "musicality": "How do its rhythm, melody and texture appeal to you?",
}


def open_survey(
    folders: Sequence[Path], groups: int, seconds: float, seed: int, out: Path, progress: Progress = silent
) -> tuple[SurveyStore, list[str]]:
    """The survey of these folders in `out`, begun or gone on with; and the ids that were left out of it.

    Raises UsageError and DataError for folders that cannot be compared, or another survey in `out`.
    """
    sources, left_out = find_sources(folders)
    items, models = (list(dict.fromkeys(values)) for values in zip(*((s.item, s.model) for s in sources), strict=True))
    if not 1 <= groups <= len(items):
        raise UsageError(
            f"--groups {groups} is not between 1 and {len(items)}, the number of captions that all folders share.",
            f"Give --groups {len(items)}, or generate more clips.",
        )
    design = Design(models, items, groups, seed)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    store = SurveyStore(out)
    if not store.holds(design, sources):
        with atomic_folder(out / CLIPS) as folder:
            prepared = prepare(sources, seconds, folder, progress)
        store.lay_out(design, prepared)
    return store, left_out


class Commits:
    """Requests that changed something wait here for one commit together: an fsync each would hold all others up."""

    def __init__(self, store: SurveyStore) -> None:
        self.store, self._waiting = store, list[asyncio.Future[None]]()

    async def done(self) -> None:
        """Returns when all changes made so far are on the disk. Raises what the commit raised."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if not self._waiting:
            loop.call_later(GATHER_SECONDS, self._commit)
        self._waiting.append(future)
        await future

    def _commit(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            self.store.commit()
        except sqlite3.Error as error:
            for future in filter(_open, waiting):
                future.set_exception(error)
        else:
            for future in filter(_open, waiting):
                future.set_result(None)


def _open(future: asyncio.Future[None]) -> bool:
    """Whether its client has not gone away."""
    return not future.done()


def survey_app(store: SurveyStore, host: str = "127.0.0.1") -> FastAPI:
    """The application; `store` must have been laid out."""
    app = new_app(host)
    design, commits = store.design, Commits(store)

    def minutes(groups: int) -> int:
        return max(1, round(groups * len(design.models) * (store.clip_seconds() + RATING_SECONDS) / 60))

    def page(request: Request, name: str, **values: Any) -> Response:
        return TEMPLATES.TemplateResponse(request, name, {"groups": design.groups, **values})

    def who(request: Request) -> int:
        participant = store.participant(request.cookies.get(COOKIE))
        if participant is None:
            raise Refused(403, "You have not begun this survey, or with another browser. Please open its first page.")
        return participant

    def onward(participant: int) -> Response:
        place = store.next_place(participant)
        return RedirectResponse("/thanks" if place is None else f"/group/{place}", 303)

    @app.get("/")
    async def consent(request: Request) -> Response:
        participant = store.participant(request.cookies.get(COOKIE))
        if participant is not None:
            return onward(participant)
        return page(
            request, "survey_consent.html", form=secrets.token_urlsafe(24), ages=AGES, backgrounds=BACKGROUNDS,
            clips=len(design.models), minutes=minutes(design.groups),
        )  # fmt: skip

    @app.post("/start")
    async def start(request: Request) -> Response:
        participant = store.participant(request.cookies.get(COOKIE))
        if participant is not None:
            return onward(participant)
        given = {key: str(value) for key, value in (await request.form()).items()}
        if given.get("consent") != "yes":
            raise Refused(422, "Without your consent the survey cannot begin.")
        if given.get("age") not in AGES or given.get("background") not in BACKGROUNDS:
            raise Refused(422, "Please choose an age range and a music background from the lists.")
        if not FORM.fullmatch(given.get("form", "")):
            raise Refused(422, "This form is not one of ours. Please open the first page again.")
        response = RedirectResponse("/group/1", 303)
        cookie = store.enter(given["form"], given["age"], given["background"])
        await commits.done()
        response.set_cookie(COOKIE, cookie, COOKIE_SECONDS, httponly=True, samesite="strict")
        return response

    @app.get("/group/{place}")
    async def group(request: Request, place: Number) -> Response:
        participant = store.participant(request.cookies.get(COOKIE))
        if participant is None:
            return RedirectResponse("/", 303)
        if place != store.next_place(participant):
            return onward(participant)
        caption, slots = store.group(participant, place)
        return page(
            request, "survey_group.html", place=place, caption=caption, slots=slots, questions=QUESTIONS,
            values=range(LOWEST, HIGHEST + 1), minutes=minutes(design.groups - place + 1),
        )  # fmt: skip

    @app.post("/group/{place}")
    async def finish(request: Request, place: Number) -> Response:
        participant = who(request)
        store.finish(participant, place)
        await commits.done()
        return onward(participant)

    @app.get("/clip/{place}/{position}")
    async def clip(request: Request, place: Number, position: Number) -> Response:
        path = store.fetched(who(request), place, position)
        await commits.done()
        return FileResponse(path, media_type="audio/wav")

    @app.post("/heard/{place}/{position}")
    async def heard(request: Request, place: Number, position: Number) -> Response:
        store.heard(who(request), place, position)
        await commits.done()
        return JSONResponse({"ok": True})

    @app.post("/rate/{place}/{position}")
    async def rate(request: Request, place: Number, position: Number) -> Response:
        participant, given = who(request), await json_body(request)
        value = int(number_field(given, "value", LOWEST, HIGHEST, whole=True))
        store.rate(participant, place, position, text_field(given, "scale"), value)
        await commits.done()
        return JSONResponse({"ok": True})

    @app.get("/thanks")
    async def thanks(request: Request) -> Response:
        participant = store.participant(request.cookies.get(COOKIE))
        if participant is None or store.next_place(participant) is not None:
            return RedirectResponse("/", 303)
        return page(request, "survey_thanks.html")

    return app
