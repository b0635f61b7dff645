"""The model that comes with musicldm: whole, small, credited, and what `generate` takes when there is no other."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from stages.data import debian_games
from stages.layout import Layout
from stages.store import model_card, verify_model
from stages.weights.describe import describe
from stages.weights.shipped import ROOM, SHIPPED, default_pipeline

MOST_BYTES = 90_000_000


def test_it_is_whole_half_precision_and_small():
    assert verify_model(SHIPPED) == []
    about = describe(SHIPPED)
    assert about["kind"] == "ldm" and about["preset"] == "small"
    assert {network["format"] for network in about["networks"].values()} <= {"F16", "F16, I64"}
    assert sum(file.stat().st_size for file in ROOM.rglob("*") if file.is_file()) <= MOST_BYTES


def test_every_track_it_learned_from_is_credited_and_free():
    with (ROOM / "attribution.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    listed = {row.target: row for row in debian_games.listed("cc")}
    assert len(rows) == len({row["path"] for row in rows}) > 100
    for row in rows:
        source = listed[row["path"]]
        assert (row["licence"], row["title"], row["artist"]) == (source.licence, source.title, source.artist)
        assert row["split"] in ("train", "valid", "test")


def test_its_card_says_what_its_metrics_say():
    card, metrics = ((ROOM / name).read_text(encoding="utf-8") for name in ("README.md", "metrics.json"))
    for value in json.loads(metrics)["card"].values():
        assert str(value) in card
    assert "/home" not in json.dumps(model_card(SHIPPED)) and "/root" not in json.dumps(model_card(SHIPPED))


def test_a_model_of_ones_own_goes_before_it(tmp_path, toy_models):
    assert default_pipeline(Layout(tmp_path)) == SHIPPED
    assert default_pipeline(Layout(toy_models.parent)) == toy_models / "ldm"


@pytest.mark.parametrize("options", [(), ("--model", "shipped")])
def test_a_fresh_install_makes_music_offline(tmp_path, options):
    command = [sys.executable, "-m", "musicldm_cli", "--json", "generate", "dramatic trailer", "--steps", "4", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["ok"]
    samples, rate = soundfile.read(tmp_path / said["paths"][0])
    assert rate == 16_000 and len(samples) == 163_840
    assert 0.01 < np.sqrt(np.mean(samples**2)) < 0.5
