"""What both web applications share: limits on what comes in, headers on what goes out, refusals as one sentence."""

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stages.web.refused import Refused

HERE = Path(__file__).parent
BODY_LIMIT = 64 * 1024  # bytes; no form of ours is longer
BODY_SECONDS = 10.0  # for one to arrive
TOO_SLOW, TOO_LONG = 408, 413
DRAIN_SECONDS = 0.5
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d{1,5})?", re.IGNORECASE)
SECURITY = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
TEMPLATES = Jinja2Templates(HERE / "templates")
LOGGER = logging.getLogger("musicldm.web")


class Guard:
    """ASGI middleware: refuses foreign host names, and long bodies before they are read; gives up slow ones; adds
    security headers.

    `limits` gives bytes by path where they differ from BODY_LIMIT; these paths watch their time themselves.
    """

    def __init__(self, app: ASGIApp, host: str, limits: Mapping[str, int]) -> None:
        self.app, self.limits = app, limits
        self.hosts = LOOPBACK if host in LOOPBACK else None  # else a page elsewhere could rebind its name to us

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, limit = Headers(scope=scope), self.limits.get(scope["path"], BODY_LIMIT)
        seen, started = 0, False
        end: float | None = None if scope["path"] in self.limits else asyncio.get_running_loop().time() + BODY_SECONDS

        async def limited() -> Message:
            nonlocal seen, end
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise Refused(TOO_SLOW, "The request took too long to arrive and was given up.") from None
            if not message.get("more_body"):
                end = None  # what is waited for now is that the client goes away
            seen += len(message.get("body", b""))
            if seen > limit:
                await _drain(receive)
                raise _too_long(limit)
            return message

        async def secured(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                found = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    found[name] = value
            await send(message)

        request = Request(scope, limited)
        try:
            self._check(headers, limit)
            await self.app(scope, limited, secured)
        except Refused as refused:
            if refused.status == TOO_LONG:
                await _drain(receive)
            if not started:
                await refuse(request, refused)(scope, limited, secured)

    def _check(self, headers: Headers, limit: int) -> None:
        given = headers.getlist("host")
        match = HOST.fullmatch(given[0]) if len(given) == 1 else None
        if match is None or (self.hosts is not None and (match[1] or match[2]).lower() not in self.hosts):
            raise Refused(421, "This server answers to this machine's own name only.")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise Refused(400, "The request does not say how long it is.")
        if len(length) > 18 or int(length) > limit:
            raise _too_long(limit)


async def _drain(receive: Receive) -> None:
    """Read on for a moment: who only sent a little too much then hears why, instead of finding the line cut."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while (await receive()).get("more_body"):
                pass


def _too_long(limit: int) -> Refused:
    size = f"{limit / 1e6:.0f} MB" if limit > 1e6 else f"{limit // 1024} kB"
    return Refused(TOO_LONG, f"That is too much: at most {size} are accepted here.")


def new_app(host: str, limits: Mapping[str, int] | None = None) -> FastAPI:
    """An application with its guard, its static files and its refusals, and nothing else."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, host=host, limits=limits or {})
    app.mount("/static", StaticFiles(directory=HERE / "static"))
    app.add_exception_handler(Refused, _on_refused)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_mistake)
    return app


def refuse(request: Request, refused: Refused) -> Response:
    """Log a refusal and say it: as a page to who asks for one, else as JSON."""
    LOGGER.warning("%s %.200r refused (%d): %s", request.method, request.url.path, refused.status, refused.sentence)
    # or the server would go on reading what is left of an endless body
    headers = {"connection": "close"} if refused.status in (TOO_SLOW, TOO_LONG) else None
    if "text/html" in request.headers.get("accept", ""):
        page: HTMLResponse = TEMPLATES.TemplateResponse(
            request, "refused.html", {"sentence": refused.sentence}, refused.status, headers
        )
        return page
    return JSONResponse({"ok": False, "sentence": refused.sentence}, refused.status, headers)


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Raises Refused; a foreign page cannot send this content type unasked."""
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise Refused(415, "Send it as application/json.")
    try:
        found = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise Refused(400, "The request is not JSON.") from None
    if not isinstance(found, dict):
        raise Refused(400, "The request is not a JSON object.")
    return found


def text_field(given: dict[str, Any], key: str) -> str:
    """A text of a JSON object. Raises Refused (400) for another type, and for half of a UTF-16 pair."""
    value = given.get(key)
    if not isinstance(value, str) or (not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise Refused(400, f"“{key}” must be text.")
    return value


def number_field(given: dict[str, Any], key: str, low: float, high: float, whole: bool = False) -> float:
    """A number of a JSON object. Raises Refused: 400 for another type, 422 for one not from `low` to `high`."""
    value = given.get(key)
    wanted = f"“{key}” must be a {'whole ' if whole else ''}number from {low:g} to {high:g}."
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(400, wanted)
    if not low <= value <= high or (whole and value != int(value)):
        raise Refused(422, wanted)
    return float(value)


async def _on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)  # noqa: S101
    return refuse(request, error)


async def _on_http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    sentences = {404: "There is no such page.", 405: "That cannot be done with this page."}
    return refuse(request, Refused(status, sentences.get(status, "The request cannot be understood.")))


async def _on_invalid(request: Request, _: Exception) -> Response:
    return refuse(request, Refused(404, "There is no such page."))


async def _on_mistake(request: Request, error: Exception) -> Response:
    LOGGER.error("%s %.200r failed", request.method, request.url.path, exc_info=error)
    return refuse(request, Refused(500, "The server made a mistake; its log says more."))
