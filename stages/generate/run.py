"""One run of `musicldm generate`, from what was asked for to finished clips.

Knows no network until clips have to be made, so that mistakes and finished runs cost no time.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stages.errors import DataError, GateError, MusicldmError, UsageError
from stages.generate.choose import (
    Model,
    Options,
    Project,
    Say,
    choose_few_steps,
    choose_settings,
    find_model,
    nobody,
    prompt_defaults,
)
from stages.generate.edit import Edit, EditOptions
from stages.generate.manifest import Target, output_folder, plan_clips
from stages.generate.prompts import BadRow, Defaults, Prompt, read_prompts, takes, typed_prompt
from stages.generate.settings import (
    FEW_STEPS,
    LONGEST_SECONDS,
    LONGEST_STREAM_SECONDS,
    Settings,
    check_backend,
)
from stages.layout import Layout
from stages.params import Audio
from stages.progress import Progress, silent
from stages.store import model_digest

if TYPE_CHECKING:
    from stages.generate.gate import Gate
    from stages.generate.pipeline import Pipeline


class GateChoice(Protocol):
    """A novelty gate that is not loaded yet (stages.evaluate.gating)."""

    def identity(self) -> dict[str, Any]: ...
    def make(self, audio: Audio) -> "Gate": ...


@dataclass(frozen=True)
class Request:
    """What was asked for: a prompt or a file of them, the model, how to sample, an edit, and where clips go.

    Raises UsageError for a stream of what cannot be streamed.
    """

    target: Target
    text: str | None = None
    prompts: Path | None = None
    takes: int = 1
    limit: int | None = None
    model: str | None = None
    backend: str = "auto"
    options: Options = field(default_factory=Options)
    edit: EditOptions = field(default_factory=EditOptions)
    is_gated: bool = False
    plot: bool = False

    def __post_init__(self) -> None:
        refused = {
            "a file of prompts": self.text is None,
            "--takes": self.takes > 1,
            "--plot": self.plot,
            "--candidates": self.options.candidates is not None,
            "a novelty gate": self.is_gated,
            "an edit": self.edit.kind is not None,
        }
        given = next((name for name, is_given in refused.items() if is_given), None)
        if self.target.stdout and given is not None:
            raise UsageError(f"--out - streams one PROMPT; it does not go with {given}.")


@dataclass(frozen=True)
class Made:
    """The clips of a run: all manifest rows, those of new clips, ids of prompts that CLAP's tokenizer cut, rows of the
    prompts file that were left out, and the seconds that making took."""

    rows: list[dict[str, Any]]
    new: list[dict[str, Any]]
    cut: list[str]
    bad: list[BadRow]
    seconds_taken: float

    def fault(self) -> MusicldmError | None:
        """DataError for rows that were left out, GateError for clips that no try brought past the gate."""
        if self.bad:
            listed = "\n".join(f"  line {row.line}: {row.reason}" for row in self.bad)
            return DataError(
                f"{len(self.bad)} row(s) of the prompts file were left out, the other {len(self.rows)} done:\n{listed}",
                "Correct these rows and run the same command again; the finished clips are kept.",
            )
        close = [row for row in self.rows if row.get("too_close")]
        if not close:
            return None
        listed = "\n".join(f"  {row['file']}: {row['similarity']:.4f} to {row['nearest']}" for row in close)
        return GateError(
            f"{len(close)} of {len(self.rows)} clips have a similarity of {close[0]['max_similarity']:g} or more to a "
            f"training clip, whichever of {close[0]['tries']} seeds; the least near are kept and marked:\n{listed}",
            "Give more --tries, --avoid-copies 1, another prompt, or a higher --max-similarity.",
        )


@dataclass(frozen=True)
class Run:
    """A request with all that decides its clips. `say` gets sentences for people."""

    request: Request
    model: Model
    settings: Settings
    prompts: list[Prompt]
    bad: list[BadRow] = field(default_factory=list)
    edit: Edit | None = None
    say: Say = nobody

    @cached_property
    def digest(self) -> str:
        return model_digest(self.model.folder)

    def files(self, gate: GateChoice | None = None, progress: Progress = silent) -> Made:
        """Make the clips that are not there. Raises DataError for a folder or an index that cannot be used."""
        target, plot = self.request.target, self.request.plot
        also = ({} if self.edit is None else self.edit.identity()) | ({} if gate is None else gate.identity())
        plan = plan_clips(self.prompts, self.settings, target.folder, target.suffix, plot, self.digest, also)
        if not plan.todo:  # no network is loaded, which takes most of a short command's time
            return Made([plan.rows[prompt.id] for prompt in self.prompts], [], [], self.bad, 0.0)
        with output_folder(target.folder):
            from stages.generate.batch import generate_files

            loaded = None if gate is None else gate.make(self.model.params.audio)
            pipeline = self._load()
            cut = self._cut(pipeline, plan.todo)
            started = time.perf_counter()
            rows, new = generate_files(
                pipeline, self.prompts, self.settings, target.folder, target.suffix, plot,
                self.model.sampling.batch_size, progress, self.edit, loaded,
            )  # fmt: skip
        return Made(rows, new, cut, self.bad, time.perf_counter() - started)

    def stream(self, progress: Progress = silent) -> Iterator[bytes]:
        """The sound of the one prompt, piece by piece."""
        from stages.generate.stream import stream_bytes

        pipeline = self._load()
        self._cut(pipeline, self.prompts)
        yield from stream_bytes(pipeline, self.prompts[0], self.settings, self.request.target.suffix, progress)

    def _load(self) -> "Pipeline":
        from stages.generate.backends import load_pipeline

        self.say(f"Model: {self.model.about}.")
        pipeline, backend = load_pipeline(self.model.folder, self.settings.sampler == FEW_STEPS, self.request.backend)
        self.say(f"Backend: {backend.name} ({backend.why}).")
        return pipeline

    def _cut(self, pipeline: "Pipeline", prompts: list[Prompt]) -> list[str]:
        """Say which prompts are longer than what CLAP reads; returns their ids."""
        cut = [prompt.id for prompt in prompts if pipeline.truncated(prompt.prompt)]
        if cut:
            limit = pipeline.params.clap.text.max_tokens
            self.say(f"The model reads {limit} tokens of a prompt; the rest was left out of: {', '.join(cut[:5])}.")
        return cut


def prepare(request: Request, project: Project, say: Say = nobody) -> Run:
    """Choose the model, the settings and the prompts of a request.

    Raises UsageError for what cannot be, ModelError where there is no model, DataError for unusable files.
    """
    check_backend(request.backend)
    options, stdout = request.options, request.target.stdout
    if stdout:
        options = replace(options, candidates=1)
    model = find_model(request.model, project, say)
    settings = choose_settings(model, options)
    edit = request.edit.make(model.params, say)
    defaults = prompt_defaults(model, options, edit, LONGEST_STREAM_SECONDS if stdout else LONGEST_SECONDS)
    prompts, bad = _prompts(request, model, project.layout, defaults)
    settings, prompts = choose_few_steps(model, options, settings, prompts, edit)
    if settings.sampler == FEW_STEPS:
        say(f"Sampler: few-steps ({settings.steps} steps, by the model's own weights for them).")
    prompts = request.target.named([request.edit.worded(prompt) for prompt in prompts])
    return Run(request, model, settings, prompts, bad, edit, say)


def _prompts(request: Request, model: Model, layout: Layout, defaults: Defaults) -> tuple[list[Prompt], list[BadRow]]:
    """The typed prompt, those of the file, or those of the test split; each as often as it is to be taken."""
    file, limit = request.prompts, request.limit
    if request.text is not None:
        if file is not None or limit is not None:
            raise UsageError("A PROMPT stands alone: leave out --prompts and --limit.")
        seeds = range(defaults.seed, defaults.seed + request.takes)
        return [typed_prompt(request.text, replace(defaults, seed=seed)) for seed in seeds], []
    tests = layout.captions / "prompts.csv"
    if file is None and not tests.exists():
        raise UsageError(f"There is no prompt, and no {tests}.", 'Type one: musicldm generate "dramatic trailer"')
    of_tests = file is None or file.resolve() == tests.resolve()
    prompts, bad = read_prompts(file or tests, defaults, of_tests)
    if limit is None and of_tests:
        limit = model.sampling.max_prompts
    return takes(prompts[:limit], request.takes), bad
