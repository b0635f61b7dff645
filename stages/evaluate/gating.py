"""Which index of training music the novelty gate of `musicldm generate` looks through.

Knows no network, so that a mistake is reported before one is loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import DataError, UsageError
from stages.generate.choose import Project
from stages.generate.manifest import gate_identity
from stages.generate.settings import check_gate
from stages.params import Audio
from stages.progress import Progress, silent

if TYPE_CHECKING:
    from stages.generate.gate import Gate

DEFAULT_TRIES = 5


@dataclass(frozen=True)
class IndexGate:
    """A gate that looks through `index` with whichever of the CLAP folders made it."""

    index: Path
    claps: list[Path]
    most: float | None
    tries: int

    def identity(self) -> dict[str, Any]:
        """What of the gate decides the clips. Raises DataError when the index cannot be read."""
        from stages.evaluate.nearest import index_digest

        return gate_identity(index_digest(self.index), self.most, self.tries)

    def make(self, audio: Audio) -> "Gate":
        """Raises DataError when the index is not one of the model's CLAP, or of other preprocessing."""
        from stages.evaluate.nearest import NearestTraining, index_digest
        from stages.generate.gate import Gate

        return Gate(NearestTraining(self.index, self.claps, audio), index_digest(self.index), self.most, self.tries)


@dataclass(frozen=True)
class GateOptions:
    """How near to the training music a clip may be, and where that music's index is; None is not given.

    Raises UsageError, and DataError for an index that is not there.
    """

    most: float | None = None
    index: Path | None = None
    tries: int | None = None
    avoid: float = 0.0

    def __post_init__(self) -> None:
        if self.tries is not None and self.most is None:
            raise UsageError("--tries belongs to --max-similarity.")
        if self.index is not None and not (self.index / "index.json").is_file():
            raise DataError(f"{self.index} is no index of training music.", "Make one: musicldm eval index --out DIR")
        check_gate(self.most, DEFAULT_TRIES if self.tries is None else self.tries)

    @property
    def wanted(self) -> bool:
        return self.most is not None or self.index is not None or self.avoid > 0

    def choose(self, project: Project, model: Path, progress: Progress = silent) -> IndexGate | None:
        """The gate of the named index, else of the project's training shards, whose index is built if need be.

        Raises DataError when there are no shards.
        """
        if not self.wanted:
            return None
        layout = project.layout
        claps = [layout.clap, model]
        index = self.index or _training_index(project, next(path for path in claps if path.is_dir()), progress)
        return IndexGate(index, claps, self.most, DEFAULT_TRIES if self.tries is None else self.tries)


def _training_index(project: Project, clap: Path, progress: Progress) -> Path:
    layout = project.layout
    if not layout.shards.is_dir():
        raise DataError(
            f"There is no training music in {layout.shards} to compare clips with.",
            "Name its index, made by `musicldm eval index`: --index DIR",
        )
    from stages.evaluate.run import index_training

    return index_training(layout.shards, clap, project.params, None, layout.metrics / "cache", progress=progress)[0]
