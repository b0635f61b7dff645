import json
import os
import re
import signal
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from stages.errors import DataError, Interrupted, ModelError, ParamsError
from stages.params import preset, resolve
from stages.training import checkpoint, loop
from stages.training.loop import train
from stages.training.state import averaged_weights, build_scheduler, ema_decay
from tests.training.networks import environments, started
from tests.training.toy import ToyTask, Vectors, bits, settings

IDENTITY = {"toy.size": "8", "data": "abc"}


def run(folder, task=None, identity=IDENTITY, **options):
    task = task or ToyTask(settings())
    said = []
    history = train(task, checkpoints=folder, identity=identity, log=said.append, warn=said.append, **options)
    return task, history, said


def stop_after(task, step):
    """Make the task's process receive SIGTERM in the middle of `step`."""
    original = task.step

    def step_and_stop(batch, number, backward):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(batch, number, backward)

    task.step = step_and_stop
    return task


@pytest.mark.parametrize("stop", [0, 4, 6])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path, stop):
    whole, _, _ = run(tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=f"step {stop + 1} of 12"):
        run(tmp_path / "parts", stop_after(ToyTask(settings()), stop))
    assert signal.getsignal(signal.SIGTERM) is before
    rest, history, _ = run(tmp_path / "parts")
    assert history.resumed_at == stop + 1
    assert bits(rest.state) == bits(whole.state)
    assert [step for step, _ in rest.seen] == list(range(stop + 1, 12))
    assert rest.seen == whole.seen[stop + 1 :]
    assert rest.state.uses == whole.state.uses == {(0, n): 2 for n in range(6)}


def test_a_killed_training_goes_on_from_its_last_checkpoint(tmp_path):
    whole, whole_history, _ = run(tmp_path / "whole")

    class Killed(Exception):
        pass

    task = ToyTask(settings())
    original = task.step

    def step_or_die(batch, number, backward):
        if number == 8:
            raise Killed
        return original(batch, number, backward)

    task.step = step_or_die
    with pytest.raises(Killed):
        run(tmp_path / "parts", task)
    (run_folder,) = (tmp_path / "parts" / "toy").glob("*/")
    for cut in (".tmp-step-00000009-x", ".old-step-00000009-x"):  # a save that the kill cut
        (run_folder / cut).mkdir()
    rest, history, _ = run(tmp_path / "parts", resume=True)
    assert history.resumed_at == 8  # validation at 8 was the best so far, hence saved
    assert bits(rest.state) == bits(whole.state)
    assert rest.state.uses == whole.state.uses
    assert history.valid == whole_history.valid
    assert not list(run_folder.glob(".*"))


def test_the_same_training_twice_at_once_is_refused(tmp_path):
    task = ToyTask(settings())
    original = task.step

    def step_and_start_again(batch, number, backward):
        if number == 3:
            with pytest.raises(DataError, match="Another process is at work in"):
                run(tmp_path)
        return original(batch, number, backward)

    task.step = step_and_start_again
    _, history, _ = run(tmp_path, task)
    assert history.steps == 12


def test_a_finished_training_says_its_validation_again(tmp_path):
    _, _, first = run(tmp_path)
    _, _, again = run(tmp_path)  # which takes no step, so that it has no losses of one
    assert "train loss" in first[-1]
    assert re.fullmatch(r"step 12: valid loss \S+", again[-1])


def test_a_longer_training_goes_on_only_from_checkpoints_it_would_pass(tmp_path):
    constant = settings(schedule="constant")
    run(tmp_path, ToyTask(constant))
    longer, history, _ = run(tmp_path, ToyTask(constant.model_copy(update={"steps": 20})))
    assert history.resumed_at == 12
    straight, _, _ = run(tmp_path / "straight", ToyTask(constant.model_copy(update={"steps": 20})))
    assert bits(longer.state) == bits(straight.state)
    _, history, _ = run(tmp_path, ToyTask(constant.model_copy(update={"steps": 10})))
    assert history.resumed_at <= 10
    assert history.steps == 10


def test_a_finished_training_is_validated_and_left_alone(tmp_path):
    first, done, _ = run(tmp_path)
    again, history, _ = run(tmp_path)
    assert again.seen == []
    assert history.valid == done.valid
    assert bits(again.state) == bits(first.state)


def test_checkpoints_kept_are_the_last_and_the_best(tmp_path):
    _, history, said = run(tmp_path, ToyTask(settings(steps=30)))
    kept = [checkpoint.step_of(folder) for folder in checkpoint.steps_on_disk(history.run)]
    assert kept[-2:] == sorted(kept)[-2:]
    assert history.best_step in kept
    assert len(kept) <= 3
    assert sum("valid loss" in line for line in said) == 8
    index = json.loads((history.run / "step-00000030" / "checkpoint.json").read_text())
    assert index["identity"] == IDENTITY
    assert {"network.safetensors", "judge.safetensors", "ema.safetensors", "optimizers.pt"} == set(index["files"])


@pytest.mark.parametrize("file", ["network.safetensors", "optimizers.pt", "checkpoint.json", "ema.safetensors"])
@pytest.mark.parametrize("how", ["cut", "flip", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, file, how):
    whole, history, _ = run(tmp_path)
    path = history.run / "step-00000012" / file
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if how == "cut" else bytes([data[0] ^ 1]) + data[1:])
    again, history, said = run(tmp_path)
    assert history.resumed_at == 9
    assert any("step-00000012 is damaged" in line for line in said)
    assert bits(again.state) == bits(whole.state)


def test_when_every_checkpoint_is_damaged_nothing_is_started_anew(tmp_path):
    _, history, _ = run(tmp_path)
    for folder in checkpoint.steps_on_disk(history.run):
        (folder / "network.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="Every checkpoint") as caught:
        run(tmp_path)
    assert "--no-resume" in caught.value.remedy
    _, history, _ = run(tmp_path, resume=False)
    assert history.resumed_at == 0


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path(os.environ["MUSICLDM_TEST_MARK"]),))


def test_a_hostile_pickle_is_not_run_even_with_a_fitting_hash(tmp_path, monkeypatch):
    _, history, _ = run(tmp_path)
    mark = tmp_path / "mark"
    monkeypatch.setenv("MUSICLDM_TEST_MARK", str(mark))
    for folder in checkpoint.steps_on_disk(history.run):
        torch.save({"optimizers": Hostile()}, folder / "optimizers.pt")
        index = json.loads((folder / "checkpoint.json").read_text())
        index["files"]["optimizers.pt"] = checkpoint.sha256(folder / "optimizers.pt")
        (folder / "checkpoint.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="Every checkpoint"):
        run(tmp_path)
    assert not mark.exists()


def test_another_identity_starts_anew_and_resume_refuses_it_by_name(tmp_path):
    run(tmp_path)
    other = {**IDENTITY, "data": "xyz"}
    with pytest.raises(ModelError, match="data was abc, now xyz"):
        run(tmp_path, identity=other, resume=True)
    with pytest.raises(ModelError, match="there is none below"):
        run(tmp_path / "empty", resume=True)
    _, history, said = run(tmp_path, identity=other)
    assert history.resumed_at == 0
    assert "data was abc, now xyz" in said[0]


def test_identity_names_each_key_and_leaves_out_what_may_change():
    identity = checkpoint.training_identity(preset("tiny"), "vae", "mel", data="d")
    assert identity["vae.latent_channels"] == "8"
    assert identity["mel.n_mels"] == "64"
    assert identity["data"] == "d"
    assert "vae.train.steps" not in identity
    assert "vae.train.keep_last" not in identity
    assert "vae.train.seed" in identity
    assert "vae.train.lr_decay" not in identity
    assert "vocoder.train.steps" in checkpoint.training_identity(preset("tiny"), "vocoder")
    assert "vocoder.train.lr_decay" in checkpoint.training_identity(preset("paper"), "vocoder")
    started = checkpoint.training_identity(resolve({"preset": "tiny", "vae": {"init_from": "a"}}), "vae", init_from="d")
    assert (started["init_from"], "vae.init_from" in started) == ("d", False)


def test_steps_without_a_finite_loss_change_nothing(tmp_path):
    bad = range(0, 32, 5)
    task = ToyTask(settings(ema_decay=0.9), Vectors(bad=bad))
    seen = []
    original = task.step

    def watched(batch, number, backward):
        seen.append((bool(batch["x"].isnan().any()), bits(task.state)))
        return original(batch, number, backward)

    task.step = watched
    _, history, _ = run(tmp_path, task)
    assert history.skipped == sum(is_bad for is_bad, _ in seen) > 0
    for (is_bad, before), (_, after) in pairwise(seen):
        assert (before == after) == is_bad


def test_too_many_bad_steps_in_a_row_name_the_tracks(tmp_path):
    task = ToyTask(settings(max_bad_steps=3, batch_size=2), Vectors(count=2, bad=(0, 1)))
    with pytest.raises(ModelError, match=r"3 steps in a row.*track-0, track-1") as caught:
        run(tmp_path, task)
    assert "toy.train.learning_rate" in caught.value.remedy


def test_accumulation_equals_one_large_batch(tmp_path):
    one, _, _ = run(tmp_path / "1", ToyTask(settings(), noise=False))
    four, _, _ = run(tmp_path / "4", ToyTask(settings(accumulation=4), noise=False))
    for a, b in zip(one.state.network.parameters(), four.state.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_ema_follows_the_formula(tmp_path):
    task, weights = ToyTask(settings(steps=10, ema_decay=0.5)), []
    original = task.step

    def watched(batch, number, backward):
        weights.append([p.detach().clone() for p in task.state.network.parameters()])
        return original(batch, number, backward)

    task.step = watched
    run(tmp_path, task)
    weights.append([p.detach().clone() for p in task.state.network.parameters()])
    mean = weights[1]
    for n, current in enumerate(weights[2:], start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        mean = [decay * m + (1 - decay) * c for m, c in zip(mean, current, strict=True)]
    with averaged_weights(task.state):
        for wanted, got in zip(mean, task.state.network.parameters(), strict=True):
            torch.testing.assert_close(got.detach(), wanted)
    for wanted, got in zip(weights[-1], task.state.network.parameters(), strict=True):
        assert torch.equal(got, wanted)  # its own weights are back, bit for bit
    assert [ema_decay(0.9999, n) for n in (0, 1, 10**6)] == [0.1, 2 / 11, 0.9999]


def test_schedules_against_the_formula():
    import math

    parameter = torch.nn.Parameter(torch.zeros(1))
    rates = {}
    for schedule in ("constant", "cosine", "exponential"):
        chosen = settings(schedule=schedule, warmup_steps=4, steps=12, learning_rate=1.0, lr_decay=0.9, batch_size=8)
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        scheduler = build_scheduler(optimizer, chosen, 27)  # a pass is 3.4 batches
        rates[schedule] = []
        for _ in range(12):
            rates[schedule].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    assert rates["constant"] == [0.25, 0.5, 0.75] + [1.0] * 9
    wanted = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert rates["cosine"] == pytest.approx([0.25, 0.5, 0.75, 1.0, *wanted])
    assert rates["exponential"] == pytest.approx([0.25, 0.5, 0.75, 1.0, *[0.9] * 3, *[0.81] * 4, 0.729])


def test_log_has_each_step_once_after_a_resume(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, stop_after(ToyTask(settings(steps=40)), 24))
    _, history, _ = run(tmp_path, ToyTask(settings(steps=40)))
    lines = [json.loads(line) for line in (history.run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [10, 20, 30, 40]
    assert [line["step"] for line in lines if "valid/loss" in line] == list(range(4, 41, 4))
    assert {"judge", "norm/network", "lr/judge"} <= lines[2].keys() | lines[1].keys() | lines[3].keys()


def test_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(ParamsError, match=r"toy.train.batch_size 8 does not divide by 1 processes x 3"):
        run(tmp_path, ToyTask(settings(accumulation=3)))


def test_step_seeds_differ_by_step_and_rank():
    seeds = {loop.step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}
    assert len(seeds) == 600


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", ["1", "2"])
def test_two_processes_equal_one_at_the_same_global_batch(tmp_path, accumulation):
    call = [sys.executable, "-m", "tests.training.toy", str(tmp_path)]
    with started(call, environments(2, ACCUMULATION=accumulation)) as ranks:
        assert [process.wait(timeout=240) for process in ranks] == [0, 0]
    alone, _, said = run(tmp_path / "alone", ToyTask(settings(steps=5), noise=False))
    both = torch.load(tmp_path / "kept.pt", weights_only=True)
    parts = int(accumulation)
    assert both["uses"] == {(rank, n): parts * count for rank in (0, 1) for n, count in enumerate((2, 2, 1))}
    shown, wanted = ([float(x) for x in re.findall(r"-?\d+\.\d+", " ".join(lines))] for lines in (both["said"], said))
    assert shown == pytest.approx(wanted, rel=1e-3)  # means over both, not the first one's
    assert len(wanted) == 2 * 3  # loss, judge and validation, at steps 4 and 5
    for a, b in zip(both["weights"], alone.state.network.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-6)
