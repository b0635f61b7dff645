"""Each folder here holds one kind of input that once failed: `cmd.sh` is what a user types in it, `expected.txt`
what is right. `fault(name)` copies a folder, so that nothing is written beside the inputs."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

FAULTS = Path(__file__).parent
ROOT = FAULTS.parents[1]


@dataclass(frozen=True)
class Fault:
    """A private copy of one folder of inputs."""

    folder: Path

    def type(self, command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a line of shell in the folder, with the `musicldm` under test on the PATH."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        modules = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        variables = {**os.environ, "PATH": path, "PYTHONPATH": modules, **env}
        return subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=variables, capture_output=True, text=True, check=False
        )

    def cmd(self, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `cmd.sh` as it stands."""
        return self.type((self.folder / "cmd.sh").read_text(), **env)


@pytest.fixture
def fault(tmp_path):
    """fault(name) -> a private copy of the folder of that name."""

    def copy(name: str) -> Fault:
        return Fault(Path(shutil.copytree(FAULTS / name, tmp_path / name)))

    return copy
