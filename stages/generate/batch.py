"""Many prompts to a folder of audio files and its manifest.jsonl; a run that was stopped goes on."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.audio import io as audio_io
from stages.generate.edit import Edit
from stages.generate.gate import Gate, similarity
from stages.generate.manifest import clip_identity, output_folder, plan_clips, shared_rows
from stages.generate.pipeline import Clip, Pipeline
from stages.generate.plots import one_line, save_spectrogram
from stages.generate.prompts import Prompt
from stages.generate.samplers import steps_taken
from stages.generate.settings import Settings, check_steps, length_check
from stages.progress import Progress, silent

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
    edit: Edit | None = None,
    gate: Gate | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write `<id>.<suffix>` and a manifest row for every prompt; returns their rows, and those of new clips.

    A clip that is there already (`plan_clips`) is skipped. The rows of a batch go into the manifest when it is done,
    beside those of other runs, so an interruption loses the running batch only. With a `gate` a row names the nearest
    training clip, and is marked `too_close` where no try passed; the nearest-to-passing clip is kept.
    """
    plan = plan_clips(prompts, settings, out, suffix, plot, pipeline.digest, also(edit, gate))
    _check(pipeline, prompts, settings, edit)
    rows, todo = plan.rows, plan.todo
    steps_each = steps_taken(len(pipeline.timesteps(settings)), 1.0 if edit is None else edit.strength)
    total = len(todo) * settings.candidates * steps_each
    steps = finished = 0

    def on_steps(count: int) -> None:
        nonlocal steps
        steps += count
        progress("Denoising steps", steps, max(steps, total))  # more than planned where the gate asks for other seeds

    progress("Clips", 0, len(todo))
    with output_folder(out):
        for batch in _batches(pipeline, todo, settings.candidates, batch_size):
            started = time.perf_counter()
            clips = make_clips(pipeline, batch, settings, batch_size, on_steps, edit, gate)
            taken = (time.perf_counter() - started) / len(batch)
            with shared_rows(out) as shared:
                for clip in clips:
                    row = plan.wanted[clip.prompt.id] | _outcome(clip, taken)
                    write_clip(out / row["file"], clip.waveform, pipeline.params.audio.sample_rate, row)
                    if plot:
                        title = f"{clip.prompt.prompt}  (seed {clip.prompt.seed})"
                        save_spectrogram((out / row["file"]).with_suffix(".png"), clip.waveform, pipeline.params, title)
                    rows[clip.prompt.id] = shared[clip.prompt.id] = row
            finished += len(batch)
            progress("Clips", finished, len(todo))
    return [rows[prompt.id] for prompt in prompts], [rows[prompt.id] for prompt in todo]


def make_clips(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    settings: Settings,
    batch_size: int = 1,
    on_steps: Callable[[int], None] = lambda _: None,
    edit: Edit | None = None,
    gate: Gate | None = None,
) -> list[Clip]:
    """The best clip of every prompt (all of one length): of its candidates the one CLAP likes best, and that passes
    the gate; prompts of which none does have more candidates made, as long as the gate has tries.

    `on_steps(n)` is called after each denoising step of n clips.
    """
    best: dict[str, Clip] = {}
    waiting = list(prompts)
    for attempt in range(1 if gate is None or gate.most is None else gate.tries):
        for prompt, ranked in _candidates(pipeline, waiting, attempt, settings, batch_size, on_steps, edit, gate):
            clip = ranked[0] if gate is None else gate.choose(ranked)
            best[prompt.id] = min(best.get(prompt.id, clip), clip, key=similarity)
        waiting = [prompt for prompt in waiting if best[prompt.id].too_close]
        if not waiting:
            break
    return [best[prompt.id] for prompt in prompts]


def _candidates(
    pipeline: Pipeline, prompts: Sequence[Prompt], attempt: int, settings: Settings, batch_size: int,
    on_steps: Callable[[int], None], edit: Edit | None, gate: Gate | None,
) -> Iterator[tuple[Prompt, list[Clip]]]:  # fmt: skip
    """Each prompt with its candidates of one attempt, best first; they share batches of at most `batch_size`."""
    size, first = _at_once(pipeline, batch_size), attempt * settings.candidates
    tries = [(prompt, first + k) for prompt in prompts for k in range(settings.candidates)]
    nearest = None if gate is None else gate.nearest
    waveforms = []
    for start in range(0, len(tries), size):
        part, counts = zip(*tries[start : start + size], strict=True)
        waveforms.append(pipeline.waveforms(part, counts, settings, partial(on_steps, len(part)), edit, nearest))
    by_prompt = torch.cat(waveforms).unflatten(0, (len(prompts), settings.candidates))
    for prompt, found in zip(prompts, by_prompt, strict=True):
        ranked = pipeline.ranked(prompt, found, edit)
        yield prompt, [replace(clip, candidate=first + clip.candidate) for clip in ranked]


def also(edit: Edit | None, gate: Gate | None) -> dict[str, Any]:
    """What beside prompt and settings decides the clips."""
    return ({} if edit is None else edit.identity()) | ({} if gate is None else gate.identity())


def make_clip(
    pipeline: Pipeline, prompt: Prompt, settings: Settings, batch_size: int = 1
) -> tuple[Clip, dict[str, Any]]:
    """The best clip of one prompt, and its manifest row as a wav."""
    started = time.perf_counter()
    (clip,) = make_clips(pipeline, [prompt], settings, batch_size)
    outcome = _outcome(clip, time.perf_counter() - started)
    return clip, clip_identity(prompt, settings, "wav", pipeline.digest) | outcome


def write_clip(path: Path, waveform: Tensor, sample_rate: int, row: dict[str, Any]) -> None:
    """Mono audio of a waveform (L,), 16 bits in .wav and .flac, with what it was made from in its comment, as JSON: the
    manifest's `row`, long prompts cut, without the time it took; equal clips give equal bytes."""
    shown = {key: value for key, value in row.items() if key not in ("id", "file", "seconds_taken")}
    for key in ("prompt", "negative"):
        if shown.get(key):
            shown[key] = one_line(shown[key], COMMENT_LENGTH)
    comment = json.dumps({"made by": "musicldm"} | shown, ensure_ascii=False)
    audio_io.write(path, waveform.numpy(), sample_rate, comment)


def _check(pipeline: Pipeline, prompts: Sequence[Prompt], settings: Settings, edit: Edit | None) -> None:
    """Refuse what cannot be done before any clip is made."""
    check_steps(settings.steps, pipeline.scheduler)
    check = length_check(edit, pipeline.params.audio.sample_rate)
    for prompt in prompts:
        check(prompt.seconds)


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
    row: dict[str, Any] = {
        "clap_score": round(clip.clap_score, DIGITS),
        "candidate": clip.candidate,
        "gain": round(clip.gain, DIGITS),
        "seconds_taken": round(seconds_taken, DIGITS),
    }
    if clip.neighbour is not None:
        row["nearest"], row["nearest_start_seconds"] = clip.neighbour.track, round(clip.neighbour.start_seconds, 3)
        row["similarity"], row["too_close"] = round(clip.neighbour.similarity, DIGITS), clip.too_close
    return row
