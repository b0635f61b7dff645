"""Container headers of audio files: is the file complete, and which streams does it hold?

libsndfile silently decodes what is left of a truncated file, and only the first of several streams.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.errors import DataError

CUT_IT = "Save the sound anew as one stream, e.g.: ffmpeg -i OLD NEW.flac"
_UNKNOWN_BYTES = 0x7FFFF000  # or 0, or more: what writers into a pipe, which do not know the size, put in 32 bits
_IN_DS64 = 0xFFFFFFFF
_UNREAD_SHARE = 0.05  # of a file, that tags after its sound may take
_FIND_BYTES = 1 << 16
_PCM, _FLOAT = 1, 3
_SNDFILE_CODECS = frozenset({_PCM, 2, _FLOAT, 6, 7, 0x11, 0x31, 0xFFFE})  # not MP3, which it leaves to libmpg123
_OGG_FIRST, _OGG_LAST = 2, 4


@dataclass(frozen=True)
class Part:
    """The bytes of one stream, or of several that play together, and whether libsndfile decodes them."""

    start: int
    stop: int
    by_sndfile: bool


@dataclass(frozen=True)
class _Chunks:
    """How a format writes its chunks: name and size, the first one at byte `first`, each padded to `align` bytes."""

    head: struct.Struct
    first: int
    align: int
    sound: bytes
    counts_head: bool = False


_CHUNKED = {
    b"RIFF": _Chunks(struct.Struct("<4sI"), 12, 2, b"data"),
    b"RF64": _Chunks(struct.Struct("<4sI"), 12, 2, b"data"),
    b"RIFX": _Chunks(struct.Struct(">4sI"), 12, 2, b"data"),
    b"FORM": _Chunks(struct.Struct(">4sI"), 12, 2, b"SSND"),
    b"caff": _Chunks(struct.Struct(">4sq"), 8, 1, b"data"),
    b"riff": _Chunks(struct.Struct("<16sQ"), 40, 8, bytes.fromhex("64617461f3acd3118cd100c04f8edb8a"), True),  # W64
}


def parts(path: Path, handle: int) -> list[Part]:
    """The streams of an open file in their order, each to be decoded on its own; nearly always one.

    Raises DataError for a file that is empty or contradicts itself, that ends before its headers say so, or that
    holds more sound than a decoder would return.
    """
    size = os.fstat(handle).st_size
    if size == 0:
        raise DataError(f"{path} is empty.")
    head = os.pread(handle, _FIND_BYTES, 0)
    kind = head[:4]
    if head.lstrip(b"\0").startswith(b"OggS"):
        return _ogg_parts(path, handle, size)
    if kind in _CHUNKED:
        return [Part(0, size, _check_chunks(path, handle, size, kind))]
    if head[4:8] == b"ftyp":
        _check_boxes(path, handle, size)
    elif kind == b".snd":
        start, length = struct.unpack(">4xII", os.pread(handle, 12, 0).ljust(12, b"\0"))
        if length < _UNKNOWN_BYTES:
            _check_end(path, start + length, size)
            _check_all_read(path, start + length, size)
    elif kind == b"\x1aE\xdf\xa3":
        _check_end(path, _matroska_end(handle), size)
    return [Part(0, size, kind in (b".snd", b"fLaC"))]


def check_rest(path: Path, handle: int) -> None:
    """Raises DataError when another FLAC stream follows where libsndfile stopped reading one."""
    position = max(4, os.lseek(handle, 0, os.SEEK_CUR) - _FIND_BYTES)  # it reads ahead
    if os.pread(handle, 4, 0) == b"fLaC" and _find(handle, b"fLaC", position) is not None:
        raise DataError(f"{path} holds several FLAC streams, of which only the first would be read.", CUT_IT)


def _check_end(path: Path, promised: int, size: int) -> None:
    if promised > size:
        raise DataError(f"{path} is truncated: {promised} bytes are promised, {size} are there.")


def _check_all_read(path: Path, end: int, size: int) -> None:
    if size - end > _UNREAD_SHARE * size:
        raise DataError(f"{path} goes on for {size - end} bytes after the end that its header names.", CUT_IT)


def _check_boxes(path: Path, handle: int, size: int) -> None:
    """Raises DataError when another MP4 file follows, of which libav reads nothing."""
    at = films = 0
    while at < size and films < 2:
        length, name, wide = struct.unpack(">I4sQ", os.pread(handle, 16, at).ljust(16, b"\0"))
        films += name == b"moov"
        at += (wide if length == 1 else length) or size
    if films > 1:
        raise DataError(f"{path} holds several MP4 files, of which only the first would be read.", CUT_IT)


def _check_chunks(path: Path, handle: int, size: int, kind: bytes) -> bool:
    """Whether the sound chunk is libsndfile's to decode. Raises as `parts`."""
    layout, total = _CHUNKED[kind], size
    codec, sounds, wide, end = _PCM, 0, 0, 0
    if layout.head.size == 8:
        promised = int(layout.head.unpack(os.pread(handle, 8, 0).ljust(8, b"\0"))[1])
        if 0 < promised < _UNKNOWN_BYTES:
            _check_end(path, promised, size)  # 8 bytes of header are left as slack
            total = min(size, promised + 8)
    elif layout.counts_head:
        total = min(size, int.from_bytes(os.pread(handle, 8, 16), "little") or size)
    for name, start, length in _chunks(handle, total, layout):
        if name == layout.sound:
            sounds += 1
            length = wide if wide and length == _IN_DS64 else length
            if _is_unknown(length, start, size, layout):
                return codec in _SNDFILE_CODECS and length != 0  # of 0 bytes libsndfile reads nothing
            _check_end(path, start + length, size)
        elif not 0 <= length <= size - start:
            break  # no chunk
        elif name == b"ds64":
            wide = int.from_bytes(os.pread(handle, 8, start + 8), "little")
        elif name.startswith(b"fmt "):
            codec = _wav_codec(path, os.pread(handle, 16, start), ">" if kind == b"RIFX" else "<")
        end = start + length
    if sounds > 1:
        raise DataError(f"{path} holds {sounds} data chunks, of which only the first would be read.", CUT_IT)
    if sounds:
        _check_all_read(path, end, size)
    return codec in _SNDFILE_CODECS


def _chunks(handle: int, size: int, layout: _Chunks) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and length of what each chunk holds."""
    at = layout.first
    while layout.first <= at <= size - layout.head.size:
        name, length = layout.head.unpack(os.pread(handle, layout.head.size, at))
        start = at + layout.head.size
        length -= layout.head.size if layout.counts_head else 0
        yield name, start, length
        at = start + length
        at += -at % layout.align


def _is_unknown(length: int, start: int, size: int, layout: _Chunks) -> bool:
    endless = layout.head.size == 8 and length >= _UNKNOWN_BYTES and start + length > size
    return length < 0 or endless or (length == 0 and start < size)


def _wav_codec(path: Path, form: bytes, order: str) -> int:
    """Raises DataError where the header of plain samples contradicts itself."""
    if len(form) < 16:
        return _PCM
    codec, channels, _, _, block, bits = struct.unpack(f"{order}HHIIHH", form)
    usual = channels * -(-bits // 8)
    if codec in (_PCM, _FLOAT) and block != usual and not (bits in (20, 24) and block == 4 * channels):
        raise DataError(
            f"{path} has a header that contradicts itself: blocks of {block} bytes for {channels} channel(s) of "
            f"{bits} bits."
        )
    return int(codec)


def _matroska_end(handle: int) -> int:
    """Where the segment of a Matroska or WebM file ends by its own header; 0 where it does not say."""
    head = os.pread(handle, 4096, 0)
    at = head.find(b"\x18S\x80g", 4) + 4
    if at < 8 or at >= len(head) or not head[at]:
        return 0
    width = 9 - head[at].bit_length()  # of the size: as many bytes as the first has leading zeros, and one
    size = int.from_bytes(head[at : at + width], "big") - (1 << 7 * width)
    return 0 if size == (1 << 7 * width) - 1 else at + width + size


def _ogg_parts(path: Path, handle: int, size: int) -> list[Part]:
    """Links of a chain, each the pages from the first ones of its streams to the next such."""
    starts: list[int] = []
    codecs: list[list[bytes]] = []
    was_first = was_last = False
    for start, stop, flags, word in _ogg_pages(handle, size):
        first = bool(flags & _OGG_FIRST)
        if (first and not was_first) or not starts:
            if starts and not was_last:
                raise DataError(f"{path} is truncated: the end of its Ogg stream {len(starts)} is missing.")
            starts.append(start)
            codecs.append([])
        if first:
            codecs[-1].append(word)
        was_first, was_last = first, bool(flags & _OGG_LAST) and stop <= size
    if not was_last:
        raise DataError(f"{path} is truncated: its last Ogg page is missing.")
    known = [len(words) == 1 and words[0] in (b"\x01vorbis\0", b"OpusHead") for words in codecs]
    return [Part(*part) for part in zip(starts, [*starts[1:], size], known, strict=True)]


def _ogg_pages(handle: int, size: int) -> Iterator[tuple[int, int, int, bytes]]:
    """Start, stop and flags of every page, and the first 8 bytes it holds; what is between pages is skipped."""
    at: int | None = 0
    before = 0
    while at is not None and at < size:
        head = os.pread(handle, 27 + 255 + 8, at)
        if head[:4] != b"OggS":
            at = _find(handle, b"OggS", before + 4)  # the page before may be cut and a whole one begin in its place
        elif len(head) < 27:
            at = None
        else:
            body = 27 + head[26]
            stop = at + body + sum(head[27:body])
            yield at, stop, head[5], head[body : body + 8]
            before, at = at, stop


def _find(handle: int, word: bytes, at: int) -> int | None:
    """Where `word` comes next, from byte `at` on."""
    while data := os.pread(handle, _FIND_BYTES, at):
        found = data.find(word)
        if found >= 0:
            return at + found
        if len(data) < len(word):
            return None
        at += len(data) - len(word) + 1
    return None
