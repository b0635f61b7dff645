"""Which files of a folder are audio: the one rule of every command that takes a folder.

Passed over are hidden files and folders (`._song.wav` is a note of macOS on a file, not a song), `__MACOSX`, and
whatever is not named like audio. Music in a format that is not read is named, so that no song is missed in silence.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.audio.suffixes import SUFFIXES
from stages.errors import DataError

_NOTES = ".mid .midi .kar .rmi .mod .xm .it .s3m .mtm .stm .nsf .spc .vgm .vgz .sid"  # no sound in them
_SOUND = ".wv .ape .mpc .tta .tak .shn .ofr .dsf .dff .spx .amr .awb .gsm .ra .rm .voc .cda .ac3 .eac3 .dts .mlp .mp2"
_FILMS = ".mov .m4v .3gp .avi .flv .wmv .asf .mpg .mpeg .ogv"
_LOCKED = ".aa .aax .aaxc .m4p"  # by the shops that sell them
UNREAD_SUFFIXES = set(f"{_NOTES} {_SOUND} {_FILMS} {_LOCKED}".split()) - set(SUFFIXES)
_KNOWN = ", ".join(SUFFIXES)


@dataclass(frozen=True)
class Walk:
    """What lies below `folder`: paths that begin with it, sorted."""

    folder: Path
    files: list[Path]  # named like audio that is read
    unread: dict[Path, str]  # files named like music that is not read, and why
    closed: dict[Path, str]  # folders that cannot be opened, and why

    def require(self) -> list[Path]:
        """The files. Raises DataError when there is none."""
        if not self.files:
            refused = [f"{path} {why.partition(';')[0]}" for path, why in {**self.closed, **self.unread}.items()]
            also = f" ({len(refused)} cannot be read, e.g. {refused[0]})" if refused else ""
            raise DataError(f"There is no audio file below {self.folder}{also}.", f"Known are: {_KNOWN}")
        return self.files


def walk_audio(folder: Path, *, deep: bool = True, without: Path | None = None) -> Walk:
    """Audio in `folder` and, if `deep`, in all folders below but `without`; linked ones are followed, each once."""
    files: list[Path] = []
    unread_files: list[Path] = []
    closed: dict[Path, str] = {}

    def note(error: OSError) -> None:
        closed[Path(error.filename)] = f"cannot be opened: {error.strerror}"

    seen = {os.path.realpath(path) for path in (folder, without) if path is not None}
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=note):
        folders[:] = _new_folders(parent, folders, seen) if deep else []
        visible = [Path(parent, name) for name in names if not is_hidden(name)]
        files += [path for path in visible if path.suffix.lower() in SUFFIXES]
        unread_files += [path for path in visible if path.suffix.lower() in UNREAD_SUFFIXES]
    return Walk(folder, _sorted(files), {path: unread(path) for path in _sorted(unread_files)}, closed)


def find_audio(folder: Path, *, deep: bool = True) -> list[Path]:
    """The files of `walk_audio`. Raises DataError when there is none, or a folder cannot be opened."""
    walk = walk_audio(folder, deep=deep)
    for path, why in walk.closed.items():
        raise DataError(f"{path} {why}.", "Check its name and its permissions.")
    return walk.require()


def unread(path: Path) -> str:
    """Why a file is left out that is not named like audio that is read."""
    return f"is in a format that is not read ({path.suffix.lower() or 'no suffix'}); known are: {_KNOWN}"


def _new_folders(parent: str, names: list[str], seen: set[str]) -> Iterator[str]:
    """Those to go into, folders before links to them."""
    for name in sorted(names, key=lambda name: (Path(parent, name).is_symlink(), name)):
        real = os.path.realpath(Path(parent, name))
        if real not in seen and not is_hidden(name):
            seen.add(real)
            yield name


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over for its name."""
    return name.startswith(".") or name == "__MACOSX"


def _sorted(paths: list[Path]) -> list[Path]:
    return sorted(paths, key=Path.as_posix)  # by letters, on Windows too
