"""Which model a run uses and how it samples: the model's card first, then the keys that the user wrote in
params.yaml, then the options of the call.

Knows no network, so that a mistake is reported before one is loaded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import params as parameters
from stages.errors import ModelError, UsageError
from stages.generate.prompts import Defaults, Prompt, typed_prompt
from stages.generate.settings import (
    DDIM,
    FEW_STEPS,
    LONGEST_SECONDS,
    WHOLE,
    Settings,
    automatic_reuse,
    check_steps,
    few_steps,
    length_check,
    read_scheduler,
)
from stages.layout import Layout
from stages.params import Generate, Params
from stages.store import model_card, model_params

if TYPE_CHECKING:
    from stages.generate.edit import Edit

Say = Callable[[str], object]
"""Called with a sentence for people."""


def nobody(_: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Project:
    """Where a call is made: its parameters, the `section.key=value` overrides among them, whether a params.yaml says
    them, and its work folder."""

    params: Params
    layout: Layout
    overrides: Sequence[str] = ()
    written: bool = False

    def sampling(self, folder: Path, model: Params) -> tuple[Generate, set[str]]:
        """How to sample with the model in `folder`, and which keys of that were said here, not by its own card.

        To the model trained in this project all of its params.yaml applies, which may have changed since; to another
        one only what params.yaml changes against its preset, and the overrides.
        """
        said = parameters.said_of_sampling(self.params, self.overrides)
        own = self.written and folder == self.layout.ldm and model.preset == self.params.preset
        return self.params.generate if own else parameters.sampling(model, self.params, said), said


def no_project(layout: Layout | None = None) -> Project:
    """For calls that heed no params.yaml."""
    return Project(parameters.preset(parameters.DEFAULT_PRESET), layout or Layout())


@dataclass(frozen=True)
class Options:
    """What one call says about sampling; None is as the model does. Raises UsageError for what no model can do."""

    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_interval: tuple[float, float] | None = None
    eta: float | None = None
    reuse: int | None = None
    candidates: int | None = None
    negative: str | None = None
    seed: int | None = None
    seconds: float | None = None
    avoid: float = 0.0

    def __post_init__(self) -> None:
        if self.guidance is not None and not 0 <= self.guidance < float("inf"):
            raise UsageError(f"--guidance {self.guidance:g} is no weight from 0 on.")
        counts = [1 if count is None else count for count in (self.steps, self.candidates, self.reuse)]
        interval = self.guidance_interval or WHOLE
        Settings(self.sampler or DDIM, counts[0], self.eta or 0.0, counts[1], interval, self.avoid, counts[2])


@dataclass(frozen=True)
class Model:
    """A pipeline folder, its card, the parameters it was trained with, how to sample with it, and which keys of that
    were said by the project."""

    folder: Path
    card: dict[str, Any]
    params: Params
    sampling: Generate
    said: set[str]

    @property
    def about(self) -> str:
        steps = f", {self.card['steps']} steps" if "steps" in self.card else ""
        return f"{self.folder} (preset {self.params.preset}{steps})"


def open_model(folder: Path, project: Project) -> Model:
    """Raises ModelError where `folder` is no pipeline."""
    params = model_params(folder, "ldm")
    return Model(folder, model_card(folder), params, *project.sampling(folder, params))


def find_model(name: str | None, project: Project, say: Say = nobody) -> Model:
    """The model of a folder, a hub id or the word `shipped`; None: the project's own, else the shipped one.

    One of the hub is fetched and imported at its first use, and its licence said. Raises ModelError.
    """
    from stages.weights import shipped

    if name == shipped.NAME:
        folder = shipped.SHIPPED
    elif name is None:
        folder = shipped.default_pipeline(project.layout)
        if folder == shipped.SHIPPED:
            say(f"The model that comes with musicldm; none was trained at {project.layout.ldm}.")
    else:
        from stages.weights.hub import resolve_model

        folder, licence = resolve_model(name, project.layout.models)
        if licence is not None:
            say(licence)
    return open_model(folder, project)


def choose_settings(model: Model, options: Options) -> Settings:
    """The options, and the model's sampling for the rest. Raises UsageError for what the model cannot do."""
    chosen: dict[str, Any] = {}
    for key in parameters.SAMPLING:
        option = getattr(options, key)
        chosen[key] = getattr(model.sampling, key) if option is None else option
    if chosen["reuse"] is None:
        chosen["reuse"] = automatic_reuse(chosen["steps"])
    if options.eta is None and chosen["sampler"] != DDIM:
        chosen["eta"] = 0.0
    del chosen["guidance"]  # of each prompt
    check_steps(chosen["steps"], read_scheduler(model.folder))
    low, high = chosen.pop("guidance_interval")
    return Settings(**chosen, interval=(low, high), avoid=options.avoid)


def prompt_defaults(
    model: Model, options: Options, edit: "Edit | None" = None, longest: float = LONGEST_SECONDS
) -> Defaults:
    """What a clip is unless its row says otherwise; `longest` in seconds. Raises UsageError for the length."""
    audio = model.params.audio
    check, seconds = length_check(edit, audio.sample_rate, longest), options.seconds
    if seconds is not None:
        check(seconds)
    elif edit is not None:
        seconds = edit.seconds(None, audio.clip_seconds)
    return Defaults(
        model.sampling.seed if options.seed is None else options.seed,
        options.negative,
        model.sampling.guidance if options.guidance is None else options.guidance,
        audio.clip_seconds if seconds is None else seconds,
        check,
    )


def choose_few_steps(
    model: Model, options: Options, settings: Settings, prompts: list[Prompt], edit: "Edit | None" = None
) -> tuple[Settings, list[Prompt]]:
    """The settings and prompts of the model's few-step weights where they are asked for, or where the model has them
    and nothing is asked for that they cannot do; else as they were.

    Raises UsageError for what they cannot do, ModelError where they are asked for and missing.
    """
    guidance = model.sampling.guidance if options.guidance is None else options.guidance
    asked = {
        "--steps": options.steps is not None,
        "--guidance": options.guidance is not None,
        "--guidance-interval": options.guidance_interval is not None,
        "--eta": options.eta is not None,
        "--reuse": options.reuse is not None,
        "--negative": options.negative is not None,
        "--avoid-copies": options.avoid > 0,
        "a column guidance or negative": any((p.guidance, p.negative) != (guidance, None) for p in prompts),
    }
    refused = next((name for name, is_asked in asked.items() if is_asked), None)
    if settings.sampler != FEW_STEPS and (options.sampler or refused or model.said - {"candidates"} or edit):
        return settings, prompts
    count = few_steps(model.folder)
    if settings.sampler == FEW_STEPS:
        if refused is not None:
            raise UsageError(
                f"{refused} does not go with the sampler few-steps: steps and guidance are in its weights."
            )
        if count is None:
            raise ModelError(f"{model.folder} has no weights for few steps.", "Train them: musicldm train few-steps")
    if count is None:
        return settings, prompts
    return settings.in_few_steps(count), [replace(prompt, guidance=1.0) for prompt in prompts]


def choose_clip(model: Model, text: str, options: Options) -> tuple[Settings, Prompt]:
    """All that decides the clip of one prompt. Raises UsageError, and ModelError as `choose_few_steps`."""
    settings = choose_settings(model, options)
    prompts = [typed_prompt(text, prompt_defaults(model, options))]
    settings, (prompt,) = choose_few_steps(model, options, settings, prompts)
    return settings, prompt
