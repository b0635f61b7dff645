"""`import musicldm`: the guide's scripts as they stand, on toy models; and that it is the command line's equal."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

import musicldm
from stages.errors import DataError, ModelError, UsageError
from stages.generate.pipeline import Pipeline
from tests import DEMO, ROOT
from tests.conftest import CLIP_SECONDS

GUIDE = ROOT / "docs" / "guide-python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
PAIR = {"first.ogg": "flare_boss_theme.ogg", "second.ogg": "flare_cave_theme.ogg"}  # 71 and 140 BPM, in four


@pytest.fixture
def project(toy_models, tmp_path, monkeypatch):
    """A folder with a model, two songs, a folder of music and one of clips; the shipped model is a toy."""
    monkeypatch.setattr("stages.weights.shipped.SHIPPED", toy_models / "ldm")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy_models / "ldm", "work/models/ldm-mine")
    for name, source in PAIR.items():
        shutil.copyfile(DEMO / source, name)
    for folder, begin in (("music", 0), ("generated", 16_000)):
        (tmp_path / folder).mkdir()
        samples, rate = soundfile.read("first.ogg", dtype="float32")
        soundfile.write(tmp_path / folder / "song.wav", samples[begin : 4 * rate], rate)
    return tmp_path


def test_the_guide_has_the_five_scripts_and_each_is_short():
    assert len(BLOCKS) == 5
    assert all(len([line for line in block.splitlines() if line]) <= 6 for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_script_of_the_guide_runs(project, block):
    names: dict = {}
    exec(compile(block, str(GUIDE), "exec"), names)
    for name, path in (("clip", "trailer.wav"), ("mixed", "mixed.wav"), ("pipe", "generated/piano-1.wav")):
        if name in names and (name != "pipe" or "clip" not in names):
            assert soundfile.info(path).duration == pytest.approx(CLIP_SECONDS)


def test_importing_it_takes_nothing_heavy():
    heavy = "{'torch', 'numpy', 'pydantic', 'transformers', 'typer', 'musicldm_cli'}"
    probe = f"import sys, musicldm; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_python_m_musicldm_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "musicldm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("musicldm ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 2}, ["--steps", "2"]),
        ({"steps": 2, "seed": 7, "guidance": 3.0, "sampler": "dpm++", "candidates": 2, "negative": "drums",
          "seconds": 2.0},
         ["--steps", "2", "--seed", "7", "--guidance", "3", "--sampler", "dpm++", "--candidates", "2", "--negative",
          "drums", "--seconds", "2"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["wav", "ogg"])
def test_the_same_seed_and_settings_give_the_commands_bytes(project, typed, toy_models, options, words, suffix):
    model = ["--model", str(toy_models / "ldm"), "--out", f"command.{suffix}"]
    code, _, err = typed(project, "generate", "calm piano", *model, *words)
    assert code == 0, err
    ours = musicldm.load(toy_models / "ldm")("calm piano", **options).save(f"ours.{suffix}")
    assert ours.read_bytes() == (project / f"command.{suffix}").read_bytes()


def test_the_shipped_model_samples_in_few_steps_unless_more_is_asked_for(monkeypatch):
    """As the command does, and with `few_steps` either way."""
    from stages.generate import batch

    monkeypatch.setattr(batch, "make_clip", lambda _, prompt, settings, size: (_Silence(), vars(settings)))
    loaded = []
    monkeypatch.setattr(musicldm.Pipe, "_load", lambda pipe, few: loaded.append(few) or _Loaded())
    auto, never, always = (musicldm.load(few_steps=few) for few in ("auto", False, True))
    made = [auto("calm"), auto("calm", guidance=3.0), never("calm"), always("calm")]
    assert [clip.about["sampler"] for clip in made] == ["few-steps", "unipc", "unipc", "few-steps"]
    assert loaded == [True, False, False, True]
    with pytest.raises(UsageError, match="steps does not go with the sampler few-steps"):
        always("calm", steps=3)


class _Silence:
    def __init__(self):
        import torch

        self.waveform = torch.zeros(8)


class _Loaded:
    params = None


def test_a_model_is_loaded_once(project, monkeypatch):
    loads = []
    load = Pipeline.load
    monkeypatch.setattr(Pipeline, "load", lambda *given: loads.append(given) or load(*given))
    pipe = musicldm.load(device="cpu", backend="eager")
    first, again = pipe("calm", steps=2), pipe("calm", steps=2)
    assert len(loads) == 1
    assert first.waveform.dtype == np.float32
    assert np.array_equal(first.waveform, again.waveform)


def test_a_clip_shows_itself_in_a_notebook(project):
    """Self-contained: sound and picture are data, and a prompt is text."""
    page = musicldm.load()("<b>calm</b>", steps=2)._repr_html_()
    assert page.count('src="data:') == 2
    assert "data:audio/wav;base64,UklGR" in page
    assert "<b>" not in page
    assert "http" not in page


def test_similarity_finds_the_song_a_clip_was_cut_from(project):
    found = musicldm.similarity("generated", "music", cache="kept")
    assert found.nearest[0]["mel_training_track"] == "song"
    for row in found.nearest:
        assert row["mel_training_start_seconds"] - row["start_seconds"] == pytest.approx(1.0, abs=0.11)
    assert set(found.sim_aa) == {0.9, 0.95}
    assert (project / "kept").is_dir()


def test_a_mix_of_one_side_is_that_side_from_its_downbeat(project):
    """`bam` at weight 1, against a cut of the file itself; `simple` begins where the file does."""
    rate = 16_000
    samples, _ = soundfile.read("first.ogg", dtype="float32")
    for mode, start in (("bam", musicldm.beats("first.ogg").downbeats[0]), ("simple", 0.0)):
        mixed = musicldm.mix("first.ogg", "second.ogg", 1.0, mode)
        begin = round(start * rate)
        cut = samples[begin : begin + round(CLIP_SECONDS * rate)]
        cut = (cut - cut.mean()) * (0.5 / np.abs(cut - cut.mean()).max())
        assert np.abs(mixed.waveform - cut).max() < 1e-4, mode
    half = musicldm.mix("first.ogg", "second.ogg", 0.5, "simple").waveform
    swapped = musicldm.mix("second.ogg", "first.ogg", 0.5, "simple").waveform
    assert np.abs(half - swapped).max() < 1e-6


def test_what_cannot_be_is_said_in_a_sentence(project):
    with pytest.raises(DataError, match="they cannot be mixed on their downbeats"):
        shutil.copyfile(DEMO / "flare_battle_theme.ogg", "third.ogg")
        musicldm.mix("first.ogg", "third.ogg")
    with pytest.raises(UsageError, match="none of blm, bam, simple"):
        musicldm.mix("first.ogg", "second.ogg", mode="mixed")  # type: ignore[arg-type]
    with pytest.raises(ModelError):
        musicldm.load("nowhere")
    with pytest.raises(DataError):
        musicldm.similarity("nowhere", "music")
    with pytest.raises(DataError, match="m4a"):
        musicldm.load()("calm", steps=2).save("clip.m4a")
