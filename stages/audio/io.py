"""Read and write audio: streamed, mono, float32; a file that is not whole is an error, never shorter music.

Decoders take truncated files without complaint, pass NaN on, and hang on a FIFO. So files are opened as regular
files by descriptor, what the container promises is compared with what arrives, and every block is checked.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from mutagen.id3 import COMM, ID3, Encoding, ID3v1SaveOptions
from mutagen.ogg import OggPage
from numpy.typing import NDArray

from stages.audio import containers, suffixes
from stages.audio.containers import Part
from stages.audio.decoders import BLOCK_SAMPLES, Decoder, Samples, open_decoder
from stages.errors import DataError
from stages.store import CheckedFile, atomic_file

SUFFIXES = suffixes.SUFFIXES
LOWEST_RATE, HIGHEST_RATE = 1000, 768_000  # Hz
FULL_SCALE = 32768  # 16-bit steps in 1.0
CANCELLED, LOUD = 0.01, 1e-5  # a mixdown 20 dB below its channels, where these are above -50 dB
_WAV_BYTES = 1 << 32  # its header counts in 32 bits: 37 hours at 16 kHz


@dataclass(frozen=True)
class Info:
    """What a file says of itself."""

    seconds: float
    sample_rate: int  # Hz
    channels: int


class Audio:
    """An open audio file; made by `open_audio`."""

    def __init__(self, path: Path, handle: int, first: Decoder, others: Sequence[Part]) -> None:
        self.path = path
        self.sample_rate = first.sample_rate
        self.channels = first.channels
        self.frames = None if others else first.frames  # None: known when all is decoded
        self.comment = first.comment
        self._handle, self._first, self._others = handle, first, others

    def blocks(self, levels: "Levels | None" = None) -> Iterator[Samples]:
        """The mono mixdown (mean of the channels) in blocks of (n,) float32, n <= BLOCK_SAMPLES, once.

        `levels` takes note of all that is decoded. Raises DataError when the file cannot be decoded, holds NaN or
        infinity, or ends before its promise.
        """
        yield from self._mono(self._first, levels)
        for part in self._others:
            with open_decoder(self.path, self._handle, part) as decoder:
                yield from resample(self._mono(decoder, levels), decoder.sample_rate, self.sample_rate)

    def _mono(self, decoder: Decoder, levels: "Levels | None") -> Iterator[Samples]:
        decoded = 0
        for block in decoder.blocks():
            decoded += len(block)
            mono = mixdown(block)
            if not _is_finite(mono):
                raise DataError(f"{self.path} holds samples that are not finite numbers.")
            if levels is not None:
                levels.update(block, mono)
            yield mono
        if decoded < decoder.promised:
            lost = (decoder.promised - decoded) / decoder.sample_rate
            raise DataError(f"{self.path} is truncated or damaged: {lost:.2f} s of its audio are missing.")
        if decoded == 0:
            raise DataError(f"{self.path} holds no audio.")


@contextmanager
def open_audio(path: Path) -> Iterator[Audio]:
    """Open an audio file, by its content and whatever its suffix. Several streams one after another are one file.

    Raises DataError when it is not a regular file, not audio, or ends before its container says so.
    """
    with _regular_file(path) as handle:
        first, *others = containers.parts(path, handle)
        with open_decoder(path, handle, first) as decoder:
            if not LOWEST_RATE <= decoder.sample_rate <= HIGHEST_RATE:
                limits = f"{LOWEST_RATE} to {HIGHEST_RATE} Hz are read"
                raise DataError(f"{path} says that its sample rate is {decoder.sample_rate} Hz; {limits}.")
            yield Audio(path, handle, decoder, others)


def probe(path: Path) -> Info:
    """Length, rate and channels from the header alone. Raises as `open_audio` does."""
    with open_audio(path) as audio:
        frames = audio.frames if audio.frames is not None else sum(map(len, audio.blocks()))
        return Info(frames / audio.sample_rate, audio.sample_rate, audio.channels)


def scan(path: Path) -> tuple[int, int, str]:
    """Decode the whole file: samples a channel, rate, and `SampleHash` of the mixdown. Raises as `stream`."""
    with open_audio(path) as audio:
        digest, samples = SampleHash(audio.sample_rate), 0
        for block in audio.blocks():
            digest.update(block)
            samples += len(block)
        return samples, audio.sample_rate, digest.hexdigest()


def stream(path: Path, sample_rate: int) -> Iterator[Samples]:
    """Mono blocks (n,) float32 at `sample_rate`, resampled by soxr VHQ in flat memory; the same bytes each time.

    Raises as `open_audio` and `Audio.blocks` do.
    """
    with open_audio(path) as audio:
        yield from resample(audio.blocks(), audio.sample_rate, sample_rate)


def read(path: Path, sample_rate: int | None = None, levels: "Levels | None" = None) -> tuple[Samples, int]:
    """The whole file as mono (n,) float32, and its rate: `sample_rate`, or the file's own.

    `levels` as in `Audio.blocks`. Raises as `stream`.
    """
    with open_audio(path) as audio:
        rate = sample_rate or audio.sample_rate
        blocks = list(resample(audio.blocks(levels), audio.sample_rate, rate))
    return (np.concatenate(blocks) if blocks else np.zeros(0, np.float32)), rate


def resample(blocks: Iterable[Samples], source_rate: int, target_rate: int) -> Iterator[Samples]:
    """Mono blocks from one rate to another (soxr VHQ, 28 bits); equal rates pass through untouched."""
    if source_rate == target_rate:
        yield from blocks
        return
    resampler = soxr.ResampleStream(source_rate, target_rate, 1, dtype="float32", quality="VHQ")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def write(path: Path, samples: Samples, sample_rate: int, comment: str = "") -> None:
    """Write mono (n,) float32 as 16-bit wav or flac, or as ogg, opus or mp3, by the suffix; whole or not at all.

    Equal samples give equal bytes. Raises DataError for another suffix, a rate that the format cannot hold, samples
    beyond [-1, 1] (they would clip) and samples that are not finite.
    """
    with atomic_file(path) as temporary:
        try:
            encode(temporary, [samples], sample_rate, comment)
        except DataError as error:
            raise DataError(error.message.replace(str(temporary), str(path)), error.remedy) from error


def encode(path: Path, blocks: Iterable[Samples], sample_rate: int, comment: str | Callable[[str], str] = "") -> str:
    """Like `write`, from blocks and straight to `path`; returns the SHA-256 of the samples (`SampleHash`).

    The comment of a wav, which has it at its end, may be a function of that hash. Raises OSError, too, when the
    disk is full.
    """
    if path.suffix.lower() not in suffixes.WRITABLE:
        raise DataError(f"{path}: audio is written as {', '.join(suffixes.WRITABLE)} only.")
    form, subtype = suffixes.WRITABLE[path.suffix.lower()]
    digest = SampleHash(sample_rate)
    with CheckedFile(path, "w+") as disk:
        with _encoder(path, disk, sample_rate, form, subtype) as file:
            if isinstance(comment, str) and comment and form != "MP3":
                file.comment = comment
            for block in blocks:
                for start in range(0, len(block), BLOCK_SAMPLES):  # long writes overflow libvorbis's stack
                    part = block[start : start + BLOCK_SAMPLES]
                    _check_range(path, part)
                    steps = quantise(part)
                    digest.update_steps(steps)
                    file.write(steps)
                disk.check()
            if not isinstance(comment, str):
                file.comment = comment(digest.hexdigest())
        disk.check()
        if form == "WAV" and os.fstat(disk.fileno()).st_size > _WAV_BYTES:
            raise DataError(f"{path} is not written: a wav holds {_WAV_BYTES >> 30} GiB at most.")
    if form == "OGG":
        _fix_serial(path)
    elif form == "MP3" and isinstance(comment, str) and comment:  # libsndfile writes no Unicode there
        tags = ID3()
        tags.add(COMM(encoding=Encoding.UTF8, lang="eng", desc="", text=comment))
        tags.save(path, v1=ID3v1SaveOptions.REMOVE)
    return digest.hexdigest()


def _encoder(path: Path, disk: CheckedFile, sample_rate: int, form: str, subtype: str) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(disk, "w", sample_rate, 1, subtype, format=form)
    except soundfile.LibsndfileError as error:
        raise DataError(
            f"{path} is not written: {path.suffix} holds no {sample_rate} Hz.", "Choose .wav or .flac."
        ) from error


def quantise(samples: Samples) -> NDArray[np.int16]:
    """Float (n,) in [-1, 1] to 16 bits, rounding to nearest; the inverse of reading 16-bit PCM."""
    steps = samples * np.float32(FULL_SCALE)
    np.rint(steps, out=steps)
    np.clip(steps, -FULL_SCALE, FULL_SCALE - 1, out=steps)
    return steps.astype(np.int16)


def mixdown(block: Samples) -> Samples:
    """Mean of the channels: (n, channels) -> (n,), column by column, which is 20 times as fast as along rows."""
    if block.shape[1] == 1:
        return block[:, 0].copy()
    mono: Samples = block[:, 0] + block[:, 1]
    for channel in range(2, block.shape[1]):
        mono += block[:, channel]
    mono /= np.float32(block.shape[1])
    return mono


def _is_finite(samples: Samples) -> bool:
    """Whether no sample is NaN or infinite; the sum tells in most cases, and fast."""
    return bool(np.isfinite(samples.sum()) or np.isfinite(samples).all())


class Levels:
    """Takes note of blocks and their mixdown; then `fault` says whether that is sound, in flat memory."""

    def __init__(self) -> None:
        self._low, self._high = np.inf, -np.inf
        self._samples, self._mono_energy, self._channel_energy = 0, 0.0, 0.0

    def update(self, block: Samples, mono: Samples) -> None:
        """A block (n, channels) and its mixdown (n,)."""
        self._low, self._high = min(self._low, float(mono.min())), max(self._high, float(mono.max()))
        self._samples += len(mono)
        self._mono_energy += _energy(mono[:, None])
        self._channel_energy += _energy(block)

    def fault(self) -> str | None:
        """Why the mixdown is no music: silence, one value throughout, or channels that cancel each other."""
        is_loud = self._channel_energy > LOUD * self._samples
        if is_loud and self._mono_energy < CANCELLED * self._channel_energy:
            return "its channels cancel each other in the mono mix. Keep one, e.g.: sox OLD NEW.wav remix 1"
        if self._high - self._low >= 1 / FULL_SCALE:
            return None
        is_silent = max(self._high, -self._low) < 1 / FULL_SCALE
        return "is silent" if is_silent else f"holds no sound but one value throughout, {self._high:.3f}"


def _energy(block: Samples) -> float:
    """Sum of squares about the mean of each channel, averaged over the channels."""
    length, channels = block.shape
    sums = [float(block[:, channel].sum()) for channel in range(channels)]  # 20 times as fast as along rows
    return (float(np.linalg.norm(block)) ** 2 - sum(total**2 for total in sums) / length) / channels


class SampleHash:
    """SHA-256 of a rate and mono samples in 16 bits: equal for the same audio in any lossless file or tags."""

    def __init__(self, sample_rate: int) -> None:
        self._hash = hashlib.sha256(f"{sample_rate}:".encode())

    def update(self, block: Samples) -> None:
        self.update_steps(quantise(block))

    def update_steps(self, steps: NDArray[np.int16]) -> None:
        """The same from 16-bit samples."""
        self._hash.update(steps.astype("<i2", copy=False).data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _check_range(path: Path, block: Samples) -> None:
    if not _is_finite(block):
        raise DataError(f"{path} is not written: the audio holds samples that are not finite numbers.")
    peak = max(float(block.max(initial=0.0)), -float(block.min(initial=0.0)))
    if peak > 1.0:
        raise DataError(f"{path} is not written: the audio would clip (peak {peak:.3f}, full scale is 1).")


def _fix_serial(path: Path) -> None:
    """Give an Ogg file serial 0 where libsndfile drew one at random, so that equal audio is equal bytes."""
    renumbered = path.with_name(path.name + ".serial")
    with path.open("rb") as source, renumbered.open("wb") as target:
        while source.tell() < path.stat().st_size:
            page = OggPage(source)
            page.serial = 0
            target.write(page.write())
    renumbered.replace(path)


@contextmanager
def _regular_file(path: Path) -> Iterator[int]:
    """A descriptor of a regular file. O_NONBLOCK, so that a FIFO swapped in after the stat cannot hang us."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is not a file.")
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
        if number in (errno.ENOENT, errno.ELOOP) and path.is_symlink():
            reason = "the link leads to itself" if number == errno.ELOOP else "the link leads nowhere"
        raise DataError(f"{path} cannot be opened: {reason}.") from error
    try:
        yield handle
    finally:
        os.close(handle)
