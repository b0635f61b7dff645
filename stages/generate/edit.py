"""What an edit of music is: audio to audio, continuation, and inpainting of a time span; how stands in `canvas`.

Knows no network, so that a mistake is told before one is loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.audio import io as audio_io
from stages.errors import DataError, UsageError
from stages.generate.loop import Loop
from stages.generate.prompts import Prompt, with_tempo
from stages.generate.settings import LONGEST_SECONDS, check_length
from stages.params import Params

if TYPE_CHECKING:
    from stages.generate.canvas import Canvas
    from stages.generate.pipeline import Pipeline

SILENT_PEAK = 1e-4
SHORTEST_SPAN_SECONDS = 0.1
DEFAULT_STRENGTH = 0.5
LOOP: dict[str, Any] = {"bars": 4, "bpm": 120.0, "metre": 4}


class Edit(Protocol):
    """A way to make clips other than from noise alone."""

    @property
    def strength(self) -> float:
        """What share of the denoising steps it takes."""
        ...

    @property
    def keeps_samples(self) -> bool:
        """Whether the result holds samples of a file, which no gain may change; what is new then has its headroom."""
        ...

    def identity(self) -> dict[str, Any]:
        """What of it decides the clips, for the manifest."""
        ...

    def seconds(self, asked: float | None, clip_seconds: float) -> float:
        """The length of the result, `asked` being the length that was asked for. Raises UsageError."""
        ...

    def check(self, params: Params) -> None:
        """Raises UsageError or DataError for what a model of these parameters cannot do."""
        ...

    def canvas(self, pipeline: "Pipeline", seconds: float) -> "Canvas": ...


@dataclass(frozen=True)
class Sound:
    """A file's samples (L,) float32 within [-1, 1] at the model's rate, and their hash."""

    samples: NDArray[np.float32]
    sha256: str
    sample_rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


def read_sound(path: Path, sample_rate: int) -> Sound:
    """Mono at the model's rate; a file that is so already is taken sample by sample. Raises DataError."""
    levels = audio_io.Levels()
    samples, _ = audio_io.read(path, sample_rate, levels)
    if fault := levels.fault():
        raise DataError(f"{path} {fault}.", "Choose another file.")
    return make_sound(samples, sample_rate)


def make_sound(samples: ArrayLike, sample_rate: int) -> Sound:
    """Raises DataError for silence."""
    samples = np.asarray(samples, dtype=np.float32)
    if not len(samples) or float(np.abs(samples).max()) < SILENT_PEAK:
        raise DataError("The audio to begin from is silent.", "Choose another file.")
    digest = audio_io.SampleHash(sample_rate)
    digest.update(samples)
    return Sound(samples.clip(-1, 1), digest.hexdigest(), sample_rate)


@dataclass(frozen=True)
class Init:
    """A clip to begin from, and how far to leave it: `strength` 0 gives its reconstruction by VAE and vocoder, 1
    ignores it. Raises UsageError for a strength outside 0 to 1."""

    sound: Sound
    strength: float
    keeps_samples: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UsageError(f"--strength {self.strength:g} is not between 0 and 1.")

    def identity(self) -> dict[str, Any]:
        return {"init_sha256": self.sound.sha256, "strength": self.strength}

    def seconds(self, asked: float | None, clip_seconds: float) -> float:
        if asked is None:
            return clip_seconds
        check_length(asked, self.sound.sample_rate)
        return asked

    def check(self, params: Params) -> None:
        """Any file will do."""

    def canvas(self, pipeline: "Pipeline", seconds: float) -> "Canvas":
        from stages.generate.canvas import of_init

        return of_init(self, pipeline, seconds)


@dataclass(frozen=True)
class Continuation:
    """A file, and music that goes on where it ends; the result holds the file's samples, then the new ones."""

    sound: Sound
    strength: float = 1.0
    keeps_samples: bool = True

    def identity(self) -> dict[str, Any]:
        return {"continue_sha256": self.sound.sha256}

    def seconds(self, asked: float | None, clip_seconds: float) -> float:
        """By default one clip is added. Raises UsageError when nothing would be, or more than LONGEST_SECONDS."""
        if asked is None:
            return self.sound.seconds + clip_seconds
        if not 0.5 / self.sound.sample_rate < asked - self.sound.seconds <= LONGEST_SECONDS:
            raise UsageError(
                f"--seconds {asked:g} is the length of the whole result; the file of --continue has "
                f"{self.sound.seconds:.2f} s already, and at most {LONGEST_SECONDS:g} are added."
            )
        return asked

    def check(self, params: Params) -> None:
        """Raises DataError for a file that is shorter than a latent position."""
        if len(self.sound.samples) < params.position_samples:
            shortest = params.position_samples / params.audio.sample_rate
            raise DataError(f"The file of --continue is shorter than {shortest:g} s.", "Choose a longer one.")

    def canvas(self, pipeline: "Pipeline", seconds: float) -> "Canvas":
        from stages.generate.canvas import of_continuation

        return of_continuation(self, pipeline, seconds)


@dataclass(frozen=True)
class Inpainting:
    """A file of which the time span from `begin` to `end` seconds is made anew, and nothing else changes."""

    sound: Sound
    begin: float
    end: float
    strength: float = 1.0
    keeps_samples: bool = True

    def __post_init__(self) -> None:
        """Raises UsageError for a span that is not inside the file, too short, or all of it."""
        length = self.sound.seconds
        if not 0 <= self.begin < self.end <= length or self.end - self.begin < SHORTEST_SPAN_SECONDS:
            raise UsageError(
                f"--inpaint {self.begin:g}:{self.end:g} is no span of at least {SHORTEST_SPAN_SECONDS:g} s inside the "
                f"file's {length:.2f} s."
            )

    def identity(self) -> dict[str, Any]:
        return {"inpaint_sha256": self.sound.sha256, "inpaint_seconds": [self.begin, self.end]}

    def seconds(self, asked: float | None, clip_seconds: float) -> float:
        """That of the file. Raises UsageError when another was asked for."""
        if asked not in (None, self.sound.seconds):
            raise UsageError("--seconds does not go with --inpaint: the result is as long as its file.")
        return self.sound.seconds

    @property
    def span(self) -> tuple[int, int]:
        """First sample of the span, and the first behind it."""
        rate = self.sound.sample_rate
        return round(self.begin * rate), min(round(self.end * rate), len(self.sound.samples))

    def layout(self, params: Params) -> tuple[int, NDArray[np.bool_]]:
        """What a model works on: the span with music on both sides, at least a quarter of a clip where there is as
        much. Its first sample, and which of its latent positions in time are kept.

        Raises UsageError when none would be.
        """
        size, clip = params.position_samples, params.latent_shape[1]
        (begin, end), total = self.span, len(self.sound.samples)
        positions = max(clip, -(-(end - begin) // size) + clip // 2)
        origin = max(0, min(begin - (positions * size - (end - begin)) // 2, total - positions * size))
        first = origin + np.arange(positions) * size
        kept = ((first + size <= begin) | (first >= end)) & (first + size <= total)
        if not kept.any():
            raise UsageError(
                f"--inpaint leaves nothing of the file that is as long as {size / self.sound.sample_rate:g} s.",
                "Choose a shorter span.",
            )
        return origin, kept

    def check(self, params: Params) -> None:
        self.layout(params)

    def canvas(self, pipeline: "Pipeline", seconds: float) -> "Canvas":
        from stages.generate.canvas import of_inpainting

        return of_inpainting(self, pipeline)


def parse_inpaint(text: str) -> tuple[Path, float, float]:
    """`song.wav:12.5:15` -> (Path("song.wav"), 12.5, 15.0). Raises UsageError."""
    parts = text.rsplit(":", 2)
    try:
        return Path(parts[0]), float(parts[1]), float(parts[2])
    except (IndexError, ValueError):
        raise UsageError(
            f"--inpaint {text!r} is not FILE:START:END with START and END in seconds.", "E.g.: song.wav:12.5:15"
        ) from None


@dataclass(frozen=True)
class EditOptions:
    """At most one edit, with what belongs to it; None is not given.

    Raises UsageError for two edits at once, or for an option without the one it belongs to.
    """

    init_audio: Path | None = None
    strength: float | None = None
    continued: Path | None = None
    inpaint: str | None = None
    loop: bool = False
    bars: int | None = None
    bpm: float | None = None
    metre: int | None = None

    def __post_init__(self) -> None:
        owners = {"strength": "--init-audio", "bars": "--loop", "bpm": "--loop", "metre": "--loop"}
        for name, owner in owners.items():
            if getattr(self, name) is not None and self.kind != owner:
                raise UsageError(f"--{name} belongs to {owner}.")

    @property
    def kind(self) -> str | None:
        """The option that was given."""
        kinds = {
            "--init-audio": self.init_audio,
            "--continue": self.continued,
            "--inpaint": self.inpaint,
            "--loop": self.loop or None,
        }
        given = [name for name, value in kinds.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} exclude each other.")
        return given[0] if given else None

    def worded(self, prompt: Prompt) -> Prompt:
        """The prompt as the model is to read it: with a loop's tempo."""
        return with_tempo(prompt, self.bpm or LOOP["bpm"]) if self.loop else prompt

    def make(self, params: Params, say: Callable[[str], object]) -> Edit | None:
        """The edit, for a model of these parameters.

        Raises UsageError for what cannot be, DataError for files that are not whole, silent, or too short.
        """
        if self.kind is None:
            return None
        edit = self._edit(partial(_read, say, params.audio.sample_rate))
        edit.check(params)
        return edit

    def _edit(self, read: Callable[[Path], Sound]) -> Edit:
        if self.loop:
            given = {"bars": self.bars, "bpm": self.bpm, "metre": self.metre}
            return Loop(**LOOP | {name: value for name, value in given.items() if value is not None})
        if self.init_audio is not None:
            return Init(read(self.init_audio), DEFAULT_STRENGTH if self.strength is None else self.strength)
        if self.continued is not None:
            return Continuation(read(self.continued))
        path, begin, end = parse_inpaint(str(self.inpaint))
        return Inpainting(read(path), begin, end)


def _read(say: Callable[[str], object], sample_rate: int, path: Path) -> Sound:
    info = audio_io.probe(path)
    if (info.sample_rate, info.channels) != (sample_rate, 1):
        say(
            f"{path} has {info.channels} channel(s) at {info.sample_rate} Hz; the model hears and makes mono at "
            f"{sample_rate} Hz."
        )
    return read_sound(path, sample_rate)
