"""The studio as a web application: type a prompt, hear the clip, and hear what it is nearest to in the training set."""

import asyncio
import json
import re
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from stages.audio.suffixes import SUFFIXES
from stages.generate.settings import FEW_STEPS, SAMPLERS, few_steps
from stages.params import Generate
from stages.web.decode import PATIENCE_SECONDS, decode
from stages.web.http import TEMPLATES, TOO_SLOW, json_body, new_app, text_field
from stages.web.refused import Refused
from stages.web.studio_queue import MOST_CANDIDATES, MOST_STEPS, Job, StudioQueue, Upload

COOKIE = "musicldm_studio"
COOKIE_SECONDS = 365 * 24 * 3600
OWNER = re.compile(r"[A-Za-z0-9_-]{43}")
UPLOAD_BYTES = 40 * 10**6  # two minutes of 24-bit stereo at 48 kHz
UPLOAD_SECONDS = 180.0  # to arrive in
UPLOAD_RATE = 48_000  # kept so until the model's own rate is known
KEPT_UPLOADS = 16  # of as many browsers
DECODERS = 2  # processes at once: many slow files must not take the machine, nor the threads that serve pages


def studio_app(jobs: StudioQueue, defaults: Generate, seconds: float, host: str = "127.0.0.1") -> FastAPI:
    """The application; `seconds` is the length that the form offers first."""
    app = new_app(host, {"/upload": UPLOAD_BYTES})
    samplers = [*SAMPLERS, *([FEW_STEPS] if any(map(few_steps, jobs.models.values())) else [])]
    uploads: OrderedDict[str, tuple[str, Upload]] = OrderedDict()  # each browser's last one
    decoders = asyncio.Semaphore(DECODERS)

    def who(request: Request) -> str:
        owner = request.cookies.get(COOKIE, "")
        if not OWNER.fullmatch(owner):
            raise Refused(403, "Please open the studio's page first.")
        return owner

    @app.get("/")
    async def page(request: Request) -> Response:
        values = {"models": list(jobs.models), "samplers": samplers, "defaults": defaults, "seconds": seconds,
                  "most_steps": MOST_STEPS, "most_candidates": MOST_CANDIDATES,
                  "megabytes": UPLOAD_BYTES // 10**6, "suffixes": ",".join(SUFFIXES)}  # fmt: skip
        response = TEMPLATES.TemplateResponse(request, "studio.html", values)
        owner = request.cookies.get(COOKIE, "")
        kept = owner if OWNER.fullmatch(owner) else secrets.token_urlsafe(32)
        response.set_cookie(COOKIE, kept, COOKIE_SECONDS, httponly=True, samesite="strict")
        return response

    @app.post("/upload")
    async def upload(request: Request) -> Response:
        owner = who(request)
        if request.headers.get("content-type") != "application/octet-stream":
            raise Refused(415, "Send the file as application/octet-stream.")
        with tempfile.TemporaryDirectory(prefix="musicldm-") as folder:
            path = Path(folder) / "upload"
            await _receive(request, path)
            async with _turn(decoders):
                samples = await run_in_threadpool(decode, path, UPLOAD_RATE)
        key = secrets.token_hex(8)
        uploads[owner] = key, Upload(samples, UPLOAD_RATE)
        uploads.move_to_end(owner)
        while len(uploads) > KEPT_UPLOADS:
            uploads.popitem(last=False)
        return JSONResponse({"ok": True, "upload": key, "seconds": round(len(samples) / UPLOAD_RATE, 2)})

    @app.post("/jobs")
    async def submit(request: Request) -> Response:
        owner, given = who(request), await json_body(request)
        chosen = None
        if given.get("upload") is not None:
            key, chosen = uploads.get(owner, ("", None))
            if key != text_field(given, "upload"):
                raise Refused(404, "The dropped file is no longer here. Please drop it again.")
        return JSONResponse({"ok": True} | _shown(jobs, jobs.submit(owner, given, chosen)), 202)

    @app.get("/jobs")
    async def waiting(request: Request) -> Response:
        return JSONResponse({"ok": True, "jobs": [_shown(jobs, job) for job in jobs.waiting(who(request))]})

    @app.get("/jobs/{job}")
    async def state(request: Request, job: str) -> Response:
        return JSONResponse({"ok": True} | _shown(jobs, jobs.find(who(request), job)))

    @app.post("/jobs/{job}/cancel")
    async def cancel(request: Request, job: str) -> Response:
        found = jobs.find(who(request), job)
        jobs.cancel(found)
        return JSONResponse({"ok": True} | _shown(jobs, found))

    @app.get("/history")
    async def history(request: Request) -> Response:
        return JSONResponse({"ok": True, "clips": jobs.history(who(request))})

    @app.get("/file/{name}")
    async def file(request: Request, name: str) -> Response:
        return FileResponse(jobs.file(who(request), name))

    @app.get("/line/{clip}")
    async def line(request: Request, clip: str) -> Response:
        rows = [found["row"] for found in jobs.history(who(request)) if found["row"]["id"] == clip]
        if not rows:
            raise Refused(404, "There is no such clip among yours.")
        headers = {"content-disposition": f'attachment; filename="{rows[0]["id"]}.jsonl"'}
        text = json.dumps(rows[0], ensure_ascii=False) + "\n"
        return Response(text, media_type="application/x-ndjson", headers=headers)

    return app


async def _receive(request: Request, path: Path) -> None:
    """Write the body to `path`. Raises Refused (408) when it trickles."""
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            with path.open("wb") as file:
                async for chunk in request.stream():
                    file.write(chunk)
    except TimeoutError:
        raise Refused(TOO_SLOW, "The file took too long to arrive and was given up.") from None
    except ClientDisconnect:
        raise Refused(400, "The file did not arrive whole.") from None


@asynccontextmanager
async def _turn(decoders: asyncio.Semaphore) -> AsyncIterator[None]:
    """One of the `decoders`. Raises Refused (503) when none gets free in the time that one file may take."""
    try:
        await asyncio.wait_for(decoders.acquire(), PATIENCE_SECONDS)
    except TimeoutError:
        raise Refused(503, "Other files are being read just now. Please drop yours again in a minute.") from None
    try:
        yield
    finally:
        decoders.release()


def _shown(jobs: StudioQueue, job: Job) -> dict[str, Any]:
    return {
        "id": job.id, "state": job.state, "prompt": job.prompt.prompt, "label": job.label, "done": job.done,
        "total": job.total, "seconds_left": job.seconds_left(), "sentence": job.sentence, "ahead": jobs.ahead(job),
    }  # fmt: skip
