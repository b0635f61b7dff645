"""What this machine can do and what it lacks, each lack with the command that mends it."""

import importlib
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

State = Literal["ok", "optional", "missing"]

# program -> what it is for, and how to get it
PROGRAMS = {
    "git": ("dvc keeps its records beside git", "apt-get install git"),
    "apt-get": ("`musicldm data fetch debian-games`", "use a Debian or Ubuntu machine for that command"),
}
LEAST_FREE_GIGABYTES = 5.0


@dataclass(frozen=True)
class Finding:
    """One line of the report. `missing` keeps musicldm from working; `optional` closes only some doors."""

    what: str
    state: State
    found: str
    remedy: str = ""


def examine(work: Path, model: Path) -> list[Finding]:
    """Look at interpreter, packages, compute, disk, programs and the default model; change nothing."""
    return [*_system(), *_packages(), *_compute(), _disk(work), *_programs(), _model(model)]


def _system() -> list[Finding]:
    python = platform.python_version()
    right = sys.version_info[:2] == (3, 11)
    return [
        Finding("musicldm", "ok", version("musicldm")),
        Finding("python", "ok" if right else "missing", python, "" if right else "Install Python 3.11."),
        Finding("platform", "ok", platform.platform()),
    ]


def _packages() -> list[Finding]:
    from packaging.requirements import Requirement

    findings = []
    for line in requires("musicldm") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = ""
        right = bool(found) and requirement.specifier.contains(found, prereleases=True)
        remedy = "" if right else f"pip install '{requirement.name}{requirement.specifier}'"
        findings.append(Finding(requirement.name, "ok" if right else "missing", found or "not installed", remedy))
    return findings


def _compute() -> list[Finding]:
    findings = [Finding("cpu", "ok", f"{os.cpu_count()} cores, {_cpu_name()}")]
    for name in ("torch", "torchaudio"):
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            return [
                *findings,
                Finding(f"import {name}", "missing", str(error), f"pip install --force-reinstall {name}"),
            ]
    import torch

    from stages.precision import cpu_multiplies_bfloat16

    findings.append(Finding("torchaudio imports", "ok", "with its C++ extension" if torch.version.cuda else "CPU only"))
    bf16 = cpu_multiplies_bfloat16()
    findings.append(Finding("cpu bf16", "ok", "yes" if bf16 else "no (fp32 is used)"))
    findings.append(Finding("cpu AMX", "ok", "yes" if torch.cpu._is_amx_tile_supported() else "no"))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            found = f"{device.name}, {device.total_memory / 1e9:.0f} GB, bf16 {torch.cuda.is_bf16_supported()}"
            findings.append(Finding(f"cuda:{index}", "ok", found))
    else:
        findings.append(Finding("cuda", "optional", "no CUDA device", "The paper's sizes need one; `small` does not."))
    return findings


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _disk(work: Path) -> Finding:
    folder = work.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    enough = free >= LEAST_FREE_GIGABYTES
    remedy = "" if enough else "Free space, or choose another folder with --work."
    return Finding("free disk", "ok" if enough else "missing", f"{free:.1f} GB at {folder}", remedy)


def _programs() -> list[Finding]:
    findings = []
    for program, (purpose, remedy) in PROGRAMS.items():
        found = shutil.which(program)
        findings.append(
            Finding(program, "ok", found) if found else Finding(program, "optional", f"absent: {purpose}", remedy)
        )
    return findings


def _model(model: Path) -> Finding:
    if model.exists():
        return Finding("model", "ok", str(model))
    return Finding("model", "optional", f"none at {model}", "Train one: dvc repro")
