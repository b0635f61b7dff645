"""dvc.yaml is the pipeline a person would type, and knows the code each stage really imports."""

import shlex
from pathlib import Path

import pytest
import yaml

from stages import params
from tests.imports import stage_commands, stage_modules

ROOT = Path(__file__).parent.parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
NAMES = [
    "manifest", "resample", "beats", "captions", "shards", "clap", "vae", "vocoder", "latents", "ldm",
    "generate", "evaluate", "report",
]  # fmt: skip


def commands(name: str) -> list[str]:
    return stage_commands(STAGES[name])


def body(name: str) -> dict:
    return STAGES[name].get("do", STAGES[name])


def test_the_graph_is_complete():
    assert list(STAGES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_our_own(name):
    from typer.main import get_command

    from musicldm_cli.app import app

    for line in commands(name):
        program, *words = shlex.split(line)
        assert program == "musicldm"
        command = get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(command.name, list(words), resilient_parsing=True)


@pytest.mark.parametrize("name", NAMES)
def test_code_deps_are_what_the_command_imports(name):
    listed = [dep for dep in body(name)["deps"] if dep.startswith("stages/")]
    assert listed == stage_modules(STAGES[name]), "write them: make deps"


@pytest.mark.parametrize("name", NAMES)
def test_params_are_real_keys(name):
    tracked = body(name).get("params", [])
    everything = params.preset("tiny").model_dump()
    for key in tracked:
        found = everything
        for part in key.split("."):
            assert part in found, f"{name}: {key}"
            found = found[part]


def test_every_section_is_tracked_by_some_stage():
    tracked = {key.split(".")[0] for name in NAMES for key in body(name).get("params", [])}
    assert tracked == set(params.Params.model_fields) - {"preset", "few_steps"}  # the second in profiles/small alone


@pytest.mark.parametrize("graph", ["dvc.yaml", "profiles/small/dvc.yaml"])
def test_the_vocoder_waits_for_the_vae_that_it_may_hear(graph):
    """Also by `vocoder.train_on: real`, since deps cannot depend on params: a new VAE then costs it a validation."""
    stages = yaml.safe_load((ROOT / graph).read_text())["stages"]
    assert "work/models/vae" in stages["vocoder"]["deps"]
    assert stages["vae"]["outs"] == ["work/models/vae"]


def test_mixup_reruns_only_the_diffusion_and_what_follows():
    """By the graph: what depends on the `ldm` section, directly or through outs."""
    outs = {name: _paths(body(name)["outs"]) for name in NAMES}
    stale = {name for name in NAMES if "ldm" in body(name).get("params", [])}
    while True:
        more = {
            name
            for name in NAMES
            if any(dep.startswith(out) for dep in body(name)["deps"] for s in stale for out in outs[s])
        }
        if more <= stale:
            break
        stale |= more
    assert stale == {"ldm", "generate", "evaluate", "report"}


def _paths(outs: list) -> list[str]:
    return [(next(iter(out)) if isinstance(out, dict) else out).replace("/${item}", "") for out in outs]
