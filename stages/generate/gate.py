"""The novelty gate: no clip goes out that is too close to the training music, as far as other seeds can help it.

How near a clip is, its caller says by a function (`musicldm eval index` keeps the training set); here is what
follows from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stages.generate.manifest import gate_identity
from stages.generate.samplers import Away, Denoiser, Diffusion
from stages.generate.settings import check_gate

if TYPE_CHECKING:
    from stages.generate.pipeline import Clip

STEER_AT = (0.25, 0.5, 0.75)  # shares of the steps behind which the nearest training clip is looked for


@dataclass(frozen=True)
class Neighbour:
    """The training clip nearest to a generated one: its track, where it starts there, the CLAP cosine of the two
    and its own CLAP embedding (D,)."""

    track: str
    start_seconds: float
    similarity: float
    vector: Tensor


Nearest = Callable[[Tensor], Neighbour]
"""Waveform (L,) float32 at the model's rate -> the nearest training clip to any of its windows."""


@dataclass(frozen=True)
class Gate:
    """Look up each clip's neighbour; where its similarity reaches `most`, make the clip again, `tries` times in all.

    `digest` names the index; `most` None only looks. Raises UsageError for impossible settings.
    """

    nearest: Nearest
    digest: str
    most: float | None = None
    tries: int = 1

    def __post_init__(self) -> None:
        check_gate(self.most, self.tries)

    def identity(self) -> dict[str, Any]:
        return gate_identity(self.digest, self.most, self.tries)

    def choose(self, ranked: Sequence["Clip"]) -> "Clip":
        """The first of one prompt's clips that is not too close, else the least close of them."""
        looked: list[Clip] = []
        for clip in ranked:
            found = self.nearest(clip.waveform)
            looked.append(replace(clip, neighbour=found, too_close=self.too_close(found)))
            if not looked[-1].too_close:
                return looked[-1]
        return min(looked, key=similarity)

    def too_close(self, found: Neighbour) -> bool:
        return self.most is not None and found.similarity >= self.most


def similarity(clip: "Clip") -> float:
    return -1.0 if clip.neighbour is None else clip.neighbour.similarity


def steered(
    predict: Denoiser, away: Away, like: Callable[[Tensor], Tensor], process: Diffusion, times: Tensor
) -> Denoiser:
    """Anti-memorisation guidance: steer away from the training clip that the music is turning out to be near to.

    At a few of the `times` the latents that the prediction stands for are listened to; from there on guidance
    subtracts its direction towards the nearest training clip, whose CLAP embedding is the very condition that the
    network was trained to make that clip from (cf. Chen et al. 2024, "Towards Memorization-Free Diffusion Models").
    `like(latents) -> (B, D)`.
    """
    checks = {int(times[int(share * len(times))]) for share in STEER_AT}

    def predict_away(x: Tensor, timestep: Tensor) -> Tensor:
        predicted = predict(x, timestep)
        if int(timestep) not in checks:
            return predicted
        away.condition = like(process.clean(x, timestep, predicted))
        return predict(x, timestep)

    return predict_away
