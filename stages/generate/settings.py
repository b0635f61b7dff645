"""What the clips of a run share, and what of it cannot be.

Knows no network, so that a mistake is told before one is loaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import MissingDependencyError, ModelError, UsageError
from stages.store import model_card, read_config

if TYPE_CHECKING:
    from stages.generate.edit import Edit

DDIM = "ddim"
SAMPLERS = {
    DDIM: "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}
FEW_STEPS = "few-steps"  # DDIM without guidance, by the weights and at the times of `train few-steps`
BACKENDS = ("auto", "eager", "bf16", "openvino")
SCHEDULER = Path("scheduler/scheduler_config.json")
WHOLE = (0.0, 1.0)
MOST_REUSE = 4  # steps that one computation of the UNet's inner blocks serves, unless more are asked for
WHOLE_STEPS = 50  # that are left at least: where steps are few, neighbours differ too much
LONGEST_SECONDS = 600.0
MOST_DIFFUSION_STEPS = 100_000
LONGEST_STREAM_SECONDS = 86_400.0


@dataclass(frozen=True)
class Settings:
    """What all clips of one run share. Raises UsageError for what cannot be with any model.

    `eta` is DDIM's share of fresh noise (its paper's eq. 16); `candidates` clips compete by CLAP; guidance acts where
    t / T lies in `interval`; `avoid` is the weight that steers away from the nearest training clip; every `reuse`-th
    step computes the UNet's inner blocks.
    """

    sampler: str
    steps: int
    eta: float
    candidates: int
    interval: tuple[float, float] = WHOLE
    avoid: float = 0.0
    reuse: int = 1

    def __post_init__(self) -> None:
        low, high = self.interval
        if self.sampler not in (*SAMPLERS, FEW_STEPS):
            raise UsageError(f"--sampler {self.sampler} is none of {', '.join((*SAMPLERS, FEW_STEPS))}.")
        for name, count in (("steps", self.steps), ("candidates", self.candidates), ("reuse", self.reuse)):
            if count < 1:
                raise UsageError(f"--{name} {count} is less than 1.")
        if not 0 <= self.eta <= 1:
            raise UsageError(f"--eta {self.eta:g} is not between 0 and 1.")
        if self.eta > 0 and self.sampler != DDIM:
            raise UsageError(
                f"--eta belongs to the sampler ddim; {self.sampler} adds no noise.", "Leave it out, or take ddim."
            )
        if not 0 <= low < high <= 1:
            raise UsageError(
                f"--guidance-interval {low:g} {high:g} is not two shares between 0 and 1, the lower first."
            )
        if not 0 <= self.avoid < float("inf"):
            raise UsageError(f"--avoid-copies {self.avoid:g} is no weight from 0 on.")

    def in_few_steps(self, count: int) -> "Settings":
        """The same by a model's few-step weights, which hold the guidance."""
        return replace(self, sampler=FEW_STEPS, steps=count, interval=WHOLE, eta=0.0, reuse=1)


def automatic_reuse(steps: int) -> int:
    """Every which step computes the inner blocks when nobody says: from 1, every one, to MOST_REUSE."""
    return max(1, min(MOST_REUSE, steps // WHOLE_STEPS))


def read_scheduler(model: Path) -> dict[str, Any]:
    """The diffusion that a pipeline folder was trained for, as diffusers writes it. Raises ModelError."""
    again = "Train or import the model again."
    found = read_config(model / SCHEDULER, again)
    steps = found.get("num_train_timesteps")
    if type(steps) is not int or not 0 < steps <= MOST_DIFFUSION_STEPS:
        raise ModelError(f"{model / SCHEDULER} has num_train_timesteps {steps!r:.50}.", again)
    return found


def few_steps(model: Path) -> int | None:
    """How many steps the few-step weights of a pipeline folder take; None where it has none. Raises ModelError."""
    found = model_card(model, "ldm").get("few_steps")
    return None if found is None else int(found["params"]["steps"])


def check_steps(steps: int, scheduler: Mapping[str, Any]) -> None:
    """Raises UsageError for more than the diffusion has."""
    total = int(scheduler["num_train_timesteps"])
    if steps > total:
        raise UsageError(f"--steps {steps} is more than the model's {total} diffusion steps.")


def check_length(seconds: float, sample_rate: int, longest: float = LONGEST_SECONDS) -> None:
    """Raises UsageError for a length that is nothing, or beyond `longest`."""
    if not 0 < seconds <= longest or round(seconds * sample_rate) == 0:
        raise UsageError(f"--seconds {seconds:g} is not above 0 and at most {longest:g}.")


def length_check(edit: "Edit | None", sample_rate: int, longest: float = LONGEST_SECONDS) -> Callable[[float], object]:
    """What raises UsageError for a length (in seconds) that a run cannot make."""
    if edit is None:
        return partial(check_length, sample_rate=sample_rate, longest=longest)
    return partial(edit.seconds, clip_seconds=0.0)


def is_installed(backend: str) -> bool:
    return backend != "openvino" or find_spec("openvino") is not None


def check_backend(name: str) -> None:
    """Raises UsageError for an unknown name, MissingDependencyError for one that is not installed."""
    if name not in BACKENDS:
        raise UsageError(f"--backend {name} is none of {', '.join(BACKENDS)}.")
    if not is_installed(name):
        raise MissingDependencyError("OpenVINO is not installed.", "pip install 'musicldm[openvino]'")


def check_gate(most: float | None, tries: int) -> None:
    """Raises UsageError."""
    if most is not None and not 0 < most <= 1:
        raise UsageError(f"--max-similarity {most:g} is not above 0 and at most 1.")
    if tries < 1:
        raise UsageError(f"--tries {tries} is less than 1.")
