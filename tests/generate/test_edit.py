"""Audio to audio on random weights: strength 0 reconstructs, 1 ignores the clip, between lies between."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from stages.audio.mel import clip_mel
from stages.errors import DataError, UsageError
from stages.generate.batch import generate_files, make_clips
from stages.generate.edit import Continuation, Init, Inpainting, make_sound, parse_inpaint, read_sound
from stages.generate.pipeline import Pipeline
from stages.generate.prompts import Prompt
from stages.generate.samplers import make_scheduler
from stages.generate.settings import SAMPLERS, Settings
from tests import DEMO

PROMPT = Prompt("a", "calm piano", 1, None, 2.0, 1.28)
RATE = 16_000
FILE = DEMO / "flare_battle_theme.ogg"


@pytest.fixture(scope="module")
def pipeline(toy_models):
    return Pipeline.load(toy_models / "ldm", "cpu")


@pytest.fixture(scope="module")
def clip():
    samples, _ = soundfile.read(FILE, frames=20_480, dtype="float32")
    return torch.from_numpy(samples)


def made(pipeline, clip, strength, sampler="ddim", steps=4):
    init = None if strength is None else Init(make_sound(clip, 16_000), strength)
    return pipeline.waveforms([PROMPT], [0], Settings(sampler, steps, 0.0, 1), edit=init)


def test_strength_0_is_the_reconstruction(pipeline, clip):
    """Bit for bit, if all that rounds is done in one order: a millionth in the latents is 1e-5 in the sound."""
    centred = clip - clip.mean()
    mel = clip_mel(pipeline.params)((centred * (pipeline.params.audio.peak / centred.abs().max()))[None])
    latents = pipeline.vae.encode(mel)[0] * pipeline.vae.scale
    expected = pipeline.vocoder(pipeline.vae.decode(latents / pipeline.vae.scale))
    assert torch.equal(made(pipeline, clip, 0.0), expected[:, :20_480])


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
    init = Init(read_sound(FILE, 16_000), 0.5)
    rows, _ = generate_files(
        pipeline, [PROMPT], Settings("ddim", 6, 0.0, 1), tmp_path, edit=init, progress=lambda *a: seen.append(a)
    )
    assert [a for a in seen if a[0] == "Denoising steps"] == [("Denoising steps", n, 3) for n in (1, 2, 3)]
    assert rows[0]["strength"] == 0.5
    assert len(rows[0]["init_sha256"]) == 64


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_of_the_diffusion_can_be_taken(pipeline, sampler):
    times = make_scheduler(sampler, pipeline.scheduler, 1000).timesteps
    assert len(times) == 1000
    assert 0 <= min(times) <= max(times) < 1000


def test_silence_and_impossible_settings_are_refused(clip):
    sound = make_sound(clip, RATE)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="--strength"):
            Init(sound, strength)
    with pytest.raises(DataError, match="silent"):
        make_sound(torch.zeros(100), RATE)
    for begin, end in ((-1, 1), (0.5, 0.5), (1, 0.5), (0.5, 2), (0.5, 0.55), (float("nan"), 1)):
        with pytest.raises(UsageError, match="no span"):
            Inpainting(sound, begin, end)
    with pytest.raises(UsageError, match="already"):
        Continuation(sound).seconds(1.0, 1.28)
    assert parse_inpaint("a:b.wav:1:2.5") == (Path("a:b.wav"), 1.0, 2.5)
    for text in ("song.wav", "song.wav:1", "song.wav:one:two"):
        with pytest.raises(UsageError, match="FILE:START:END"):
            parse_inpaint(text)


def edited(pipeline, edit, seconds, sampler="ddim"):
    prompt = replace(PROMPT, seconds=edit.seconds(seconds, 1.28))
    return pipeline.waveforms([prompt], [0], Settings(sampler, 4, 0.0, 1), edit=edit)[0]


@pytest.mark.parametrize("seconds", [1.5, None, 6.0])
def test_a_continuation_keeps_the_file_to_the_sample_and_adds_the_rest(pipeline, clip, seconds):
    sound = make_sound(clip[:19_001], RATE)  # no whole number of latent positions
    found = edited(pipeline, Continuation(sound), seconds)
    assert len(found) == (19_001 + 20_480 if seconds is None else round(seconds * RATE))
    assert np.array_equal(found[:19_001], sound.samples)
    assert found[19_001:].abs().max() > 1e-3
    assert jump(found, 19_001) < 4 * typical_jump(found)


def test_what_was_there_bears_on_what_follows(pipeline, clip):
    """Two files with another end but the same seed go on differently; sampling holds their latents."""
    one, other = (edited(pipeline, Continuation(make_sound(s, RATE)), 1.8) for s in (clip, clip.flip(0)))
    assert (one[20_480:] - other[20_480:]).abs().max() > 1e-2 * one[20_480:].abs().max()


@pytest.mark.parametrize(("begin", "end"), [(0.4, 0.8), (0.0, 0.5), (0.9, 1.2)])
def test_inpainting_changes_the_span_and_nothing_else(pipeline, clip, begin, end):
    sound = make_sound(clip[:19_200], RATE)
    found = edited(pipeline, Inpainting(sound, begin, end), None)
    first, last = round(begin * RATE), round(end * RATE)
    assert np.array_equal(found[:first], sound.samples[:first])
    assert np.array_equal(found[last:], sound.samples[last:])
    assert np.abs(found[first:last].numpy() - sound.samples[first:last]).max() > 1e-3
    for place in {first, last} - {0, 19_200}:
        assert jump(found, place) < 4 * typical_jump(found)


def test_a_long_file_is_inpainted_around_its_span_only(pipeline):
    sound = read_sound(FILE, RATE)
    assert sound.seconds > 20
    edit = Inpainting(sound, 10.0, 12.0)
    assert edit.canvas(pipeline, sound.seconds).positions == 33  # 25 of the span and half a clip
    found = edited(pipeline, edit, None)
    assert len(found) == len(sound.samples)
    changed = (found.numpy() != sound.samples).nonzero()[0]
    assert (int(changed.min()), int(changed.max())) == (160_000, 191_999)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_held_latents_come_out_as_they_went_in(pipeline, clip, sampler):
    """Whatever the sampler: the kept positions end at what they were held to, but for the last step's noise."""
    seen = {}
    edit = Inpainting(make_sound(clip, RATE), 0.4, 0.8)
    canvas = edit.canvas(pipeline, 1.28)
    watched = replace(canvas, finish=lambda latents: seen.update(latents=latents) or torch.zeros(1, 20_480))
    object.__setattr__(edit, "canvas", lambda *_: watched)
    edited(pipeline, edit, None, sampler)
    kept = canvas.kept.expand_as(canvas.start)
    difference = (seen["latents"] - canvas.start).abs()
    assert difference[kept].max() < 4 * 0.039  # sqrt(1 - alpha_bar_0), which DDIM leaves, times a normal number
    assert difference[~kept].max() > 1


def jump(audio, place):
    """The largest step from one sample to the next within 1 ms of `place`."""
    return audio[place - 16 : place + 16].diff().abs().max()


def typical_jump(audio):
    """The largest step of every 2 ms, their upper quarter's lower end."""
    steps = audio.diff().abs()
    return steps[: len(steps) // 32 * 32].unflatten(0, (-1, 32)).amax(1).quantile(0.75)


@pytest.mark.parametrize("kind", ["continue", "inpaint"])
def test_an_edit_of_loud_music_keeps_its_samples_and_gives_headroom_to_what_is_new(pipeline, clip, monkeypatch, kind):
    """The file touches full scale, and the network is loud, with an offset."""
    network = pipeline.vocoder.network.forward
    monkeypatch.setattr(pipeline.vocoder.network, "forward", lambda mel: 8 * network(mel) + 0.5)
    sound = make_sound((clip / clip.abs().max())[:19_200], RATE)
    edit = Continuation(sound) if kind == "continue" else Inpainting(sound, 0.4, 0.8)
    wanted = replace(PROMPT, seconds=edit.seconds(None, 1.28))
    (made,) = make_clips(pipeline, [wanted], Settings("ddim", 4, 0.0, 1), edit=edit)
    new = slice(19_200 + 320, None) if kind == "continue" else slice(6400 + 320, 12_800 - 320)
    kept = torch.ones(len(made.waveform), dtype=torch.bool)
    kept[slice(19_200, None) if kind == "continue" else slice(6400, 12_800)] = False
    assert torch.equal(made.waveform[kept], torch.from_numpy(sound.samples)[kept[:19_200]])
    assert made.gain == 1.0
    assert made.waveform[new].abs().max() <= 10 ** (-1 / 20)
    assert abs(made.waveform[new].mean()) < 0.01  # of less than a second
