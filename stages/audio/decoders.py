"""The two decoders: libsndfile for wav, flac and ogg, libav (PyAV) for everything else.

libsndfile also decodes MP3, by libmpg123, but that warns on stderr even about good files and gives up on many. libav
gives as many samples, equal within 3e-6, and takes 9% longer (half an hour of MP3).
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import mutagen
import mutagen.mp3
import numpy as np
import soundfile
from numpy.typing import NDArray

from stages.audio.containers import CUT_IT, Part, check_rest
from stages.errors import DataError

Samples = NDArray[np.float32]

BLOCK_SAMPLES = 1 << 16
# of libav: files that hold their sound; playlists, image sequences and devices would make it open other files
FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,loas,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,ogg,tak,tta,"
    "voc,w64,wav,wv,xwma"
)
_ESTIMATED = frozenset({"aac", "ac3", "amr", "dts", "eac3", "loas", "mp3", "mpeg", "mpegts"})  # length from bit rate
_PROMISE_TOLERANCE_SECONDS = 0.2  # AAC's priming and padding
_UNKNOWN_FRAMES = 1 << 62


class Decoder(Protocol):
    """An open stream. `frames` is its exact length, if known; it is damaged when fewer than `promised` arrive."""

    sample_rate: int
    channels: int
    frames: int | None
    promised: int
    comment: str

    def blocks(self) -> Iterator[Samples]:
        """(n, channels), n <= BLOCK_SAMPLES, once; `channels` may change. Raises DataError."""
        ...


@contextmanager
def open_decoder(path: Path, handle: int, part: Part) -> Iterator[Decoder]:
    """Decode the bytes `part` of the open file. Raises DataError, which names `path`, when neither decoder can."""
    file = _open_sndfile(handle, part) if part.by_sndfile else None
    if file is not None:
        with file:
            yield _Sndfile(path, handle, file)
    else:
        with _open_libav(path, handle, part) as decoder:
            yield decoder


def _open_sndfile(handle: int, part: Part) -> soundfile.SoundFile | None:
    """None for FLAC in Ogg, ALAC in CAF and the like, and for Opus that it would not decode to its end.

    ffmpeg makes such Opus of Vorbis.
    """
    try:
        file = soundfile.SoundFile(_source(handle, part), closefd=False)
        if file.subtype != "OPUS":
            return file
        with file:
            while len(file.read(BLOCK_SAMPLES, dtype="float32")):
                pass
        return soundfile.SoundFile(_source(handle, part), closefd=False)
    except soundfile.LibsndfileError:
        return None


def _source(handle: int, part: Part) -> "int | _Slice":
    """What libsndfile reads: the descriptor, which is fastest, where it is all of the file."""
    if (part.start, part.stop) != (0, os.fstat(handle).st_size):
        return _Slice(handle, part)
    os.lseek(handle, 0, os.SEEK_SET)
    return handle


class _Sndfile:
    def __init__(self, path: Path, handle: int, file: soundfile.SoundFile) -> None:
        self.sample_rate: int = file.samplerate
        self.channels: int = file.channels
        self.frames: int | None = file.frames if file.frames < _UNKNOWN_FRAMES else None
        slack = 2048 if file.format == "OGG" else 0  # one block: some encoders count from before the first sample
        self.promised = (self.frames or 0) - slack
        self.comment: str = file.comment
        self._path, self._handle, self._file = path, handle, file

    def blocks(self) -> Iterator[Samples]:
        while True:
            try:
                block = self._file.read(BLOCK_SAMPLES, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise DataError(f"{self._path} cannot be decoded: {error.error_string}") from error
            if not len(block):
                break
            yield block
        check_rest(self._path, self._handle)


@contextmanager
def _open_libav(path: Path, handle: int, part: Part) -> Iterator["_Libav"]:
    import av

    av.logging.set_level(None)
    rules = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
    try:
        file = _Slice(handle, part, path.name)
        container = av.open(file, container_options=rules, metadata_errors="replace", io_open=_refuse_to_open)
    except (av.FFmpegError, OSError) as error:
        unknown = isinstance(error, av.InvalidDataError | av.ArgumentError)
        reason = "no format is recognised in it" if unknown else error.strerror
        raise DataError(f"{path} is not audio that can be read: {reason}.") from error
    with container:
        stream = container.streams.best("audio")
        if stream is None:
            raise DataError(f"{path} {'has no sound, only video' if container.streams.video else 'holds no audio'}.")
        is_mp3 = container.format.name == "mp3"
        yield _Libav(path, container, stream, _mp3_seconds(_Slice(handle, part)) if is_mp3 else 0.0)


def _refuse_to_open(url: str, flags: int, options: dict[str, Any]) -> Any:
    raise PermissionError(f"{url} is another file")


class _Libav:
    """The first audio stream of a container, or the one that it marks as the default."""

    def __init__(self, path: Path, container: Any, stream: Any, mp3_seconds: float) -> None:
        if stream.codec_context is None:
            raise DataError(f"{path} cannot be decoded: its codec is not known.")
        stream.codec_context.thread_count = 1
        self.sample_rate: int = stream.codec_context.sample_rate
        self.channels: int = stream.codec_context.channels
        self.comment: str = container.metadata.get("comment") or stream.metadata.get("comment") or ""
        self._path, self._container, self._stream = path, container, stream
        self._is_mpeg = container.format.name in ("mp3", "aac")
        self.frames, self.promised = self._lengths(mp3_seconds)

    def blocks(self) -> Iterator[Samples]:
        import av

        queue = av.AudioFifo()
        try:
            for frame in self._frames():
                frame.pts = None  # else the queue wants them without gaps
                try:
                    queue.write(frame)
                except ValueError:  # other channels, or another rate
                    yield from _blocks(queue, all_of_it=True)
                    self._check_rate(frame.sample_rate)
                    queue = av.AudioFifo()
                    queue.write(frame)
                yield from _blocks(queue)
            yield from _blocks(queue, all_of_it=True)
        except av.FFmpegError as error:
            raise DataError(f"{self._path} cannot be decoded: {error.strerror}.") from error

    def _frames(self) -> Iterator[Any]:
        """Raises DataError, and libav's errors."""
        import av

        last = None
        for packet in self._container.demux(self._stream):
            last = packet if packet.size else last
            try:
                yield from packet.decode()
            except av.InvalidDataError:
                if not self._is_mpeg or _is_mpeg_frame(packet):
                    raise  # else tags between frames, or after them
        if self._is_mpeg and last is not None and _is_cut_mpeg_frame(last):
            raise DataError(f"{self._path} is truncated: its last frame is cut.")

    def _check_rate(self, rate: int) -> None:
        if rate != self.sample_rate:
            raise DataError(f"{self._path} changes from {self.sample_rate} to {rate} Hz on the way.", CUT_IT)

    def _lengths(self, mp3_seconds: float) -> tuple[int | None, int]:
        """`frames` and `promised` of Decoder, by what the container says."""
        name, stream, rate = self._container.format.name, self._stream, self.sample_rate
        seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
        if name == "mp3":
            slack = 1152 if rate >= 32_000 else 576  # some encoders count their header as a frame
            by_header, by_libav = round(mp3_seconds * rate), round(seconds * rate)
            is_all = 0 < by_libav <= by_header  # else there is more, whose length libav guesses
            return by_libav if is_all else None, min(by_header, by_libav) - slack
        if not seconds and len(self._container.streams) == 1:
            seconds = (self._container.duration or 0) / 1e6
        is_guess = name in _ESTIMATED
        return None, 0 if is_guess else round((seconds - _PROMISE_TOLERANCE_SECONDS) * rate)


def _blocks(queue: Any, all_of_it: bool = False) -> Iterator[Samples]:
    """What the queue holds, (BLOCK_SAMPLES, channels) at a time, and if `all_of_it`, the rest."""
    while queue.samples >= BLOCK_SAMPLES or (all_of_it and queue.samples):
        yield _floats(queue.read(BLOCK_SAMPLES, partial=True))


def _floats(frame: Any) -> Samples:
    """libav's samples, packed or planar, to (n, channels) in [-1, 1]."""
    samples, channels = frame.to_ndarray(), frame.layout.nb_channels
    samples = samples.T if len(samples) == channels else samples.reshape(-1, channels)
    if samples.dtype.kind == "f":
        return np.asarray(samples, dtype=np.float32)
    bits = 8 * samples.dtype.itemsize
    middle = 1 << (bits - 1) if samples.dtype.kind == "u" else 0
    return ((samples.astype(np.float64) - middle) / (1 << (bits - 1))).astype(np.float32)


def _is_mpeg_frame(packet: Any) -> bool:
    head = bytes(packet)[:2]
    return len(head) == 2 and head[0] == 0xFF and head[1] >= 0xE0


def _is_cut_mpeg_frame(packet: Any) -> bool:
    """Whether there is less of a frame than its header says, which libav decodes all the same."""
    file = io.BytesIO(bytes(packet))
    try:
        mutagen.mp3.MPEGFrame(file)
    except mutagen.mp3.HeaderNotFoundError:
        return False
    return file.tell() > packet.size


def _mp3_seconds(file: "_Slice") -> float:
    """The length by an MP3's Xing, Info or VBRI header; 0 without one, since it then is a guess from the bit rate."""
    try:
        info = mutagen.mp3.MP3(file).info
    except mutagen.MutagenError:
        return 0.0
    return 0.0 if info.bitrate_mode == mutagen.mp3.BitrateMode.UNKNOWN else float(info.length)


class _Slice(io.RawIOBase):
    """Some bytes of an open file as a file of their own, with a position of its own."""

    def __init__(self, handle: int, part: Part, name: str = "") -> None:
        self._handle, self._part, self._at = handle, part, 0
        self.name = name  # its suffix helps libav where the content leaves it in doubt

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._part.stop - self._part.start}[whence]
        if base + offset < 0:
            return -1  # libav tries that in damaged files, and PyAV prints what is raised
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        most = max(0, min(len(view), self._part.stop - self._part.start - self._at))
        count = os.preadv(self._handle, [view[:most]], self._part.start + self._at)
        self._at += count
        return count
