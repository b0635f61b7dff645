"""What the options of `musicldm generate` add up to: which edit, which gate, which files, or a stream."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicldm_cli.session import Session
from stages.audio.suffixes import SUFFIXES, WRITABLE
from stages.errors import DataError, GateError, UsageError

if TYPE_CHECKING:
    from stages.generate.edit import Edit, Sound
    from stages.generate.gate import Gate
    from stages.generate.pipeline import Pipeline
    from stages.generate.prompts import BadRow, Prompt
    from stages.generate.settings import Settings
    from stages.params import Audio, Params

STDOUT = Path("-")
DEFAULT_STRENGTH, DEFAULT_TRIES = 0.5, 5
LOOP: dict[str, Any] = {"bars": 4, "bpm": 120.0, "metre": 4}


@dataclass(frozen=True)
class EditOptions:
    """At most one way to make clips other than from the prompt alone, with what belongs to it."""

    init_audio: Path | None
    strength: float | None
    continued: Path | None
    inpaint: str | None
    loop: bool
    bars: int | None
    bpm: float | None
    metre: int | None

    @property
    def way(self) -> str | None:
        """The option that was given. Raises UsageError for two at once."""
        ways = {
            "--init-audio": self.init_audio, "--continue": self.continued, "--inpaint": self.inpaint,
            "--loop": self.loop or None,
        }  # fmt: skip
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} exclude each other.")
        return given[0] if given else None

    def check(self) -> None:
        """Raises UsageError for two ways at once, or for an option without the one it belongs to."""
        way = self.way
        for name, owner in (("strength", "--init-audio"), *((n, "--loop") for n in ("bars", "bpm", "metre"))):
            if getattr(self, name) is not None and way != owner:
                raise UsageError(f"--{name} belongs to {owner}.")

    def worded(self, prompt: Prompt) -> Prompt:
        """The prompt as the model is to read it: with a loop's tempo."""
        from stages.generate.prompts import with_tempo

        return with_tempo(prompt, self.bpm or LOOP["bpm"]) if self.loop else prompt

    def make(self, found: Session, params: Params) -> Edit | None:
        """For a model of these parameters. Raises UsageError for what cannot be, DataError for files that are not
        whole, silent, or too short."""
        if self.way is None:
            return None
        edit = self._make(found, params.audio.sample_rate)
        edit.check(params)
        return edit

    def _make(self, found: Session, sample_rate: int) -> Edit:
        from stages.generate import edit

        if self.loop:
            from stages.generate.loop import Loop

            given = {"bars": self.bars, "bpm": self.bpm, "metre": self.metre}
            return Loop(**LOOP | {name: value for name, value in given.items() if value is not None})
        read = partial(_read, found, sample_rate)
        if self.init_audio is not None:
            return edit.Init(read(self.init_audio), DEFAULT_STRENGTH if self.strength is None else self.strength)
        if self.continued is not None:
            return edit.Continuation(read(self.continued))
        path, begin, end = edit.parse_inpaint(str(self.inpaint))
        return edit.Inpainting(read(path), begin, end)


def _read(found: Session, sample_rate: int, path: Path) -> Sound:
    from stages.audio.io import probe
    from stages.generate.edit import read_sound

    info = probe(path)
    if (info.sample_rate, info.channels) != (sample_rate, 1):
        found.output.say(
            f"{path} has {info.channels} channel(s) at {info.sample_rate} Hz; the model hears and makes mono at "
            f"{sample_rate} Hz."
        )
    return read_sound(path, sample_rate)


@dataclass(frozen=True)
class GateOptions:
    """How near to the training music a clip may be, and where that music's index is."""

    most: float | None
    index: Path | None
    tries: int | None
    avoid: float

    @property
    def wanted(self) -> bool:
        return self.most is not None or self.index is not None or self.avoid > 0

    def check(self) -> None:
        """Raises UsageError, and DataError for an index that is not there."""
        from stages.generate.settings import check_gate

        if self.tries is not None and self.most is None:
            raise UsageError("--tries belongs to --max-similarity.")
        if self.index is not None and not (self.index / "index.json").is_file():
            raise DataError(f"{self.index} is no index of training music.", "Make one: musicldm eval index --out DIR")
        check_gate(self.most, self._tries)

    def find_index(self, found: Session, params: Params, model: Path) -> Path | None:
        """The index that was named, else that of the training shards, which is built if need be; None: no gate.

        Raises DataError when there are no shards.
        """
        if not self.wanted or self.index is not None:
            return self.index
        if not found.layout.shards.is_dir():
            raise DataError(
                f"There is no training music in {found.layout.shards} to compare clips with.",
                "Name its index, made by `musicldm eval index`: --index DIR",
            )
        return _training_index(found, params, next(path for path in (found.layout.clap, model) if path.is_dir()))

    def identity(self, index: Path | None) -> dict[str, Any]:
        """What of the gate decides the clips. Raises DataError when the index cannot be read."""
        if index is None:
            return {}
        from stages.evaluate.nearest import index_digest
        from stages.generate.manifest import gate_identity

        return gate_identity(index_digest(index), self.most, self._tries)

    def make(self, found: Session, index: Path | None, model: Path, audio: Audio) -> Gate | None:
        """Raises DataError when the index is not one of the model's CLAP, or of other preprocessing."""
        if index is None:
            return None
        from stages.evaluate.nearest import NearestTraining, index_digest
        from stages.generate.gate import Gate

        nearest = NearestTraining(index, [found.layout.clap, model], audio)
        return Gate(nearest, index_digest(index), self.most, self._tries)

    @property
    def _tries(self) -> int:
        return DEFAULT_TRIES if self.tries is None else self.tries


def _training_index(found: Session, params: Params, clap: Path) -> Path:
    from stages.evaluate.run import index_training

    cache = found.layout.metrics / "cache"
    with found.output.progress() as progress:
        path, _ = index_training(
            found.layout.shards, clap, params, None, cache, kept="float32", with_duplicates=False, progress=progress
        )
    return path


@dataclass(frozen=True)
class Target:
    """Where clips go: a folder, one file in it, or stdout."""

    folder: Path
    suffix: str
    name: str | None = None
    stdout: bool = False

    def named(self, prompts: list[Prompt]) -> list[Prompt]:
        """The prompts, the one of a file called after it."""
        return prompts if self.name is None else [replace(prompts[0], id=self.name)]


def target(out: Path | None, suffix: str | None, typed: bool, takes: int, usual: Path) -> Target:
    """What `--out` and `--format` say together. Raises UsageError."""
    if out == STDOUT:
        if suffix not in (None, "wav", "raw"):
            raise UsageError(f"--format {suffix} cannot be streamed.", "To stdout go wav (the default) and raw.")
        return Target(Path(), suffix or "wav", stdout=True)
    if suffix == "raw":
        raise UsageError("--format raw goes to stdout only.", "Add: --out -")
    if out is None or os.path.isdir(out) or out.suffix.lower() not in SUFFIXES:  # noqa: PTH112
        return Target(out or usual, suffix or "wav")
    kind = out.suffix.lower().removeprefix(".")
    if out.suffix.lower() not in WRITABLE:
        raise UsageError(f"--out {out}: {kind} is read, but not written.", f"Written are: {', '.join(WRITABLE)}")
    if not typed:
        raise UsageError(f"--out {out} names one file; a file of prompts needs a folder.")
    if suffix not in (None, kind):
        raise UsageError(f"--out {out} and --format {suffix} contradict each other.")
    if takes > 1:
        raise UsageError(f"--out {out} names one file; --takes {takes} needs a folder.")
    return Target(out.parent, kind, out.stem)


def write_stream(found: Session, pipeline: Pipeline, prompt: Prompt, settings: Settings, suffix: str) -> None:
    """The sound to stdout piece by piece, 16 bits; the talk about it goes to stderr."""
    from stages.generate.stream import count_windows, stream, wav_header

    rate, pipe = pipeline.params.audio.sample_rate, sys.stdout.buffer
    total = len(pipeline.timesteps(settings)) * count_windows(pipeline, prompt.seconds)
    done = 0

    def on_step() -> None:
        nonlocal done
        done += 1
        progress("Denoising steps", done, total)

    with found.output.progress() as progress:
        pieces = stream(pipeline, prompt, settings, on_step)
        if suffix == "wav":
            pipe.write(wav_header(pipeline.samples(prompt.seconds), rate))
        for piece in pieces:
            pipe.write(piece.astype("<i2").tobytes())
            pipe.flush()
    found.output.say(f"{prompt.seconds:g} s of 16-bit mono at {rate} Hz; seed {prompt.seed}.")


def show(
    found: Session, rows: list[dict[str, Any]], made: list[dict[str, Any]], cut: list[str], bad: list[BadRow],
    out: Path, plot: bool, taken: float, model: dict[str, str],
) -> None:  # fmt: skip
    """The finished clips; then raise for prompts that were left out (4) or clips that passed no gate (7)."""
    paths = [out / row["file"] for row in rows]
    skipped, seconds = len(rows) - len(made), sum(row["seconds"] for row in made)
    lines = [_line(path, row) for path, row in zip(paths, rows, strict=True)]
    if plot:
        pictures = [path.with_suffix(".png") for path in paths]
        lines += [f"{picture}  spectrogram" for picture in pictures]
        paths += pictures
    there = f"; {skipped} {'was' if skipped == 1 else 'were'} there already." if skipped else "."
    lines.append(f"{len(made)} clip{'' if len(made) == 1 else 's'} in {taken:.1f} s{there}")
    close = [row for row in rows if row.get("too_close")]
    if bad or close:
        found.output.say("\n".join(lines))
    if bad:
        listed = "\n".join(f"  line {row.line}: {row.reason}" for row in bad)
        raise DataError(
            f"{len(bad)} row(s) of the prompts file were left out, the other {len(rows)} done:\n{listed}",
            "Correct these rows and run the same command again; the finished clips are kept.",
        )
    if close:
        listed = "\n".join(f"  {row['file']}: {row['similarity']:.4f} to {row['nearest']}" for row in close)
        raise GateError(
            f"{len(close)} of {len(rows)} clips have a similarity of {close[0]['max_similarity']:g} or more to a "
            f"training clip, whichever of {close[0]['tries']} seeds; the least near are kept and marked:\n{listed}",
            "Give more --tries, --avoid-copies 1, another prompt, or a higher --max-similarity.",
        )
    found.output.result(
        "\n".join(lines),
        paths,
        clips=rows,
        made=len(made),
        skipped=skipped,
        truncated=cut,
        **model,
        seconds_taken=round(taken, 3),
        clips_per_second=round(len(made) / taken, 4) if made else None,
        real_time_factor=round(seconds / taken, 4) if made else None,
    )


def _line(path: Path, row: dict[str, Any]) -> str:
    text = f"{path}  CLAP {row['clap_score']:+.3f}"
    return f"{text}  nearest {row['similarity']:.3f} {row['nearest']}" if "nearest" in row else text
