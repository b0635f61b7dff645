"""Several processes as a person starts them: the guide's configurations with the real command."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import yaml
from accelerate.utils import DistributedType

from stages.errors import ParamsError
from stages.training.sharding import check_shards
from tests.ldm.toy import TOY
from tests.training.networks import ACCELERATE, NAMES, SHARDED, build, environments, free_port, params_of, started


def musicldm(project, work, name, *more):
    """The words behind `python` for a training on the toy project, which writes below `work`."""
    settings = work / "params.yaml"
    settings.write_text(yaml.safe_dump(TOY))
    parts = ("latents", "clap", "vae", "vocoder") if name == "ldm" else ()
    places = [word for part in ("shards", *parts) for word in (f"--{part}", str(project.work / part))]
    options = ["--json", "--params", str(settings), "--work", str(work)]
    return ["-m", "musicldm_cli", *options, "train", name, *places, *more]


def asked_for_shards(fsdp2=True, kind=DistributedType.FSDP, processes=2):
    return SimpleNamespace(num_processes=processes, distributed_type=kind, is_fsdp2=fsdp2)


@pytest.mark.parametrize("name", NAMES)
def test_shards_are_of_the_diffusion_model_only(project, monkeypatch, name):
    state = build(name, project.work, params_of()).state
    check_shards(asked_for_shards(), state, name)  # nobody asked
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_shards(asked_for_shards(processes=1), state, name)  # the whole of it is one shard
    if name == "ldm":
        check_shards(asked_for_shards(), state, name)
        with pytest.raises(ParamsError, match=r"^Shards need FSDP's version 2\.$"):
            check_shards(asked_for_shards(fsdp2=False), state, name)
        with pytest.raises(ParamsError, match=r"^Shards \(FSDP\) need GPUs, and there are none\.$"):
            check_shards(asked_for_shards(kind=DistributedType.MULTI_CPU), state, name)
        return
    with pytest.raises(ParamsError, match=rf"^The training of {name} cannot be spread in shards \(FSDP\)") as caught:
        check_shards(asked_for_shards(), state, name)
    assert "ddp.yaml" in caught.value.remedy


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_command_refuses_shards_with_code_3_and_leaves_nothing(project, tmp_path, name):
    """Both processes end by themselves, though there is no GPU in the test: so even the diffusion model is refused."""
    call = [sys.executable, *musicldm(project, tmp_path, name)]
    with started(call, environments(2, **SHARDED), stdout=subprocess.PIPE, text=True) as ranks:
        wanted = "Shards (FSDP) need GPUs" if name == "ldm" else f"The training of {name} cannot be spread"
        for process in ranks:
            said, _ = process.communicate(timeout=120)
            error = json.loads(said)["error"]
            assert (process.returncode, error["code"]) == (3, 3)
            assert error["message"].startswith(wanted)
            assert error["remedy"]
    assert [file.name for file in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.slow
def test_accelerates_launcher_joins_two_processes_without_gpus(project, tmp_path):
    """By the guide's file and no variable beside: one training of two processes, of which one speaks and writes."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ACCELERATE / "cpu.yaml"),
                "--main_process_port", str(free_port())]  # fmt: skip
    call = musicldm(project, tmp_path, "vae", "-S", "vae.train.steps=2")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
    for more in (["--estimate"], []):
        done = subprocess.run([*launcher, *call, *more], env=clean, timeout=200, stdout=subprocess.PIPE, text=True,
                              check=True)  # fmt: skip
        found = json.loads(done.stdout)
        assert found["ok"]
        assert found["steps"] == 2
        assert found.get("processes", 2) == 2
    assert len(list(tmp_path.glob("checkpoints/vae/*"))) == 1
    assert (tmp_path / "models" / "vae").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(("world", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_signal_ends_the_command_with_130_and_its_state_saved(project, tmp_path, world, number):
    """Ctrl-C reaches loader workers too; SIGTERM of one process of two stops both behind the same step."""
    call = [sys.executable, *musicldm(project, tmp_path, "vae", "-S", "vae.train.checkpoint_every=9999")]
    long, deadline = ["-S", "vae.train.steps=9999"], time.monotonic() + 240
    options = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with started([*call, *long], environments(2) if world == 2 else [None], **options) as ranks:
        while not list(tmp_path.glob("checkpoints/vae/*/log.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        if world == 1:
            os.killpg(ranks[0].pid, number)
        else:
            ranks[1].send_signal(number)
        errors = [json.loads(process.communicate(timeout=120)[0])["error"] for process in ranks]
    assert [process.returncode for process in ranks] == [130] * world
    (step,) = {
        int(re.match(r"Stopped at step (\d+) of 9999; the state is in", error["message"])[1]) for error in errors
    }
    (run,) = (tmp_path / "checkpoints" / "vae").glob("*/")
    assert (run / f"step-{step:08d}").is_dir()
    more = ["-S", f"vae.train.steps={step + 1}", "--resume"]
    done = subprocess.run([*call, *more], stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    assert json.loads(done.stdout)["resumed_at"] == step
