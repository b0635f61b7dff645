"""Audio to audio on random weights: strength 0 reconstructs, 1 ignores the clip, between lies between."""

import pytest
import soundfile
import torch

from stages.audio.mel import clip_mel
from stages.errors import DataError, UsageError
from stages.generate.batch import generate_files
from stages.generate.edit import make_init, read_init
from stages.generate.pipeline import Pipeline, Settings
from stages.generate.prompts import Prompt
from stages.generate.samplers import SAMPLERS, make_scheduler
from tests import DEMO

PROMPT = Prompt("a", "calm piano", 1, None, 2.0, 1.28)
FILE = DEMO / "flare_battle_theme.ogg"


@pytest.fixture(scope="module")
def pipeline(toy_models):
    return Pipeline.load(toy_models / "ldm", "cpu")


@pytest.fixture(scope="module")
def clip():
    samples, _ = soundfile.read(FILE, frames=20_480, dtype="float32")
    return torch.from_numpy(samples)


def made(pipeline, clip, strength, sampler="ddim", steps=4):
    init = None if strength is None else make_init(clip, "", strength)
    return pipeline.waveforms([PROMPT], [0], Settings(sampler, steps, 0.0, 1), init=init)


def test_strength_0_is_the_reconstruction(pipeline, clip):
    centred = clip - clip.mean()
    mel = clip_mel(pipeline.params)((centred * pipeline.params.audio.peak / centred.abs().max())[None])
    expected = pipeline.vocoder(pipeline.vae.decode(pipeline.vae.encode(mel)[0]))
    assert torch.allclose(made(pipeline, clip, 0.0), expected[:, :20_480], atol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_1_is_text_to_audio_and_half_way_is_neither(pipeline, clip, sampler):
    plain = made(pipeline, clip, None, sampler)
    assert torch.equal(made(pipeline, clip, 1.0, sampler), plain)
    half, other = made(pipeline, clip, 0.5, sampler), made(pipeline, -clip.flip(0), 0.5, sampler)
    assert half.isfinite().all()
    for different in (plain, made(pipeline, clip, 0.0), other):
        assert (half - different).abs().max() > 1e-3


def test_only_the_remaining_steps_are_done_and_the_manifest_says_so(pipeline, tmp_path):
    seen = []
    init = read_init(FILE, 16_000, 0.5)
    rows, _ = generate_files(
        pipeline, [PROMPT], Settings("ddim", 6, 0.0, 1), tmp_path, init=init, progress=lambda *a: seen.append(a)
    )
    assert [a for a in seen if a[0] == "Denoising steps"] == [("Denoising steps", n, 3) for n in (1, 2, 3)]
    assert rows[0]["strength"] == 0.5
    assert len(rows[0]["init_sha256"]) == 64


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_of_the_diffusion_can_be_taken(pipeline, sampler):
    times = make_scheduler(sampler, pipeline.scheduler, 1000, 0.0).timesteps
    assert len(times) == 1000
    assert 0 <= min(times) <= max(times) < 1000


def test_silence_and_impossible_strengths_are_refused(clip):
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="--strength"):
            make_init(clip, "", strength)
    with pytest.raises(DataError, match="silent"):
        make_init(torch.zeros(100), "", 0.5)
