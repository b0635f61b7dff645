"""Debian's packages without root: download one and unpack it into a folder."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from stages.errors import DataError, MissingDependencyError
from stages.store import disk_errors


def check_programs() -> None:
    """Raises MissingDependencyError without apt-get and dpkg."""
    programs = [name for name in ("apt-get", "dpkg") if shutil.which(name) is None]
    if programs:
        raise MissingDependencyError(
            f"Fetching Debian's packages needs {' and '.join(programs)}.",
            "Run this on Debian or Ubuntu, or use the embedded music: musicldm data demo data/demo",
        )


def unpack(package: str, tree: Path) -> None:
    """The files of a package below `tree`, whole or not at all; kept when they are there.

    Raises MissingDependencyError without apt-get and dpkg, DataError when the package cannot be had.
    """
    if tree.exists():
        return
    check_programs()
    with disk_errors(tree):
        tree.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=tree.parent) as name:
            folder = Path(name)
            _run(["apt-get", "download", package], folder, package)
            unpacked = folder / "tree"
            for archive in sorted(folder.glob("*.deb")):
                _run(["dpkg", "-x", str(archive.absolute()), str(unpacked.absolute())], folder, package)
            unpacked.replace(tree)


def _run(command: list[str], folder: Path, package: str) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    if "Unable to locate package" in done.stderr or "no installation candidate" in done.stderr.lower():
        raise DataError(
            f"apt-get does not know the package {package}.",
            "If it has no package lists yet, run once as root: apt-get update. The list is of Debian 12 (bookworm).",
        )
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise DataError(f"{command[0]} failed on {package}: {reason}", "Run the same command again; it goes on.")
