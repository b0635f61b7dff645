"""`train beats` at toy size, and what its crops and targets are made of."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from musicldm_cli.app import app
from stages.audio import io
from stages.beats import clips
from stages.beats.backends import SHIPPED
from stages.beats.features import MIX
from stages.beats.model import Tracker, save_tracker
from stages.beats.transformer import BeatTransformer, Sizes
from stages.data.score_beats.collection import INDEX, Piece
from stages.errors import DataError, ModelError
from stages.store import model_card, model_digest, write_jsonl, write_text
from stages.weights.describe import describe
from tests.beats.conftest import SAMPLE_RATE, click_track


@pytest.fixture(scope="module")
def scores(tmp_path_factory) -> Path:
    """Six pieces of drums in three splits, as `data fetch score-beats` leaves them."""
    folder = tmp_path_factory.mktemp("scores")
    pieces = []
    for number, split in enumerate(["train"] * 4 + ["valid", "test"]):
        samples, bars = click_track(90 + 15 * number, 20)
        audio, beats = f"{split}/{number}.flac", f"{split}/{number}.beats"
        io.write(folder / audio, samples.astype(np.float32) * 0.9, SAMPLE_RATE)
        write_text(folder / beats, "".join(f"{time:.4f}\t{place:.0f}\n" for time, place in bars))
        pieces.append(Piece(f"{number}", split, audio, beats, "drums", "test", "CC0-1.0", 4, 90.0, 20.0, "none"))
    write_jsonl(folder / INDEX, [asdict(piece) for piece in pieces])
    return folder


def test_targets_stand_at_the_beats_and_fade_to_both_sides():
    found = clips.targets(np.array([0.2, 10.0, 19.6]), np.array([False, True, False]), 20)
    assert found.shape == (20, 2)
    assert found[:3, 0].tolist() == [1.0, 0.5, 0.25]
    assert found[8:13, 0].tolist() == [0.25, 0.5, 1.0, 0.5, 0.25]
    assert found[18:, 0].tolist() == [0.25, 0.5]  # of the beat just after the end
    assert found[:, 1].nonzero()[0].tolist() == [8, 9, 10, 11, 12]


def test_the_tempo_target_is_the_tempo():
    assert int(clips.tempo_target(np.arange(8) * 0.5).argmax()) == 120
    assert clips.tempo_target(np.arange(8) * 0.5).sum() == pytest.approx(1)
    assert not clips.tempo_target(np.array([1.0])).any()


def test_a_stretched_crop_has_its_beats_where_its_drums_are(scores, tmp_path):
    """The kick's energy, in the lowest bins, peaks at the target's downbeats, however the crop was drawn."""
    pieces = [Piece(**json.loads(line)) for line in (scores / INDEX).read_text().splitlines()]
    dataset = clips.BeatClips(scores, pieces[:1], 400, tmp_path, augment=True)
    same = [dataset[0, 7] for _ in range(2)]
    assert torch.equal(same[0]["mel"], same[1]["mel"])
    lags = []
    for seed in range(12):
        crop = dataset[0, seed]
        assert crop["mel"].shape == (400, 128)
        assert -80 <= crop["mel"].min() <= crop["mel"].max() <= 0
        rise = np.diff(crop["mel"][:, :20].mean(1).numpy(), prepend=-80).clip(0)
        downbeats = crop["beats"][:, 1].numpy()
        if downbeats.any():
            lags.append(int(np.argmax([np.roll(rise, -lag) @ downbeats for lag in range(-10, 11)])) - 10)
    assert len(lags) > 6
    assert abs(np.median(lags)) <= 1


def test_a_quarter_of_the_crops_begin_where_the_music_does(scores, tmp_path):
    """Of a piece whose only beats are in its first half second, which a crop drawn anywhere misses most often."""
    pieces = [Piece(**json.loads(line)) for line in (scores / INDEX).read_text().splitlines()]
    dataset = clips.BeatClips(scores, pieces[:1], 100, tmp_path, augment=True)
    dataset.mels = [np.zeros((100_000, 128), dtype=np.uint8)]
    dataset.bars = [np.array([[0.1, 1.0], [0.4, 2.0]])]
    share = np.mean([bool(dataset[0, seed]["beats"].any()) for seed in range(300)])
    assert share == pytest.approx(clips.BEGINNING_SHARE, abs=0.08)


def test_what_a_teacher_heard_is_stretched_with_the_crop():
    heard = np.zeros((1000, 2), dtype=np.float32)
    heard[500] = 1
    taught = clips.Taught(Path("x.flac"), heard, fps=100)
    assert taught.at((100 + 1.25 * np.arange(200)) / MIX.fps)[:, 0].argmax() == 80


@pytest.mark.parametrize("extra", [[], ["--distil", "music"]])
def test_the_command_trains_saves_and_goes_on(scores, tmp_path, monkeypatch, extra):
    monkeypatch.chdir(tmp_path)
    if extra:
        (tmp_path / "music").mkdir()
        io.write(tmp_path / "music/a.wav", click_track(100, 12)[0].astype(np.float32) * 0.5, SAMPLE_RATE)
    words = ["--json", "--work", "work", "train", "beats", str(scores), "--preset", "tiny"]

    def invoke(*more: str) -> dict:
        done = CliRunner().invoke(app, [*words, *extra, *more], catch_exceptions=False)
        return json.loads(done.stdout)

    first = invoke("-S", "beats.train.steps=6", "-S", "beats.train.checkpoint_every=3")
    assert (first["steps"], first["resumed_at"], first["test"]["pieces"]) == (6, 0, 1)
    assert np.isfinite(first["valid"]["loss"])
    card = json.loads((tmp_path / "work/models/beats/musicldm.json").read_text())
    assert (card["kind"], card["distilled_from"]) == ("beats", "madmom" if extra else None)
    again = invoke("-S", "beats.train.steps=8")
    assert (again["steps"], again["resumed_at"]) == (8, 6)
    found = CliRunner().invoke(
        app,
        ["--json", "--work", "work", "prep", "beats", "--audio", str(scores / "test"), "--out", "found", "-j", "1",
         "-S", "beats.model=work/models/beats"],
        catch_exceptions=False,
    )  # fmt: skip
    assert json.loads(found.stdout)["files"] == 1


def test_a_training_goes_on_from_another_tracker(scores, tmp_path, monkeypatch):
    """With no step's learning rate it is that tracker; one of other sizes is refused, as is what is none."""
    monkeypatch.chdir(tmp_path)
    words = ["--json", "train", "beats", str(scores), "-S", "beats.train={steps: 1, warmup_steps: 1, workers: 0}"]
    words += ["-S", "beats.train.learning_rate=1e-12", "-S", "beats.train.batch_size=1", "-S", "beats.crop_seconds=4"]

    def invoke(*more: str):
        return CliRunner().invoke(app, [*words, *more])

    assert invoke("-S", "beats.init_from=shipped").exit_code == 0
    found, start = (load_file(folder / "model.safetensors") for folder in (Path("work/models/beats"), SHIPPED))
    assert max(float((found[name] - start[name]).abs().max()) for name in start) < 1e-3
    assert model_card(Path("work/models/beats"))["init_from"] == model_digest(SHIPPED)
    for more in (["-S", "beats.network.layers=5"], ["-S", "beats.init_from=nothing"]):
        assert isinstance(invoke("-S", "beats.init_from=shipped", *more).exception, ModelError)


def test_what_it_started_from_is_known_by_its_weights(scores, tmp_path, monkeypatch):
    """A tracker that moved is the same start; another at the same place is not."""
    monkeypatch.chdir(tmp_path)
    sizes = Sizes(1, (4, 8), 32, 32, 6)
    for name, seed in (("first", 0), ("second", 1)):
        torch.manual_seed(seed)
        save_tracker(Tracker(BeatTransformer(sizes), MIX), tmp_path / name, {})
    shutil.copytree("first", "moved")
    words = ["--json", "--work", "work", "train", "beats", str(scores), "--preset", "tiny"]
    words += ["-S", "beats.train.workers=0", "-S", "beats.train.warmup_steps=0"]

    def resumed(start, steps):
        more = ["-S", f"beats.init_from={start}", "-S", f"beats.train.steps={steps}"]
        done = CliRunner().invoke(app, [*words, *more], catch_exceptions=False)
        return json.loads(done.stdout)["resumed_at"]

    assert resumed("first", 1) == 0
    assert resumed("moved", 2) == 1
    shutil.rmtree("moved")
    shutil.copytree("second", "moved")
    assert resumed("moved", 2) == 0


def test_a_folder_without_pieces_is_refused(tmp_path):
    from stages import params
    from stages.beats.train import BeatTask

    with pytest.raises(DataError, match="There is no"):
        BeatTask(params.preset("tiny"), tmp_path, tmp_path / "cache")
    write_jsonl(tmp_path / INDEX, [])
    with pytest.raises(DataError, match="no piece to train on"):
        BeatTask(params.preset("tiny"), tmp_path, tmp_path / "cache")


def test_the_shipped_tracker_is_described():
    about = describe(SHIPPED)
    assert (about["kind"], about["licence"]) == ("beats", "MIT")
    assert about["networks"]["model"]["parameters"] == 4_098_670
    assert about["megabytes"] <= 12
    assert set(about["test"]) == {"beat_f", "downbeat_f", "pieces"}
