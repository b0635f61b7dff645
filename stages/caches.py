"""Cache folders of libraries, also where the home folder is read-only or missing, as in many containers."""

import os
import stat
import tempfile
from pathlib import Path


def cache_home() -> Path:
    """XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~", ".cache").expanduser())


def install() -> None:
    """Where the caches' home cannot be written, take a private folder below the temporary one instead.

    numba, matplotlib, the hub's client and torch read these variables, and child processes inherit them. Without a
    temporary folder nothing is changed.
    """
    try:
        if _can_be_written(cache_home()):
            return
    except RuntimeError:  # HOME is not set, and the user is in no password file
        pass
    try:
        folder = _private_folder()
    except OSError:
        return
    os.environ["XDG_CACHE_HOME"] = str(folder)
    os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))


def _can_be_written(folder: Path) -> bool:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _private_folder() -> Path:
    """This user's own, the same at every run; caches hold programs, so another user's folder is not taken."""
    folder = Path(tempfile.gettempdir()) / f"musicldm-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if private else Path(tempfile.mkdtemp(prefix="musicldm-"))
