"""The whole path from text to sound on random weights, against diffusers' own pipeline and against itself."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from diffusers.pipelines.deprecated.musicldm.pipeline_musicldm import MusicLDMPipeline
from torch import Generator

from stages.audio.level import limited, without_offset
from stages.errors import DataError, ModelError, UsageError
from stages.generate.batch import generate_files, make_clips
from stages.generate.manifest import read_manifest
from stages.generate.pipeline import Pipeline
from stages.generate.prompts import Prompt
from stages.generate.samplers import normal
from stages.generate.settings import Settings

QUICK = Settings("ddim", 3, 0.0, 1)
RATE = 16_000


@pytest.fixture(scope="session")
def pipeline(toy_models):
    return Pipeline.load(toy_models / "ldm", "cpu")


def prompt(name="a", text="calm piano", seed=1, negative=None, guidance=2.0, seconds=1.28):
    return Prompt(name, text, seed, negative, guidance, seconds)


def waveform(pipeline, wanted, settings=QUICK):
    return make_clips(pipeline, [wanted], settings)[0].waveform


@pytest.mark.parametrize(("name", "eta"), [("ddim", 0.0), ("dpm++", 0.0)])
def test_sound_is_that_of_diffusers_pipeline(pipeline, toy_models, name, eta):
    """Same weights, same first noise, fp32: within 1e-3 of full scale, and far from another prompt's."""
    from stages.generate.samplers import make_scheduler

    peer = MusicLDMPipeline(
        vae=pipeline.vae.network, text_encoder=pipeline.clap.model, tokenizer=pipeline.clap.tokenizer,
        feature_extractor=None, unet=pipeline.ldm.unet,
        scheduler=make_scheduler(name, pipeline.scheduler, 5), vocoder=pipeline.vocoder.network,
    )  # fmt: skip
    peer.set_progress_bar_config(disable=True)
    wanted, settings = prompt(text="dramatic trailer", negative="slow"), Settings(name, 5, eta, 1)
    noise = normal(pipeline.params.latent_shape, [Generator().manual_seed(1)])
    expected = peer(
        prompt_embeds=pipeline.embed([wanted.prompt]), negative_prompt_embeds=pipeline.embed(["slow"]),
        latents=noise, num_inference_steps=5, guidance_scale=2.0, audio_length_in_s=1.28, output_type="pt",
    ).audios  # fmt: skip
    expected = without_offset(expected, RATE)
    ours = pipeline.waveforms([wanted], [0], settings)
    other = pipeline.waveforms([prompt(text="quiet flute", negative="slow")], [0], settings)
    scale = expected.abs().max()
    assert ours.shape == expected.shape == (1, 20_480)
    assert (ours - expected).abs().max() < 1e-3 * scale
    assert (other - expected).abs().max() > 2e-2 * scale


def test_the_null_vector_leads_away_unless_a_negative_prompt_does(pipeline):
    plain, negative, unguided = (
        waveform(pipeline, prompt(guidance=w, negative=n)) for w, n in ((2.0, None), (2.0, "slow"), (1.0, None))
    )
    assert not torch.allclose(plain, negative, atol=1e-4)
    assert not torch.allclose(plain, unguided, atol=1e-4)
    assert torch.equal(unguided, waveform(pipeline, prompt(guidance=1.0, negative="slow")))  # nothing to lead away


def test_a_clip_is_its_seeds_alone_whatever_is_made_beside_it(pipeline, tmp_path):
    wanted = [prompt(f"c{i}", f"music number {i}", seed=10 + i) for i in range(4)]
    generate_files(pipeline, wanted, QUICK, tmp_path / "four", batch_size=4)
    generate_files(pipeline, wanted[3:], QUICK, tmp_path / "one", batch_size=1)
    assert (tmp_path / "four" / "c3.wav").read_bytes() == (tmp_path / "one" / "c3.wav").read_bytes()
    assert (tmp_path / "four" / "c3.wav").read_bytes() != (tmp_path / "four" / "c2.wav").read_bytes()


def test_one_batch_on_an_accelerator_differs_in_the_last_bits_only(pipeline):
    """Convolution kernels change with the batch size; generate on a CPU therefore never batches."""
    wanted = [prompt(f"c{i}", f"music number {i}", seed=10 + i) for i in range(4)]
    settings = Settings("ddim", 3, 0.5, 1)
    together = pipeline.waveforms(wanted, [0] * 4, settings)
    alone = torch.cat([pipeline.waveforms([one], [0], settings) for one in wanted])
    assert (together - alone).abs().max() < 1e-3 * alone.abs().max()


@pytest.mark.parametrize("seconds", [0.5, 1.28, 1.5, 3.3333])
def test_length_is_exact_to_the_sample(pipeline, seconds):
    assert len(waveform(pipeline, prompt(seconds=seconds))) == round(seconds * RATE)


@pytest.mark.parametrize("seconds", [0, -1, 1e-9, 1e9, float("nan")])
def test_impossible_lengths_are_usage_errors(pipeline, seconds):
    with pytest.raises(UsageError, match="--seconds"):
        pipeline.positions(seconds)


def test_the_best_candidate_is_kept_and_the_first_is_the_plain_clip(pipeline):
    tries = [pipeline.waveforms([prompt()], [k], QUICK)[0] for k in range(3)]
    scores = pipeline.score(prompt(), torch.stack(tries))
    best = make_clips(pipeline, [prompt()], Settings("ddim", 3, 0.0, 3))[0]
    assert best.candidate == int(scores.argmax())
    assert best.clap_score == pytest.approx(float(scores.max()), abs=1e-6)
    assert torch.equal(best.waveform, tries[best.candidate] * best.gain)
    assert torch.equal(limited(tries[0])[0], waveform(pipeline, prompt()))
    assert not torch.equal(tries[0], tries[1])


def test_loud_output_is_scaled_down_and_said_so(pipeline):
    loud = torch.sin(torch.arange(20_480) / 20)[None] * 4
    clip = pipeline.ranked(prompt(), loud)[0]
    assert clip.waveform.abs().max().item() == pytest.approx(0.89)
    assert clip.gain == pytest.approx(0.89 / 4, rel=1e-3)
    assert pipeline.ranked(prompt(), loud / 8)[0].gain == 1.0


def test_values_that_are_not_numbers_are_a_model_error(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline.vocoder, "forward", lambda mel: torch.full((1, 20_480), float("nan")))
    with pytest.raises(ModelError, match="not numbers"):
        pipeline.waveforms([prompt()], [0], QUICK)


@pytest.mark.parametrize(
    ("suffix", "coding"),
    [("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("opus", "OPUS"), ("mp3", "MPEG_LAYER_III")],
)
def test_files_and_manifest(pipeline, tmp_path, suffix, coding):
    wanted = prompt("clip", "héroïque", seconds=1.0)
    rows, made = generate_files(pipeline, [wanted], QUICK, tmp_path / "a", suffix, plot=suffix == "wav")
    generate_files(pipeline, [wanted], QUICK, tmp_path / "b", suffix)
    file = tmp_path / "a" / f"clip.{suffix}"
    assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    with soundfile.SoundFile(file) as sound:
        assert (sound.frames, sound.samplerate, sound.channels) == (16_000, RATE, 1)
        assert sound.subtype == coding
        said = json.loads(sound.comment)
        assert np.abs(sound.read()).max() > 0
    assert rows == made == read_manifest(tmp_path / "a")
    assert said == {"made by": "musicldm"} | {
        k: v for k, v in rows[0].items() if k not in ("id", "file", "seconds_taken")
    }
    assert set(rows[0]) == {
        "id", "file", "prompt", "negative", "seed", "sampler", "steps", "guidance", "eta", "seconds", "candidates",
        "model_digest", "clap_score", "candidate", "gain", "seconds_taken",
    }  # fmt: skip
    assert (tmp_path / "a" / "clip.png").exists() == (suffix == "wav")


def test_a_run_goes_on_where_it_stopped(pipeline, tmp_path):
    wanted = [prompt(name, name, seconds=1.0) for name in "abc"]
    seen = []

    def interrupt(label, done, total):
        if label == "Clips" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_files(pipeline, wanted, QUICK, tmp_path, progress=interrupt)
    assert [row["id"] for row in read_manifest(tmp_path)] == ["a", "b"]
    (tmp_path / "a.wav").unlink()  # a lost file is made again, a whole one is not
    _, made = generate_files(pipeline, wanted, QUICK, tmp_path, progress=lambda *args: seen.append(args))
    assert [row["id"] for row in made] == ["a", "c"]
    assert ("Clips", 2, 2) in seen
    assert ("Denoising steps", 6, 6) in seen
    changed = [prompt("a", "a", seconds=1.0, seed=5), *wanted[1:]]
    assert [row["id"] for row in generate_files(pipeline, changed, QUICK, tmp_path)[1]] == ["a"]
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "b", "c"]


def test_what_is_there_is_not_made_again_and_needs_no_network(pipeline, toy_models, tmp_path):
    """A second `make demo` must not spend ten seconds on loading what it does not use."""
    from stages.generate.manifest import plan_clips
    from stages.store import model_digest

    wanted = [prompt("a"), prompt("b", seed=2)]
    generate_files(pipeline, wanted, QUICK, tmp_path)
    digest = model_digest(toy_models / "ldm")
    assert plan_clips(wanted, QUICK, tmp_path, "wav", False, digest, {}).todo == []
    assert plan_clips(wanted, QUICK, tmp_path, "wav", True, digest, {}).todo == wanted  # no picture yet
    assert plan_clips(wanted, QUICK, tmp_path, "wav", False, digest, {"strength": 0.5}).todo == wanted
    assert plan_clips(wanted, QUICK, tmp_path, "wav", False, "another model", {}).todo == wanted
    probe = "import sys, stages.generate.manifest; print({'torch', 'transformers', 'diffusers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout == "set()\n"


def test_long_prompts_are_known_to_be_cut(pipeline):
    assert pipeline.truncated("word " * 10_000)
    assert not pipeline.truncated("calm piano")
    assert pipeline.embed(["word " * 10_000]).isfinite().all()


def test_impossible_runs_make_nothing(pipeline, tmp_path):
    for wanted, settings, suffix in (
        (prompt(), Settings("ddim", 1001, 0.0, 1), "wav"), (prompt(seconds=601.0), QUICK, "wav"),
        (prompt(seconds=1e-9), QUICK, "wav"), (prompt(), QUICK, "wma"),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            generate_files(pipeline, [wanted], settings, tmp_path / "out", suffix)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        generate_files(pipeline, [prompt()], QUICK, tmp_path / "file")
    with pytest.raises(DataError, match="cannot be written: File name too long"):
        generate_files(pipeline, [prompt()], QUICK, tmp_path / ("long" * 100))


def test_missing_and_altered_models_are_refused(toy_models, tmp_path):
    with pytest.raises(ModelError) as missing:
        Pipeline.load(tmp_path / "none")
    assert "musicldm train ldm" in missing.value.remedy
    shutil.copytree(toy_models / "ldm", tmp_path / "ldm")
    file = tmp_path / "ldm" / "null_condition.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ModelError, match=r"null_condition\.safetensors was altered"):
        Pipeline.load(tmp_path / "ldm")
    with pytest.raises(ModelError, match="not a ldm model"):
        Pipeline.load(toy_models / "vae")


def test_two_runs_into_one_folder_keep_each_others_rows(pipeline, tmp_path, monkeypatch):
    """The second begins before the first has written anything, and ends after it has written its first batch."""
    settings, made = Settings("ddim", 1, 0.0, 1), []
    mine, theirs = ([prompt(name) for name in names] for names in ("ab", "cd"))

    def made_beside(*arguments):
        if not made:
            made.append("the other run")
            generate_files(pipeline, theirs, settings, tmp_path)
        return make_clips(*arguments)

    monkeypatch.setattr("stages.generate.batch.make_clips", made_beside)
    rows, new = generate_files(pipeline, mine, settings, tmp_path)
    assert [row["id"] for row in rows] == [row["id"] for row in new] == ["a", "b"]
    assert [row["id"] for row in read_manifest(tmp_path)] == ["c", "d", "a", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.wav", "c.wav", "d.wav", "manifest.jsonl"]


APPEND = """
import sys
from pathlib import Path
from stages.generate.manifest import shared_rows

for number in range(40):
    with shared_rows(Path(sys.argv[1])) as rows:
        name = f"{sys.argv[2]}-{number}"
        rows[name] = {"id": name, "file": f"{name}.wav", "prompt": "calm"}
"""


def test_processes_that_write_rows_at_once_lose_none(tmp_path):
    processes = [subprocess.Popen([sys.executable, "-c", APPEND, tmp_path, name]) for name in "abc"]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert {row["id"] for row in read_manifest(tmp_path)} == {f"{name}-{n}" for name in "abc" for n in range(40)}
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.jsonl"]
