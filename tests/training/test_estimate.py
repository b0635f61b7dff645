"""The estimate of a training, the samples of a run and its trackers, at toy size."""

import json
import time
from itertools import pairwise

import pytest
import torch

from stages.errors import UsageError
from stages.training import estimate as estimating
from stages.training.estimate import MEASURED, WARM, estimate, sizes
from stages.training.loop import train
from stages.training.samples import Sample
from tests.training.toy import ToyTask, settings


class TwoPhases(ToyTask):
    """Its steps take longer from step 400 on, and mixing takes another while."""

    phases = (0, 400, 2000)

    def step(self, batch, step, backward):
        time.sleep(0.05 if step >= 400 else 0.01)
        return super().step(batch, step, backward)

    def extra_seconds(self, _device):
        return 0.25


def test_an_estimate_sums_up_its_phases_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimating, "SHORTEST", 0.0)
    task = TwoPhases(settings(steps=1000))
    found = estimate(task)
    assert list(tmp_path.iterdir()) == []
    assert list(found.step_seconds) == [0, 400]  # the third would begin behind the end
    assert [step for step, _ in task.seen] == [*range(WARM + MEASURED), *range(400, 400 + WARM + MEASURED)]
    assert found.step_seconds[0] >= 0.01
    assert found.step_seconds[400] >= 0.05
    bounds = [*found.step_seconds, 1000]
    wanted = sum((b - a) * found.step_seconds[a] for a, b in pairwise(bounds)) + 250
    wanted += 250 * found.valid_seconds  # at every fourth step
    assert found.total_seconds == pytest.approx(wanted)
    assert found.peak_bytes > found.state_bytes


def test_sizes_count_what_is_trained_and_what_adam_keeps():
    task = ToyTask(settings(ema_decay=0.9))
    counts, trained, held = sizes(task.state)
    assert counts == {"network": 280, "judge": 9, "moving average": 280}
    assert trained == 289
    assert held == 4 * (280 + 9 + 280) + 3 * 4 * 289


class Heard(ToyTask):
    def samples(self, batch, _generator):
        made = self.state.modules["network"](batch["x"])
        mels = {"real": batch["x"][:, None].expand(-1, 6, -1), "made": made[:, None].expand(-1, 6, -1)}
        return [Sample({k: v[n] for k, v in mels.items()}, torch.zeros(1600), 16_000) for n in range(len(made))]


def test_samples_and_trackers_are_told_at_validation(tmp_path):
    import soundfile

    tasks = [Heard(settings(samples=2)), ToyTask(settings())]
    runs = [train(task, checkpoints=tmp_path / str(n), identity={"a": "b"}, trackers=["tensorboard", "dvclive"])
            for n, task in enumerate(tasks)]  # fmt: skip
    names = sorted(file.name for file in (runs[0].run / "samples").iterdir())
    assert names == [f"step-{step:08d}-{n}.{kind}" for step in (4, 8, 12) for n in (0, 1) for kind in ("flac", "png")]
    assert soundfile.info(runs[0].run / "samples" / names[0]).frames == 1600
    assert list((runs[0].run / "tensorboard").iterdir())
    assert (runs[0].run / "dvclive" / "metrics.json").is_file()
    for heard, silent in zip(*(task.state.network.parameters() for task in tasks), strict=True):
        assert torch.equal(heard, silent)  # looking changes nothing
    with pytest.raises(UsageError, match="There is no tracker paper"):
        train(tasks[1], checkpoints=tmp_path / "x", identity={"a": "b"}, trackers=["paper"])


def test_a_run_says_how_long_it_waited(tmp_path):
    history = train(ToyTask(settings(steps=20)), checkpoints=tmp_path, identity={"a": "b"})
    lines = [json.loads(line) for line in (history.run / "log.jsonl").read_text().splitlines()]
    timed = [line for line in lines if "seconds/step" in line]
    assert len(timed) == 2
    assert all(0 < line["seconds/wait"] < line["seconds/step"] for line in timed)


@pytest.mark.slow
def test_wandb_is_told_without_a_network(tmp_path, monkeypatch):
    """The real client in its offline mode: figures, pictures and sound are in the run's folder, to be synced or not."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    history = train(Heard(settings(samples=1, steps=12)), checkpoints=tmp_path, identity={"a": "b"}, trackers=["wandb"])
    (run,) = (history.run / "wandb").glob("offline-run-*")
    assert list(run.glob("run-*.wandb"))
    kinds = {file.suffix for file in (run / "files" / "media").rglob("*") if file.is_file()}
    assert kinds == {".png", ".wav"}
