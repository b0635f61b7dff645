"""Beyond one clip: windows that agree, decoding in parts, rings, and music that goes out while it is made."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Generator

from stages.audio.level import limiter
from stages.errors import UsageError
from stages.generate import stream as stream_room
from stages.generate.batch import make_clips
from stages.generate.loop import Loop
from stages.generate.pipeline import Pipeline
from stages.generate.prompts import Prompt, with_tempo
from stages.generate.ring import resample_ring, stretch_ring
from stages.generate.samplers import normal
from stages.generate.settings import Settings
from stages.generate.stream import stream
from stages.generate.windows import blend, decode_mel, vocode, window_starts, window_weights

QUICK = Settings("ddim", 3, 0.0, 1)
RATE = 16_000


@pytest.fixture(scope="module")
def pipeline(toy_models):
    return Pipeline.load(toy_models / "ldm", "cpu")


def prompt(seconds=1.28, seed=1):
    return Prompt(f"clip-{seed}", "calm piano", seed, None, 2.0, seconds)


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("total", [1, 5, 16, 17, 23, 24, 25, 100])
def test_windows_cover_everything_and_overlap_by_half(total, ring):
    starts = window_starts(total, 16, ring)
    covered = {(start + i) % total if ring else start + i for start in starts for i in range(16)}
    assert covered >= set(range(total))
    assert all(b - a <= 8 for a, b in pairwise(starts))
    if ring:
        assert total - starts[-1] <= 8
    elif total > 16:
        assert starts[-1] == total - 16


@pytest.mark.parametrize("ring", [False, True])
def test_blending_windows_of_a_pointwise_function_is_the_function(ring):
    x = torch.randn(2, 3, 41, 4)
    assert torch.allclose(blend(torch.sin, x, 16, ring, (2, 2)), x.sin(), atol=1e-6)
    doubled = blend(lambda part: part.repeat_interleave(2, 2).movedim(2, 1), x, 16, ring, (2, 1), 2)
    assert torch.allclose(doubled, x.repeat_interleave(2, 2).movedim(2, 1), atol=1e-6)


def test_a_position_is_the_weighted_mean_of_its_windows():
    """Against the definition: what windows say differs (their own mean), and every position averages it."""
    x, weight = torch.randn(1, 1, 24, 1), window_weights(16)
    found = blend(lambda part: torch.full_like(part, float(part.mean())), x, 16, False, (2, 2))
    first, second = float(x[:, :, :16].mean()), float(x[:, :, 8:].mean())
    a, b = float(weight[10]), float(weight[2])
    assert found[0, 0, 10, 0].item() == pytest.approx((a * first + b * second) / (a + b), rel=1e-4)
    assert found[0, 0, 3, 0].item() == pytest.approx(first, rel=1e-4)


def test_the_vocoder_in_parts_makes_the_samples_of_one_pass(pipeline):
    mel = torch.randn(1, 700, 64)
    whole = pipeline.vocoder(mel)
    assert (vocode(pipeline.vocoder, mel, 128) - whole).abs().max() < 1e-4 * whole.abs().max()


def test_long_clips_have_no_seam_where_windows_meet(pipeline):
    """A steady sound, where every step from frame to frame is the decoder's own or a seam."""
    channels, frames, bins = pipeline.params.latent_shape
    latents = normal((channels, 1, bins), [Generator().manual_seed(0)]).expand(-1, -1, 3 * frames, -1)
    period, inside = 8, slice(128 - 32, 256 + 32)  # frames of one latent position; away from both ends

    def steps(mel):
        return (mel[:, period:] - mel[:, :-period]).abs().mean((0, 2))[inside].max()

    hard = torch.cat([pipeline.vae.decode(part) for part in latents.split(frames, 2)], 1)
    assert steps(decode_mel(pipeline.vae, latents, frames)) < 0.5 * steps(hard)  # toy windows are nearly all edge


def test_long_clips_are_their_seeds_alone_and_exact_in_length(pipeline):
    found = make_clips(pipeline, [prompt(3.0), prompt(3.0, 2)], QUICK, batch_size=2)
    alone = make_clips(pipeline, [prompt(3.0, 2)], QUICK)[0]
    assert [len(clip.waveform) for clip in found] == [48_000, 48_000]
    assert torch.equal(found[1].waveform, alone.waveform)
    assert not torch.equal(found[0].waveform, alone.waveform)


@pytest.mark.parametrize(("bars", "bpm", "metre"), [(1, 120, 4), (2, 97.3, 3), (4, 174, 4)])
def test_a_loop_has_its_length_to_the_sample_and_closes(pipeline, bars, bpm, metre):
    loop = Loop(bars, bpm, metre)
    wanted = with_tempo(prompt(loop.seconds(None, 1.28)), bpm)
    assert wanted.prompt == f"calm piano, {bpm:.0f} BPM"
    audio = pipeline.waveforms([wanted], [0], QUICK, edit=loop)[0]
    assert len(audio) == round(bars * metre * 60 / bpm * RATE)
    twice = torch.cat([audio, audio])
    steps = twice.diff().abs()
    seam = steps[len(audio) - 17 : len(audio) + 15].max()
    assert seam < 3 * steps[: len(steps) // 32 * 32].unflatten(0, (-1, 32)).amax(1).quantile(0.75)
    assert torch.equal(audio, pipeline.waveforms([wanted], [0], QUICK, edit=loop)[0])


def test_a_loop_begins_where_its_clicks_are():
    """One strong click a bar and three weak ones, wherever they start: the strong one comes first."""
    from types import SimpleNamespace

    from stages import params as parameters
    from stages.generate.ring import first_downbeat

    fake = SimpleNamespace(params=parameters.preset("tiny"))
    audio = torch.zeros(64_000)  # two bars at 120 BPM
    for beat in range(8):
        audio[beat * 8000 + 300 : beat * 8000 + 400] = 0.9 if beat % 4 == 0 else 0.4
    for offset in (0, 5000, 21_234):
        found = first_downbeat(audio.roll(offset), fake, 2, 4)
        assert min((found - offset - 300) % 32_000, (offset + 300 - found) % 32_000) < 640


def test_rings_are_stretched_without_opening_them():
    period = torch.arange(1000, dtype=torch.float64) / 1000 * 2 * torch.pi
    tone = (period * 5).sin()[None]
    for length in (999, 1000, 1037):
        expected = (torch.arange(length, dtype=torch.float64) / length * 2 * torch.pi * 5).sin()
        assert torch.allclose(resample_ring(tone, length)[0], expected, atol=1e-9)
    mel = (period[:, None] * 3).sin()[None].float()
    found = stretch_ring(mel, 1013)
    assert torch.allclose(found[0, :, 0], (torch.arange(1013) / 1013 * 2 * torch.pi * 3).sin(), atol=1e-3)
    assert torch.equal(stretch_ring(mel, 1000), mel)


@pytest.mark.parametrize(("bars", "bpm", "metre"), [(0, 120, 4), (1, 0, 4), (1, float("nan"), 4), (1, 120, 0),
                                                    (1, 1000, 1), (100, 60, 4)])  # fmt: skip
def test_impossible_loops_are_usage_errors(bars, bpm, metre):
    with pytest.raises(UsageError):
        Loop(bars, bpm, metre)
    with pytest.raises(UsageError, match="--seconds"):
        Loop(4, 120).seconds(3.0, 1.28)


@pytest.mark.parametrize("seconds", [0.5, 1.28, 1.3, 5.0])
def test_a_stream_is_exact_and_repeatable(pipeline, seconds):
    pieces = list(stream(pipeline, prompt(seconds), QUICK))
    audio = np.concatenate(pieces)
    assert audio.dtype == np.int16
    assert len(audio) == round(seconds * RATE)
    assert np.abs(audio).max() > 100
    assert np.array_equal(audio, np.concatenate(list(stream(pipeline, prompt(seconds), QUICK))))


def test_a_stream_gives_out_sound_before_the_last_window_is_made(pipeline):
    steps = []
    pieces = stream(pipeline, prompt(5.0), QUICK, lambda: steps.append(1))
    windows = stream_room.count_windows(pipeline, 5.0)
    assert windows == 7
    first = next(pieces)
    assert (len(first), len(steps)) == (24 * 160, 3)  # half a window but what the vocoder waits for
    rest = list(pieces)
    assert len(steps) == 3 * windows
    audio = np.concatenate([first, *rest]).astype(np.float32)
    steps_of = np.abs(np.diff(audio))
    places = np.cumsum([len(first), *(len(piece) for piece in rest)])[:-1]
    typical = np.quantile(steps_of[: len(steps_of) // 32 * 32].reshape(-1, 32).max(1), 0.75)
    assert all(steps_of[place - 16 : place + 16].max() < 3 * typical for place in places)


def test_a_stream_has_headroom_and_no_offset_whatever_its_pieces(pipeline, monkeypatch):
    """Against the same mel made to sound in one piece; the network is made four times as loud, with an offset."""
    network = pipeline.vocoder.network.forward
    monkeypatch.setattr(pipeline.vocoder.network, "forward", lambda mel: 4 * network(mel) + 0.3)
    pieces = [piece / 32768 for piece in stream(pipeline, prompt(4.0), QUICK)]
    audio = np.concatenate(pieces)
    assert len(pieces) > 4
    assert np.abs(audio).max() <= 10 ** (-1 / 20)
    assert (np.abs(audio) > 0.85).any()  # else the limiter had nothing to do
    assert abs(audio.mean()) < 1e-3
    mels = torch.cat(list(stream_room._mels(pipeline, prompt(4.0), QUICK, lambda: None, 6)), 1)
    whole = limiter(pipeline.vocoder(mels)[0], RATE)[: len(audio)]
    assert np.abs(audio - whole.numpy()).max() < 1e-3


def test_a_stream_of_impossible_length_is_refused_before_it_begins(pipeline):
    for seconds in (0, -1, float("nan"), 1e9):
        with pytest.raises(UsageError, match="--seconds"):
            stream(pipeline, prompt(seconds), QUICK)
    with pytest.raises(UsageError, match="--steps"):
        stream(pipeline, prompt(), Settings("ddim", 0, 0.0, 1))
