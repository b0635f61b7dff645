"""dvc.yaml is the pipeline a person would type, and runs again what a parameter or a new revision changes."""

import shlex
from itertools import product
from typing import Any

import pytest
import yaml

from stages import params
from stages.versions import VERSIONS, versions_text
from tests import ROOT

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
NAMES = [
    "manifest", "resample", "beats", "captions", "shards", "clap", "vae", "vocoder", "latents", "ldm",
    "generate", "evaluate", "report",
]  # fmt: skip


def stage_commands(stage: dict[str, Any]) -> list[str]:
    """The command lines of a stage of dvc.yaml, `foreach` and `matrix` unrolled, `${...}` filled with real values."""
    body = stage.get("do", stage)
    each = stage.get("foreach", [])
    axes = stage.get("matrix") or {"": each if isinstance(each, list) else ["0"]}
    values = [axis if isinstance(axis, list) else ["0"] for axis in axes.values()] if each or "matrix" in stage else []
    lines = []
    for chosen in product(*values):
        line = body["cmd"]
        for key, value in zip(axes, chosen, strict=False):
            line = line.replace(f"${{item.{key}}}" if key else "${item}", str(value))
        lines.append(line.replace("${ldm.mixup}", "blm"))
    return lines


def tracked_params(body: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The keys of params.yaml and of versions.yaml that a stage tracks."""
    entries = body.get("params", [])
    versions = [key for entry in entries if isinstance(entry, dict) for key in entry["versions.yaml"]]
    return [entry for entry in entries if isinstance(entry, str)], versions


def upstream(name: str) -> set[str]:
    """The stages whose outs a stage depends on, directly or through others."""
    direct = {
        other
        for other in NAMES
        if any(dep.startswith(out) for dep in body(name)["deps"] for out in _paths(body(other)["outs"]))
    }
    return direct | {above for other in direct for above in upstream(other)}


def body(name: str) -> dict[str, Any]:
    return STAGES[name].get("do", STAGES[name])


def _paths(outs: list) -> list[str]:
    return [(next(iter(out)) if isinstance(out, dict) else out).replace("/${item}", "") for out in outs]


def test_the_graph_is_complete_and_short():
    assert list(STAGES) == NAMES
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 160


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_our_own(name):
    from typer.main import get_command

    from musicldm_cli.app import app

    for line in stage_commands(STAGES[name]):
        program, *words = shlex.split(line)
        assert program == "musicldm"
        command = get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(command.name, list(words), resilient_parsing=True)


@pytest.mark.parametrize("name", NAMES)
def test_params_are_real_keys_and_every_stage_has_its_version(name):
    keys, versions = tracked_params(body(name))
    assert versions == [name]
    everything = params.preset("tiny").model_dump()
    for key in keys:
        found = everything
        for part in key.split("."):
            assert part in found, f"{name}: {key}"
            found = found[part]


def test_every_section_is_tracked_by_some_stage():
    tracked = {key.split(".")[0] for name in NAMES for key in tracked_params(body(name))[0]}
    assert tracked == set(params.Params.model_fields) - {"preset", "few_steps"}  # the second in profiles/small alone


def test_the_versions_are_written_down():
    assert (ROOT / "versions.yaml").read_text(encoding="utf-8") == versions_text(), "write it: make versions"
    assert {*VERSIONS} == {*NAMES, "few_steps"}


@pytest.mark.parametrize("graph", ["dvc.yaml", "profiles/small/dvc.yaml"])
def test_the_vocoder_waits_for_the_vae_that_it_may_hear(graph):
    """Also by `vocoder.train_on: real`, since deps cannot depend on params: a new VAE then costs it a validation."""
    stages = yaml.safe_load((ROOT / graph).read_text())["stages"]
    assert "work/models/vae" in stages["vocoder"]["deps"]
    assert stages["vae"]["outs"] == ["work/models/vae"]


def test_mixup_reruns_only_the_diffusion_and_what_follows():
    """By the graph: what depends on the `ldm` section, directly or through outs."""
    first = {name for name in NAMES if "ldm" in tracked_params(body(name))[0]}
    stale = first | {name for name in NAMES if upstream(name) & first}
    assert stale == {"ldm", "generate", "evaluate", "report"}
