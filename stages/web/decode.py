"""Decode an uploaded file in a process of its own, with limits, so that a hostile one harms nothing but itself.

Run as `python -m stages.web.decode SOURCE TARGET RATE`: TARGET gets mono float32 samples (.npy), stdout a sentence
when SOURCE is refused (exit 1).
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.audio import io as audio_io
from stages.errors import MusicldmError
from stages.web.refused import Refused

LONGEST_SECONDS = 120  # the rest of a longer file is not needed and not decoded
PATIENCE_SECONDS = 30.0
MEMORY_BYTES = 4 << 30  # of address space; the interpreter with its libraries needs half of it
CPU_SECONDS = 25
FILE_BYTES = 64 << 20


def decode(source: Path, sample_rate: int, patience: float = PATIENCE_SECONDS) -> NDArray[np.float32]:
    """Samples (L,) of at most LONGEST_SECONDS. Raises Refused (422) for what is no whole audio, or takes too long."""
    target = source.with_suffix(".npy")
    command = [sys.executable, "-m", "stages.web.decode", str(source), str(target), str(sample_rate)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False)
        if done.returncode == 0:
            return np.asarray(np.load(target, allow_pickle=False), dtype=np.float32)
    except subprocess.TimeoutExpired:
        raise Refused(422, "The file took too long to decode and was given up.") from None
    finally:
        target.unlink(missing_ok=True)
    reason = done.stdout.strip().replace(str(source), "The file") if done.returncode == 1 else ""
    if not reason or "not audio" in reason:  # what a decoder says of it helps nobody in front of the page
        reason = "The file is not audio that can be read; WAV, AIFF, FLAC, MP3, Ogg, M4A and WebM can."
    raise Refused(422, reason)


def _limit() -> None:
    import resource

    for what, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, CPU_SECONDS),
                       (resource.RLIMIT_FSIZE, FILE_BYTES)):  # fmt: skip
        resource.setrlimit(what, (most, most))


def _main(source: str, target: str, sample_rate: str) -> int:
    _limit()
    wanted, blocks, have = LONGEST_SECONDS * int(sample_rate), [], 0
    try:
        for block in audio_io.stream(Path(source), int(sample_rate)):
            blocks.append(block)
            have += len(block)
            if have >= wanted:
                break
    except MusicldmError as error:
        sys.stdout.write(error.message)
        return 1
    np.save(target, np.concatenate(blocks)[:wanted])
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
