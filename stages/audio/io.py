"""Read and write audio: streamed, mono, float32; a file that is not whole is an error, never shorter music.

libsndfile decodes a truncated ogg, mp3 or wav without complaint, passes NaN on, and hangs on a FIFO. So files
are opened as regular files by descriptor, what the container promises is compared with what arrives, and
every block is checked.
"""

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mutagen
import mutagen.mp3
import numpy as np
import soundfile
import soxr
from mutagen.ogg import OggPage
from numpy.typing import NDArray

from stages.errors import DataError, MissingDependencyError
from stages.store import CheckedFile, atomic_file

Samples = NDArray[np.float32]

FFMPEG_SUFFIXES = (
    ".m4a", ".m4b", ".mp4", ".mov", ".aac", ".webm", ".mka", ".mkv", ".wma", ".wv", ".ape", ".tta", ".mp2",
)  # fmt: skip
SUFFIXES = (
    ".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64",
    *FFMPEG_SUFFIXES,
)  # fmt: skip
WRITABLE_SUFFIXES = (".wav", ".flac", ".ogg")
BLOCK_SAMPLES = 1 << 16
FULL_SCALE = 32768  # 16-bit steps in 1.0
_UNKNOWN_RIFF_BYTES = 0x7FFFF000  # writers into a pipe put this or more, having no size to tell
_WAV_BYTES = 1 << 32  # its header counts in 32 bits: 37 hours at 16 kHz
_UNKNOWN_FRAMES = 1 << 62
_OGG_TAIL_BYTES = 1 << 17  # holds at least one whole page, which is at most 65,307 bytes
_PROMISE_TOLERANCE_SECONDS = 0.2  # AAC's priming and padding


@dataclass(frozen=True)
class Info:
    """What a file says of itself."""

    seconds: float
    sample_rate: int  # Hz
    channels: int


class Audio:
    """An open audio file; made by `open_audio`."""

    def __init__(self, path: Path, file: soundfile.SoundFile, handle: int) -> None:
        self.path = path
        self.sample_rate: int = file.samplerate
        self.channels: int = file.channels
        self.frames: int | None = file.frames if file.frames < _UNKNOWN_FRAMES else None
        self.comment: str = file.comment
        self._file = file
        self._handle = handle

    def blocks(self) -> Iterator[Samples]:
        """The mono mixdown (mean of the channels) in blocks of (n,) float32, n <= BLOCK_SAMPLES, once.

        Raises DataError when the file cannot be decoded, holds NaN or infinity, or ends before its promise.
        """
        decoded = 0
        while True:
            try:
                block = self._file.read(BLOCK_SAMPLES, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise DataError(f"{self.path} cannot be decoded: {error.error_string}") from error
            if not len(block):
                break
            decoded += len(block)
            mono = mixdown(block)
            if not _is_finite(mono):
                raise DataError(f"{self.path} holds samples that are not finite numbers.")
            yield mono
        self._check_length(decoded)

    def _check_length(self, decoded: int) -> None:
        promised, slack = self.frames or 0, 0
        if self._file.format == "MP3":
            if _is_headerless_mp3(self.path):
                promised = 0  # libsndfile guesses from the bit rate, a few tenths of a second too long or short
            slack = 1152 if self.sample_rate >= 32_000 else 576  # some encoders count their header as a frame
        elif self._file.format == "OGG":
            slack = 2048  # one block: some encoders count from before the first sample
        if decoded < promised - slack:
            lost = (promised - decoded) / self.sample_rate
            raise DataError(f"{self.path} is truncated or damaged: {lost:.2f} s of its audio are missing.")
        if decoded == 0:
            raise DataError(f"{self.path} holds no audio.")
        size = os.fstat(self._handle).st_size
        unread = size - os.lseek(self._handle, 0, os.SEEK_CUR)
        if self._file.format == "MP3" and unread > 0.05 * size and _is_headerless_mp3(self.path):
            raise DataError(
                f"{self.path} is an MP3 of variable bit rate without a length header; its end would be lost.",
                "Write the header, e.g. with `vbrfix`, or encode the file again.",
            )


@contextmanager
def open_audio(path: Path) -> Iterator[Audio]:
    """Open an audio file of any suffix in SUFFIXES (others are tried by their content).

    Raises DataError when it is not a regular file, not audio, or ends before its container says so;
    MissingDependencyError when it is AAC, or Opus beyond libsndfile, and there is no `ffmpeg` program.
    """
    with _regular_file(path) as handle:
        if path.suffix.lower() not in FFMPEG_SUFFIXES:
            _check_container(path, handle)
            if not _is_odd_opus(path, handle):
                with _sound_file(path, handle) as file:
                    yield Audio(path, file, handle)
                return
        with _by_ffmpeg(path) as wav, _regular_file(wav) as decoded, _sound_file(path, decoded) as file:
            yield Audio(path, file, decoded)


def probe(path: Path) -> Info:
    """Length, rate and channels from the header alone. Raises as `open_audio` does."""
    with open_audio(path) as audio:
        frames = audio.frames if audio.frames is not None else sum(map(len, audio.blocks()))
        return Info(frames / audio.sample_rate, audio.sample_rate, audio.channels)


def find_audio(folder: Path) -> list[Path]:
    """Every file below `folder` with one of SUFFIXES, sorted. Raises DataError when there is none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"There is no audio at {folder}.", f"Known suffixes: {' '.join(SUFFIXES)}")
    return files


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


def read(path: Path, sample_rate: int | None = None) -> tuple[Samples, int]:
    """The whole file as mono (n,) float32, and its rate: `sample_rate`, or the file's own. Raises as `stream`."""
    with open_audio(path) as audio:
        rate = sample_rate or audio.sample_rate
        blocks = list(resample(audio.blocks(), audio.sample_rate, rate))
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
    """Write mono (n,) float32 as 16-bit wav or flac, or ogg, by the suffix; whole or not at all.

    Equal samples give equal bytes. Raises DataError for another suffix, for samples beyond [-1, 1] (they
    would clip) and for samples that are not finite.
    """
    with atomic_file(path) as temporary:
        encode(temporary, [samples], sample_rate, comment)


def encode(path: Path, blocks: Iterable[Samples], sample_rate: int, comment: str | Callable[[str], str] = "") -> str:
    """Like `write`, from blocks and straight to `path`; returns the SHA-256 of the samples (`SampleHash`).

    The comment of a wav, which has it at its end, may be a function of that hash. Raises OSError, too, when the
    disk is full.
    """
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise DataError(f"{path}: audio is written as {', '.join(WRITABLE_SUFFIXES)} only.")
    subtype = "VORBIS" if path.suffix.lower() == ".ogg" else "PCM_16"
    digest = SampleHash(sample_rate)
    form = path.suffix.lower().removeprefix(".").upper()
    with CheckedFile(path, "w+") as disk:
        with soundfile.SoundFile(disk, "w", sample_rate, 1, subtype, format=form) as file:
            if isinstance(comment, str) and comment:
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
    if subtype == "VORBIS":
        _fix_serial(path)
    return digest.hexdigest()


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


@contextmanager
def _sound_file(path: Path, handle: int) -> Iterator[soundfile.SoundFile]:
    try:
        file = soundfile.SoundFile(handle, closefd=False)
    except soundfile.LibsndfileError as error:
        raise DataError(f"{path} is not audio that can be read: {error.error_string}") from error
    with file:
        yield file


def _check_container(path: Path, handle: int) -> None:
    """Compare the file's size with what a RIFF or AIFF header or the last Ogg page says. Raises DataError."""
    size = os.fstat(handle).st_size
    if size == 0:
        raise DataError(f"{path} is empty.")
    head = os.pread(handle, 8, 0)
    if head[:4] in (b"RIFF", b"FORM"):
        promised = int.from_bytes(head[4:], "little" if head[:4] == b"RIFF" else "big")
        if size < promised < _UNKNOWN_RIFF_BYTES:  # the header's own 8 bytes are left as slack
            raise DataError(f"{path} is truncated: {promised + 8} bytes are promised, {size} are there.")
    elif head[:4] == b"OggS":
        tail = os.pread(handle, _OGG_TAIL_BYTES, max(0, size - _OGG_TAIL_BYTES))
        page = tail[tail.rfind(b"OggS") :]
        ends = len(page) > 27 and page[5] & 4 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
        if not ends:
            raise DataError(f"{path} is truncated: its last Ogg page is missing.")


def _is_odd_opus(path: Path, handle: int) -> bool:
    """Whether libsndfile cannot decode an Opus file: ffmpeg makes such ones from Vorbis, their pages miscounted."""
    if b"OpusHead" not in os.pread(handle, 64, 0):
        return False
    try:
        with _sound_file(path, handle) as file:
            while len(file.read(BLOCK_SAMPLES, dtype="float32")):
                pass
    except soundfile.LibsndfileError:
        return True
    finally:
        os.lseek(handle, 0, os.SEEK_SET)
    return False


def _is_headerless_mp3(path: Path) -> bool:
    """Whether an MP3 has no Xing, Info or VBRI header, so that its length is a guess from the first frame."""
    try:
        return bool(mutagen.mp3.MP3(path).info.bitrate_mode == mutagen.mp3.BitrateMode.UNKNOWN)
    except mutagen.MutagenError:
        return False  # libsndfile read it, so it has the last word


@contextmanager
def _by_ffmpeg(path: Path) -> Iterator[Path]:
    """Decode to a temporary float wav. Raises MissingDependencyError or DataError."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise MissingDependencyError(
            f"{path} needs the program `ffmpeg` to be decoded.", "Install it, e.g.: apt-get install ffmpeg"
        )
    with tempfile.TemporaryDirectory(prefix="musicldm-") as folder:
        wav = Path(folder) / "decoded.wav"
        command = [program, "-nostdin", "-v", "error", "-xerror", "-i", f"file:{path}"]
        command += ["-map", "0:a:0", "-c:a", "pcm_f32le", "-f", "wav", "-rf64", "auto", str(wav)]  # beyond 4 GiB
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["ffmpeg failed"])[-1]
            raise DataError(f"{path} cannot be decoded: {reason}")
        _check_promise(path, wav)
        yield wav


def _check_promise(path: Path, wav: Path) -> None:
    try:
        promised = getattr(getattr(mutagen.File(path), "info", None), "length", 0.0)
    except mutagen.MutagenError:
        return  # raw AAC makes no promise
    if path.suffix.lower() != ".aac" and soundfile.info(str(wav)).duration < promised - _PROMISE_TOLERANCE_SECONDS:
        raise DataError(f"{path} is truncated: {promised:.1f} s are promised.")
