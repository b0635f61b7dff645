"""The studio's one worker: jobs of all browsers in one line, each browser's clips in a folder of its own."""

import hashlib
import json
import logging
import queue
import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.audio import io as audio_io
from stages.errors import DataError, ModelError, MusicldmError, UsageError
from stages.generate.backends import load_pipeline
from stages.generate.batch import generate_files
from stages.generate.choose import Options, Project, choose_clip, no_project, open_model
from stages.generate.edit import Init, make_sound
from stages.generate.manifest import MANIFEST, read_manifest
from stages.generate.pipeline import Pipeline
from stages.generate.plots import save_waveform_and_spectrogram
from stages.generate.prompts import Prompt
from stages.generate.settings import FEW_STEPS, SAMPLERS, Settings
from stages.progress import Progress
from stages.store import model_card, model_digest, write_json
from stages.web.http import number_field, text_field
from stages.web.neighbours import Neighbours
from stages.web.refused import Refused

LOGGER = logging.getLogger("musicldm.web")
WAITING_EACH, WAITING_ALL, KEPT_JOBS = 5, 40, 500
LONGEST_PROMPT, MOST_STEPS, MOST_CANDIDATES = 1000, 1000, 8
COMPARE = "Comparing with the training music"
FILE = re.compile(r"[0-9a-f]{16}(-near-[1-9])?\.(wav|png)")


class _Cancelled(Exception):
    """Raised inside the sampler by the progress callback."""


@dataclass(frozen=True)
class Upload:
    """A dropped file, decoded: samples (L,) at `sample_rate`."""

    samples: NDArray[np.float32]
    sample_rate: int


@dataclass
class Job:
    """One clip to make, and how far it is."""

    id: str
    owner: str
    model: str
    prompt: Prompt
    settings: Settings
    upload: Upload | None
    strength: float
    state: str = "queued"
    label: str = ""
    done: int = 0
    total: int = 0
    began: float = 0.0
    sentence: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    def seconds_left(self) -> float | None:
        if not self.done or self.state != "running":
            return None
        return (time.monotonic() - self.began) / self.done * (self.total - self.done)


class StudioQueue:
    """Makes the clips of `models` (folders by name) below `out`, one at a time, in the order they were asked for.

    What the form does not ask for is as each model's card and the `project` say.
    """

    def __init__(
        self, models: dict[str, Path], out: Path, shards: Path, cache: Path, project: Project | None = None
    ) -> None:
        self.models, self.out, self.shards, self.cache = models, out, shards, cache
        self.project = project or no_project()
        self._names = {model_digest(path): name for name, path in models.items()}
        self._jobs: dict[str, Job] = {}
        self._line: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pipeline: tuple[tuple[str, bool], Pipeline] | None = None
        self._neighbours: tuple[str, Neighbours] | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the running job at its next step, forget the waiting ones."""
        with self._lock:
            for job in self._jobs.values():
                job.stop.set()
        self._line.put(None)
        self._thread.join(30)

    def submit(self, owner: str, given: dict[str, Any], upload: Upload | None) -> Job:
        """Queue a clip. Raises Refused for impossible settings or a full queue."""
        job = _job(owner, given, upload, self.models, self.project)
        with self._lock:
            waiting = [j for j in self._jobs.values() if j.state in ("queued", "running")]
            if len(waiting) >= WAITING_ALL or sum(j.owner == owner for j in waiting) >= WAITING_EACH:
                raise Refused(429, "There is enough waiting already. Please wait for a clip, or cancel one.")
            for old in [j.id for j in self._jobs.values() if j not in waiting][: max(0, len(self._jobs) - KEPT_JOBS)]:
                del self._jobs[old]
            self._jobs[job.id] = job
        self._line.put(job)
        return job

    def find(self, owner: str, job_id: str) -> Job:
        """A browser's own job. Raises Refused (404) for another's, just as for one that never was."""
        job = self._jobs.get(job_id)
        if job is None or job.owner != owner:
            raise Refused(404, "There is no such clip in the making; the server may have been started anew.")
        return job

    def ahead(self, job: Job) -> int:
        """How many jobs come before this one."""
        with self._lock:
            before = list(self._jobs.values())
        return sum(j.state in ("queued", "running") for j in before[: before.index(job)]) if job in before else 0

    def cancel(self, job: Job) -> None:
        job.stop.set()
        if job.state == "queued":
            job.state = "cancelled"

    def waiting(self, owner: str) -> list[Job]:
        with self._lock:
            return [j for j in self._jobs.values() if j.owner == owner and j.state in ("queued", "running")]

    def history(self, owner: str) -> list[dict[str, Any]]:
        """A browser's finished clips, newest first: manifest row, name of the model (None: it is no longer here), and
        nearest neighbours (None: not compared)."""
        folder = self._folder(owner)
        if not (folder / MANIFEST).exists():
            return []
        return [
            {"row": row, "model": self._names.get(row["model_digest"]), "near": _read_near(folder, row["id"])}
            for row in reversed(read_manifest(folder))
        ]

    def file(self, owner: str, name: str) -> Path:
        """A file of a browser's own clips. Raises Refused (404)."""
        path = self._folder(owner) / name
        if not FILE.fullmatch(name) or not path.is_file():
            raise Refused(404, "There is no such file among your clips.")
        return path

    def _folder(self, owner: str) -> Path:
        return self.out / hashlib.sha256(owner.encode()).hexdigest()[:32]

    def _work(self) -> None:
        while (job := self._line.get()) is not None:
            if job.stop.is_set():
                job.state = "cancelled"
                continue
            job.state, job.began = "running", time.monotonic()
            try:
                self._make(job)
                job.state = "done"
            except _Cancelled:
                job.state = "cancelled"
            except MusicldmError as error:
                job.state, job.sentence = "failed", f"{error.message} {error.remedy}".strip()
                LOGGER.warning("clip %s failed: %s", job.id, job.sentence)
            except Exception:  # one clip's bug must not end the worker for all; it is shown and logged whole
                job.state, job.sentence = "failed", "The server made a mistake; its log says more."
                LOGGER.exception("clip %s failed", job.id)

    def _make(self, job: Job) -> None:
        def progress(label: str, done: int, total: int) -> None:
            if job.stop.is_set():
                raise _Cancelled
            if label != "Clips":
                if label != job.label:
                    job.began = time.monotonic()
                job.label, job.done, job.total = label, done, total

        job.label = "Loading the model"
        pipeline = self._load(job.model, job.settings.sampler == FEW_STEPS)
        progress("Beginning", 0, 0)
        init = None
        if job.upload is not None:
            rate = pipeline.params.audio.sample_rate
            samples = np.concatenate(list(audio_io.resample([job.upload.samples], job.upload.sample_rate, rate)))
            init = Init(make_sound(samples, rate), job.strength)
        folder = self._folder(job.owner)
        generate_files(pipeline, [job.prompt], job.settings, folder, progress=progress, edit=init)
        samples, _ = audio_io.read(folder / f"{job.id}.wav")
        waveform = torch.from_numpy(samples)
        save_waveform_and_spectrogram(folder / f"{job.id}.png", waveform, pipeline.params)
        if (self.shards / "index.json").exists():
            job.label, job.done, job.total = COMPARE, 0, 0
            self._compare(job, pipeline, waveform, folder, progress)

    def _compare(self, job: Job, pipeline: Pipeline, waveform: Tensor, folder: Path, progress: Progress) -> None:
        """Write what the clip is nearest to. The clip is there already, and stays when this fails or is cancelled."""
        try:
            near = self._near(job.model, pipeline, progress).write(waveform, folder / job.id)
        except _Cancelled:
            job.sentence = "The clip is kept; its comparison with the training music was cancelled."
        except MusicldmError as error:
            job.sentence = f"The clip could not be compared with the training music: {error.message}"
            LOGGER.warning("clip %s: %s", job.id, job.sentence)
        else:
            write_json(folder / f"{job.id}.near.json", near)

    def _load(self, model: str, few_steps: bool) -> Pipeline:
        if self._pipeline is None or self._pipeline[0] != (model, few_steps):
            self._pipeline = self._neighbours = None
            self._pipeline = (model, few_steps), load_pipeline(self.models[model], few_steps)[0]
        return self._pipeline[1]

    def _near(self, model: str, pipeline: Pipeline, progress: Progress) -> Neighbours:
        if self._neighbours is None or self._neighbours[0] != model:
            found = Neighbours(self.shards, self.models[model], pipeline.params, self.cache, progress)
            self._neighbours = (model, found)
        return self._neighbours[1]


def find_models(folders: Sequence[Path]) -> dict[str, Path]:
    """Pipelines by name: each of `folders`, or every `ldm` model inside it. Raises ModelError when there is none."""
    found: dict[str, Path] = {}
    for folder in folders:
        inside = sorted(folder.iterdir()) if folder.is_dir() and not (folder / "musicldm.json").exists() else [folder]
        for path in inside:
            if path.is_dir() and (path / "musicldm.json").exists() and model_card(path)["kind"] == "ldm":
                found[path.name if path.name not in found else str(path)] = path
    if not found:
        raise ModelError(f"There is no pipeline in {folders[0]}.", "Make one with: musicldm train ldm")
    return found


def _read_near(folder: Path, clip: str) -> list[dict[str, Any]] | None:
    path = folder / f"{clip}.near.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _job(owner: str, given: dict[str, Any], upload: Upload | None, models: dict[str, Path], project: Project) -> Job:
    model, sampler = text_field(given, "model"), text_field(given, "sampler")
    if model not in models:
        raise Refused(422, "There is no such model here.")
    if sampler not in (*SAMPLERS, FEW_STEPS):
        raise Refused(422, f"The sampler must be one of {', '.join((*SAMPLERS, FEW_STEPS))}.")
    text = text_field(given, "prompt")
    negative = None if given.get("negative") is None else text_field(given, "negative") or None
    if max(len(text), len(negative or "")) > LONGEST_PROMPT:
        raise Refused(422, f"A prompt has at most {LONGEST_PROMPT} characters.")
    seconds, guidance = number_field(given, "seconds", 0.1, 600), number_field(given, "guidance", 0, 100)
    seed = int(number_field(given, "seed", 0, 2**32 - 1, whole=True))
    steps = int(number_field(given, "steps", 1, MOST_STEPS, whole=True))
    candidates = int(number_field(given, "candidates", 1, MOST_CANDIDATES, whole=True))
    options = Options(sampler, steps, guidance, None, None, None, candidates, negative, seed, seconds)
    if sampler == FEW_STEPS:  # steps and guidance are in its weights
        options = replace(options, steps=None, guidance=None)
    try:
        settings, prompt = choose_clip(open_model(models[model], project), text, options)
    except (UsageError, DataError, ModelError) as error:
        raise Refused(422, error.message) from None
    job_id = secrets.token_hex(8)
    strength = number_field(given, "strength", 0, 1) if upload is not None else 1.0
    return Job(job_id, owner, model, replace(prompt, id=job_id), settings, upload, strength)
