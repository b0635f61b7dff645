"""Many prompts to a folder of audio files and its manifest.jsonl; a run that was stopped goes on."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from stages.audio import io as audio_io
from stages.generate.edit import Init, steps_taken
from stages.generate.manifest import MANIFEST, Settings, make_folder, plan_clips
from stages.generate.manifest import read_manifest as read_manifest
from stages.generate.pipeline import Clip, Pipeline
from stages.generate.plots import one_line, save_spectrogram
from stages.generate.prompts import Prompt
from stages.progress import Progress, silent
from stages.store import write_jsonl

DIGITS = 6  # of scores and seconds in the manifest
COMMENT_LENGTH = 500  # characters of the prompt in a file's metadata


def generate_files(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    settings: Settings,
    out: Path,
    suffix: str = "wav",
    plot: bool = False,
    batch_size: int = 1,
    progress: Progress = silent,
    init: Init | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write `<id>.<suffix>` and a manifest row for every prompt; returns their rows, and those of new clips.

    A clip that is there already (`plan_clips`) is skipped. The manifest is written anew, atomically, after every
    batch, so an interruption loses the running batch only.
    """
    also = {} if init is None else init.identity()
    plan = plan_clips(prompts, settings, out, suffix, plot, pipeline.digest, also)
    _check(pipeline, prompts, settings)
    make_folder(out)
    rows, wanted, todo = plan.rows, plan.wanted, plan.todo
    steps_each = len(pipeline.timesteps(settings))
    if init is not None:
        steps_each = steps_taken(steps_each, init.strength)
    total = len(todo) * settings.candidates * steps_each
    steps = 0

    def on_steps(count: int) -> None:
        nonlocal steps
        steps += count
        progress("Denoising steps", steps, total)

    finished = 0
    progress("Clips", 0, len(todo))
    for batch in _batches(pipeline, todo, settings.candidates, batch_size):
        started = time.perf_counter()
        clips = make_clips(pipeline, batch, settings, batch_size, on_steps, init)
        taken = (time.perf_counter() - started) / len(batch)
        for clip in clips:
            row = wanted[clip.prompt.id] | _outcome(clip, taken)
            write_clip(out / row["file"], clip, pipeline.params.audio.sample_rate)
            if plot:
                title = f"{clip.prompt.prompt}  (seed {clip.prompt.seed})"
                save_spectrogram((out / row["file"]).with_suffix(".png"), clip.waveform, pipeline.params, title)
            rows[clip.prompt.id] = row
        write_jsonl(out / MANIFEST, list(rows.values()))
        finished += len(batch)
        progress("Clips", finished, len(todo))
    return [rows[prompt.id] for prompt in prompts], [rows[prompt.id] for prompt in todo]


def make_clips(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    settings: Settings,
    batch_size: int = 1,
    on_steps: Callable[[int], None] = lambda _: None,
    init: Init | None = None,
) -> list[Clip]:
    """The best clip of every prompt (all of one length); candidates share batches of at most `batch_size`.

    `on_steps(n)` is called after each denoising step of n clips.
    """
    size = _at_once(pipeline, batch_size)
    tries = [(prompt, k) for prompt in prompts for k in range(settings.candidates)]
    waveforms = []
    for start in range(0, len(tries), size):
        part, counts = zip(*tries[start : start + size], strict=True)
        waveforms.append(pipeline.waveforms(part, counts, settings, partial(on_steps, len(part)), init))
    by_prompt = torch.cat(waveforms).unflatten(0, (len(prompts), settings.candidates))
    return [pipeline.best(prompt, found) for prompt, found in zip(prompts, by_prompt, strict=True)]


def write_clip(path: Path, clip: Clip, sample_rate: int) -> None:
    """16-bit mono audio (Vorbis for .ogg) with prompt and seed in its comment; equal clips give equal bytes."""
    prompt = clip.prompt
    comment = f"{one_line(prompt.prompt, COMMENT_LENGTH)} (made by musicldm; seed {prompt.seed})"
    audio_io.write(path, clip.waveform.numpy(), sample_rate, comment)


def _check(pipeline: Pipeline, prompts: Sequence[Prompt], settings: Settings) -> None:
    """Refuse what cannot be done before any clip is made."""
    pipeline.timesteps(settings)
    for prompt in prompts:
        pipeline.latent_frames(prompt.seconds)


def _batches(pipeline: Pipeline, prompts: Sequence[Prompt], candidates: int, batch_size: int) -> Iterator[list[Prompt]]:
    """Prompts of one length, guided or not, in order."""

    def kind(prompt: Prompt) -> tuple[float, bool]:
        return prompt.seconds, prompt.guidance == 1

    size = max(1, _at_once(pipeline, batch_size) // candidates)
    for _, group in groupby(sorted(prompts, key=kind), key=kind):
        same = list(group)
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _at_once(pipeline: Pipeline, batch_size: int) -> int:
    """On a CPU one by one: a batch gains no time there, and its size would change a clip's last bits."""
    return 1 if pipeline.device.type == "cpu" else batch_size


def _outcome(clip: Clip, seconds_taken: float) -> dict[str, Any]:
    return {
        "clap_score": round(clip.clap_score, DIGITS),
        "candidate": clip.candidate,
        "gain": round(clip.gain, DIGITS),
        "seconds_taken": round(seconds_taken, DIGITS),
    }
