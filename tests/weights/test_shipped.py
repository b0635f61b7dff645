"""The model that comes with musicldm: whole, small, credited, and what `generate` takes when there is no other."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from stages.audio.mel import clip_mel
from stages.data import debian_games
from stages.generate.batch import make_clips
from stages.generate.pipeline import Pipeline
from stages.generate.prompts import Prompt
from stages.generate.settings import Settings
from stages.generate.windows import window_starts
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
    about = model_card(SHIPPED)
    train, ldm = about["params"]["ldm"]["train"], about["params"]["ldm"]
    mixed = train["steps"] * train["batch_size"] * ldm["mixup_probability"]
    assert about["mixup"]["clips"] * about["mixup"]["mean_uses"] == pytest.approx(mixed, rel=0.02)
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


def test_clips_have_headroom_and_no_offset():
    """Of these four, before, one was at full scale and two had means of 0.006 and 0.007."""
    pipeline = Pipeline.load(SHIPPED, "cpu", few_steps=True)
    words = {3: "slow ambient pad", 6: "orchestral battle theme", 7: "lo-fi hip hop beat", 11: "choir in a cathedral"}
    for seed, text in words.items():
        (clip,) = make_clips(pipeline, [Prompt(text, text, seed, None, 1.0, 10.24)], Settings("few-steps", 6, 0.0, 1))
        assert clip.waveform.abs().max() <= 10 ** (-1 / 20)
        assert abs(clip.waveform.mean()) < 1e-4


@pytest.mark.slow  # half a minute of music
def test_long_music_changes_no_more_where_windows_meet_than_elsewhere():
    """Ranks of the largest step of the log-mel near a border among those of all moments: about half of them are
    smaller. Where 1.4 s are cut out there, most are: so a seam would be seen."""
    pipeline = Pipeline.load(SHIPPED, "cpu")
    wanted, params = Prompt("a", "calm piano", 0, None, 2.0, 30.0), pipeline.params
    audio = pipeline.waveforms([wanted], [0], Settings("unipc", 8, 0.0, 1))[0]
    size, factor, hop = params.latent_shape[1], params.vae.downsampling, params.mel.hop_length
    starts = window_starts(pipeline.positions(wanted.seconds), size)
    borders = sorted({factor * start for start in starts[1:]} | {factor * (start + size) for start in starts[:-1]})
    assert len(borders) == 8
    mel = clip_mel(params)

    def rank(sound, border):
        steps = mel(sound[None])[0].diff(dim=0).abs().mean(1)
        moments = steps[: len(steps) // 8 * 8].unflatten(0, (-1, 8)).amax(1)
        return float((moments < steps[border - 4 : border + 4].max()).float().mean())

    def without(border):
        return torch.cat([audio[: border * hop], audio[border * hop + 22_000 :]])

    assert np.mean([rank(audio, border) for border in borders]) < 0.6
    assert np.mean([rank(without(border), border) for border in borders[1:-1]]) > 0.75
