"""Several processes as a person starts them: the guide's configurations with the real command."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.ldm.toy import TOY
from tests.training.networks import ACCELERATE, environments, free_port, started


def musicldm(project, work, name, *more):
    """The words behind `python` for a training on the toy project, which writes below `work`."""
    settings = work / "params.yaml"
    settings.write_text(yaml.safe_dump(TOY))
    parts = ("latents", "clap", "vae", "vocoder") if name == "ldm" else ()
    places = [word for part in ("shards", *parts) for word in (f"--{part}", str(project.work / part))]
    options = ["--json", "--params", str(settings), "--work", str(work)]
    return ["-m", "musicldm_cli", *options, "train", name, *places, *more]


def test_shards_are_refused_with_code_3_and_nothing_is_written(project, tmp_path):
    call = [sys.executable, *musicldm(project, tmp_path, "ldm")]
    with started(call, environments(2, ACCELERATE_USE_FSDP="true"), stdout=subprocess.PIPE, text=True) as ranks:
        for process in ranks:
            said, _ = process.communicate(timeout=120)
            error = json.loads(said)["error"]
            assert (process.returncode, error["code"]) == (3, 3)
            assert error["message"].startswith("Training in shards (FSDP) is not supported")
            assert "ddp.yaml" in error["remedy"]
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
    assert len(list(tmp_path.glob("checkpoints/vae/*/"))) == 1  # beside its lock
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
