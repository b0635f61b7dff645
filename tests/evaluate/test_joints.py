"""`eval joints`: each mark is what it says, and the command measures all of them against the same real clips."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import scipy.optimize
import scipy.signal
import soundfile
import torch

from stages import params as parameters
from stages.audio.mel import clip_mel
from stages.data.shards import ShardReader, write_shards
from stages.evaluate.backbones import MusicnnBackbone
from stages.evaluate.embeddings import Segment, embed, evenly, normalised, shard_segments
from stages.evaluate.intervals import ratio_figure
from stages.evaluate.joints import SETS, GriffinLim, shaped_noise, shuffled_grains
from stages.evaluate.quality import frechet_distance
from tests import DEMO
from tests.conftest import CLIP_SECONDS
from tests.data.conftest import _write_collection

TRAIN = ["flare_battle_theme", "singularity_nebula"]
TEST = ("hyperrogue_hr3_caves", "hyperrogue_hr3_desert")
RATE = 16_000
RAW = {
    "preset": "tiny", "audio": {"clip_seconds": CLIP_SECONDS}, "clap": {"window_seconds": CLIP_SECONDS},
    "evaluate": {"bootstrap": 20},
}  # fmt: skip
PARAMS = parameters.resolve(RAW)
N = 6  # clips in a set of the command's test


@pytest.fixture(scope="module")
def work(toy_models, tmp_path_factory):
    work = tmp_path_factory.mktemp("joints") / "work"
    _write_collection(work, [*TRAIN, *TEST], seconds=8.0, test=TEST)
    write_shards(work / "audio/manifest.csv", work / "beats/beats.jsonl", work / "captions/captions.jsonl",
                 work / "shards", PARAMS)  # fmt: skip
    shutil.copytree(toy_models, work / "models")
    (work.parent / "params.yaml").write_text(parameters.to_yaml(PARAMS), encoding="utf-8")
    return work


def spectrum(samples):
    return scipy.signal.welch(samples, RATE, nperseg=1024)[1]


def test_shaped_noise_has_the_sets_spectrum_and_no_tune(work):
    reader = ShardReader(work / "shards")
    clips = list(shard_segments(reader, "test", PARAMS.audio))
    noise = [clip.samples for clip in shaped_noise(iter(clips), PARAMS.audio, 12, 0)]
    wanted = np.mean([spectrum(normalised(clip.samples, PARAMS.audio).numpy()) for clip in clips], 0)
    found = np.mean([spectrum(samples) for samples in noise], 0)
    inside = slice(3, 480)  # without the mean, which both lack, and the filter's edge
    decibels = 10 * np.log10(found[inside] / wanted[inside])
    assert np.std(decibels) < 1.5  # of 12 clips; one level apart, since each is scaled to one peak
    assert np.std(10 * np.log10(wanted[inside])) > 8
    assert not np.array_equal(noise[0], noise[1])


def test_grains_are_the_training_musics_own(work):
    reader = ShardReader(work / "shards")
    music = np.concatenate([reader.audio(i, 0, t.samples) for i, t in enumerate(reader.tracks) if t.split == "train"])
    music = music / np.float32(32768)
    clip = next(iter(shuffled_grains(reader, PARAMS.audio, 1, seed=3)))
    assert clip.samples.shape == (PARAMS.audio.clip_samples,)
    middle = clip.samples[1000:15_000]  # the first grain, without its fades
    match = scipy.signal.correlate(music, middle, "valid")
    energy = np.convolve(np.square(music.astype(float)), np.ones(len(middle)), "valid")
    at = int((match / np.sqrt(energy)).argmax())
    assert np.allclose(music[at : at + len(middle)], middle, atol=1e-6)
    assert abs(clip.samples[0]) < 1e-6


def test_griffin_lim_keeps_the_mel_and_its_bins_are_nearly_the_best_there_are():
    front_end = clip_mel(PARAMS)
    samples, _ = soundfile.read(DEMO / "flare_cave_theme.ogg", frames=PARAMS.audio.clip_samples, dtype="float32")
    mel = front_end(normalised(samples, PARAMS.audio)[None])
    way = GriffinLim(front_end, 0)
    sound = way(mel)
    assert sound.shape == (1, PARAMS.audio.clip_samples)
    assert torch.equal(sound, way(mel))
    assert (front_end(sound) - mel).abs().mean() < 0.3
    frames, filters = mel[0, ::16].exp(), front_end.filters.numpy()
    best = [scipy.optimize.nnls(filters.T, frame)[1] for frame in frames.numpy()]
    left = np.linalg.norm((way.bins(frames) @ front_end.filters - frames).numpy(), axis=1)
    cut = np.linalg.norm(((frames @ way.inverse).clamp(min=0) @ front_end.filters - frames).numpy(), axis=1)
    assert np.mean(left - best) < 0.2 * np.mean(cut - best)
    assert (way.bins(frames) >= 0).all()


def test_a_ratios_interval_knows_what_both_share():
    generator = np.random.default_rng(0)
    common = np.exp(generator.normal(0, 0.5, 400))
    above, below = 2 * common * np.exp(generator.normal(0, 0.05, 400)), common
    found = ratio_figure(2.0, 1.0, above.tolist(), below.tolist(), 7)
    assert found["value"] == 2.0
    assert found["high"] / found["value"] == pytest.approx(np.exp(1.96 * 0.05), rel=0.02)
    assert ratio_figure(1.0, 0.0, [1.0], [0.0], 3) is None


def test_evenly_keeps_both_ends():
    assert evenly(range(100), 3) == [0, 50, 99]
    assert evenly(range(3), 5) == [0, 1, 2]


@pytest.fixture
def call(work, typed):
    return partial(typed, work.parent)


def test_the_command_measures_every_joint_against_the_same_clips(call, work, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    for name in TEST:
        samples, _ = soundfile.read(DEMO / f"{name}.ogg", frames=PARAMS.audio.clip_samples)
        soundfile.write(made / f"{name}.wav", samples, RATE)
    code, out, err = call("--json", "eval", "joints", made, "--clips", N, "--out", tmp_path / "metrics")
    assert code == 0, err
    found = json.loads(out)
    assert json.loads((tmp_path / "metrics/metrics.json").read_text())["sets"] == found["sets"]
    sets = found["sets"]
    assert set(sets) == set(SETS) - {"held_out"}  # there is no valid split
    assert "Not measured: held_out (other real music that was not trained on)." in found["warnings"]
    assert (found["n_real"], found["n_real_tracks"]) == (N, 2)
    assert {sets[name]["n"] for name in ("training", "shuffled_grains", "shaped_noise", "vocoder")} == {N}
    assert sets["griffin_lim"]["fd"]["value"] < sets["shuffled_grains"]["fd"]["value"]
    assert sets["shuffled_grains"]["fd"]["value"] < sets["shaped_noise"]["fd"]["value"]
    assert [name for name in sets if sets[name]["log_mel_l1"]] == ["griffin_lim", "vocoder", "vae_vocoder"]
    assert sets["griffin_lim"]["log_mel_l1"]["value"] < 0.4 < sets["vocoder"]["log_mel_l1"]["value"]  # untrained
    reader, backbone = ShardReader(work / "shards"), MusicnnBackbone(RATE)
    real = list(shard_segments(reader, "test", PARAMS.audio, N))
    again = [Segment(s.name, 0.0, GriffinLim(clip_mel(PARAMS), 0)(
        clip_mel(PARAMS)(normalised(s.samples, PARAMS.audio)[None]))[0].numpy(), RATE) for s in real]  # fmt: skip
    x, y = (embed(part, backbone, PARAMS.audio, "again").vectors for part in (again, real))
    assert sets["griffin_lim"]["fd"]["value"] == pytest.approx(frechet_distance(x, y), rel=1e-6)
    ratio = found["ratios"]["vocoder / griffin_lim"]
    assert ratio["value"] == pytest.approx(sets["vocoder"]["fd"]["value"] / sets["griffin_lim"]["fd"]["value"])
    assert ratio["low"] < ratio["value"] < ratio["high"]


def test_what_is_not_there_is_left_out_and_another_mel_is_refused(call, work, tmp_path):
    models = work / "models"
    hidden = models.rename(tmp_path / "models")
    try:
        code, out, err = call("--json", "eval", "joints", "--clips", "4", "--out", tmp_path / "metrics")
        assert code == 0, err
        found = json.loads(out)
        assert "vocoder" not in found["sets"]
        assert "Not measured: vae_vocoder" in " ".join(found["warnings"])
        assert found["n_real"] == 4
        code, _, err = call("eval", "joints", "--vocoder", hidden / "vocoder", "-S", "mel.n_mels=32")
        assert (code, "trained on other mels" in err) == (5, True)
        code, _, err = call("eval", "joints", "--vocoder", "nowhere")
        assert (code, "nowhere" in err) == (5, True)
    finally:
        hidden.rename(models)
