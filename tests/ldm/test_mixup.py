"""Mixup: who is mixed with whom, and what comes of it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional as F

from stages.clap.model import load_clap
from stages.data.dataset import normalise_audio
from stages.data.shards import ShardReader
from stages.errors import DataError, UsageError
from stages.ldm.latents import LatentReader, sample_posterior
from stages.ldm.mixup import Bank, Mix, Mixer, Pairs, posterior_noise
from stages.ldm.preview import apart, write_preview
from stages.vae.model import load_vae
from stages.vocoder.model import load_vocoder
from tests.ldm.toy import toy_params

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parts(project):
    return {
        "latents": LatentReader(project.latents), "shards": ShardReader(project.shards),
        "vae": load_vae(project.vae), "vocoder": load_vocoder(project.vocoder), "clap": load_clap(project.clap),
    }  # fmt: skip


def make_mixer(parts, **ldm):
    params = toy_params(**ldm)
    return Mixer(Pairs(parts["latents"], parts["shards"], params), **parts, params=params)


class Chosen:
    """Pairs that are given, in the order of the numbers."""

    def __init__(self, *mixes):
        self.mixes = mixes

    def draw(self, seed):
        return self.mixes[seed[-1]]


def row_of(parts, name, on_downbeat=True, nth=0):
    rows = [i for i, w in enumerate(parts["latents"].windows)
            if parts["shards"].tracks[w.track].id == name and w.on_downbeat == on_downbeat]  # fmt: skip
    return rows[nth]


def drawn(parts, scheme, count=300):
    pairs = Pairs(parts["latents"], parts["shards"], toy_params(mixup=scheme))
    mixes = [pairs.draw([0, 0, number]) for number in range(count)]
    windows, tracks = parts["latents"].windows, parts["shards"].tracks
    sides = [(windows[mix.first], windows[mix.second]) for mix in mixes]
    return mixes, sides, {frozenset((tracks[a.track].id, tracks[b.track].id)) for a, b in sides}


@pytest.mark.parametrize("scheme", ["bam", "blm"])
def test_aligned_pairs_share_tempo_and_start_on_downbeats(parts, scheme):
    mixes, sides, names = drawn(parts, scheme)
    # 120 and 121 BPM are within 3%; click_far is not, the excerpts of recording a never meet, nor held-out tracks
    assert names == {
        frozenset(pair)
        for pair in [("click-a", "click-b"), ("click-a", "click-c"), ("click-b", "click-c"),
                     ("click-a-again", "click-b"), ("click-a-again", "click-c")]
    }  # fmt: skip
    assert all(a.on_downbeat and b.on_downbeat for a, b in sides)
    weights = np.array([mix.weight for mix in mixes])
    assert weights.mean() == pytest.approx(0.5, abs=0.03)
    assert weights.var() == pytest.approx(1 / 44, abs=0.006)  # of Beta(5, 5)
    assert len({mix.first for mix in mixes}) == 4 + 3 + 3 + 3  # every downbeat of every track with partners


def test_simple_pairs_are_grid_windows_of_other_recordings(parts):
    mixes, sides, names = drawn(parts, "simple", 1500)
    assert len(names) == 9 * 8 / 2 - 1
    assert frozenset(("click-a", "click-a-again")) not in names
    assert frozenset(("click-far", "flare-cave-theme")) in names
    windows = parts["latents"].windows
    assert all(windows[row].on_grid for mix in mixes for row in (mix.first, mix.second))
    firsts = np.bincount([a.track for a, _ in sides], minlength=len(parts["shards"].tracks))
    assert np.abs(firsts[firsts > 0] / (1500 / 9) - 1).max() < 0.3  # even over tracks


def with_tempo(params, **tempo):
    return params.model_copy(update={"tempo": params.tempo.model_copy(update=tempo)})


def pairs_with(parts, scheme="blm", **tempo):
    return Pairs(parts["latents"], parts["shards"], with_tempo(toy_params(mixup=scheme), **tempo))


def names_with(parts, **tempo):
    pairs, windows = pairs_with(parts, **tempo), parts["latents"].windows
    mixes = [pairs.draw([0, 0, number]) for number in range(200)]
    tracks = {windows[row].track for mix in mixes for row in (mix.first, mix.second)}
    return {parts["shards"].tracks[track].id for track in tracks}


def test_the_section_tempo_is_that_of_the_training(parts):
    """Nothing of it lies in beats or shards: each key changes the pairs at once."""
    usual = {"click-a", "click-b", "click-c", "click-a-again"}
    assert names_with(parts) == usual
    assert names_with(parts, tolerance=0.001) == usual - {"click-c"}
    assert names_with(parts, tolerance=0.4) == usual | {"click-far"}
    assert names_with(parts, rule="bpm-div-3") == usual
    assert names_with(parts, rule="bpm-div-3", tolerance=0.001) == usual  # 120 and 121 are both 40 threes


def test_no_partners_is_an_error_with_the_reasons_and_what_helps(parts):
    with pytest.raises(DataError, match=r"No two of the 9 training tracks may be mixed by ldm\.mixup blm: ") as caught:
        pairs_with(parts, min_downbeats=50)
    assert "5 with fewer than 50 downbeats" in caught.value.message
    assert "a lower tempo.min_downbeats; --mixup simple; --mixup none" in caught.value.remedy
    pairs_with(parts, "simple", min_downbeats=50)


@pytest.mark.parametrize(
    ("doubt", "key", "helps"),
    [
        ({"tempo_confidence": 0.3}, "a lower tempo.min_confidence", {"min_confidence": 0.2}),
        ({"n_downbeats": 3}, "a lower tempo.min_downbeats", {"min_downbeats": 3}),
    ],
)
def test_each_remedy_helps(parts, doubt, key, helps):
    tracks = [replace(track, **doubt) for track in parts["shards"].tracks]
    shards = SimpleNamespace(tracks=tracks)
    strict = with_tempo(toy_params(mixup="bam"), min_downbeats=4)
    with pytest.raises(DataError) as caught:
        Pairs(parts["latents"], shards, strict)
    assert key in caught.value.remedy
    assert Pairs(parts["latents"], shards, with_tempo(strict, **helps)).draw([0])


@pytest.mark.parametrize("rule", ["octave-log", "bpm-div-3"])
def test_lonely_tempos_name_the_tolerance_only_where_it_counts(parts, rule):
    tempos = dict(zip([track.id for track in parts["shards"].tracks], range(60, 400, 31), strict=False))
    tracks = [replace(track, mean_bpm=float(tempos[track.id]), tempo_bpm=tempos[track.id] * 1.0,
                      metre=track.metre and 4) for track in parts["shards"].tracks]  # fmt: skip
    settings = with_tempo(toy_params(mixup="blm"), rule=rule, tolerance=1e-6)
    with pytest.raises(DataError, match="whose tempo and metre no other recording shares") as caught:
        Pairs(parts["latents"], SimpleNamespace(tracks=tracks), settings)
    assert ("tempo.tolerance" in caught.value.remedy) == (rule == "octave-log")
    assert Pairs(
        parts["latents"], SimpleNamespace(tracks=tracks), with_tempo(settings, rule="octave-log", tolerance=0.4)
    )


def test_one_recording_cannot_be_mixed_and_simple_says_so(parts):
    tracks = [replace(track, recording="one") for track in parts["shards"].tracks]
    for scheme in ("simple", "blm"):
        with pytest.raises(DataError) as caught:
            Pairs(parts["latents"], SimpleNamespace(tracks=tracks), toy_params(mixup=scheme))
        assert "--mixup none" in caught.value.remedy
        assert "--mixup simple" not in caught.value.remedy


def test_blm_with_weight_one_is_the_first_latent(parts):
    first, second = row_of(parts, "click-a"), row_of(parts, "click-b")
    mixer = make_mixer(parts, mixup="blm")
    mixer.pairs = Chosen(Mix(first, second, 1.0), Mix(first, second, 0.25))
    z, condition = mixer.make([0, 1], 0, CPU)
    posteriors = [parts["latents"].posterior(row) for row in (first, second)]
    alone = sample_posterior(*posteriors[0], posterior_noise([0, 0, 0], mixer.params.latent_shape)[0], 1.5)
    torch.testing.assert_close(z[0], alone)
    noise = posterior_noise([0, 0, 1], mixer.params.latent_shape)
    sides = [1.5 * (mean + (logvar / 2).exp() * n) for (mean, logvar), n in zip(posteriors, noise, strict=True)]
    torch.testing.assert_close(z[1], 0.25 * sides[0] + 0.75 * sides[1])
    audio = parts["vocoder"](parts["vae"].decode(z / 1.5))
    assert audio.shape == (2, mixer.params.audio.clip_samples)  # to the sample, nothing padded
    assert float(audio.abs().amax(1).max()) != pytest.approx(0.5)  # so that the next line can fail
    torch.testing.assert_close(condition, parts["clap"].embed_audio(at_level(audio), 16_000))


def at_level(audio):
    centred = audio - audio.mean(1, keepdim=True)
    return 0.5 * centred / centred.abs().amax(1, keepdim=True)


@pytest.mark.parametrize("scheme", ["simple", "bam"])
def test_mixed_audio_is_at_the_level_of_every_clip(parts, scheme):
    mixer = make_mixer(parts, mixup=scheme)
    mixes = [mixer.pairs.draw([0, 0, number]) for number in range(8)]
    mixed = mixer.mix_audio(mixes, torch.tensor([mix.weight for mix in mixes]))
    torch.testing.assert_close(mixed.abs().amax(1), torch.full((8,), mixer.params.audio.peak))
    assert float(mixed.mean(1).abs().max()) < 1e-6


def test_silence_stays_silent_and_offsets_go():
    sound = torch.stack([torch.full((1000,), 0.3), torch.zeros(1000), 0.3 + 0.1 * torch.randn(1000)])
    level = normalise_audio(sound, 0.5)
    assert level[:2].abs().max() == 0
    torch.testing.assert_close(level[2:], at_level(sound[2:]))


def onsets(audio):
    """First samples of bursts in (L,)."""
    loud = np.flatnonzero(np.abs(audio) > 0.02)
    return loud[np.diff(loud, prepend=-10_000) > 2000]


def test_bam_lays_clicks_on_clicks(parts):
    first, second = row_of(parts, "click-a", nth=1), row_of(parts, "click-b")
    mixer = make_mixer(parts, mixup="bam")
    mixed = mixer.mix_audio([Mix(first, second, 0.5)], torch.tensor([0.5]))[0].numpy()
    grid = np.arange(6) * 8000  # 120 BPM from the first sample on
    assert len(onsets(mixed)) == 6
    assert np.abs(onsets(mixed) - grid).max() <= mixer.params.mel.hop_length
    spectrum = np.abs(np.fft.rfft(mixed[:160]))  # 100 Hz a bin: both clicks are in the first burst
    assert set(np.argsort(spectrum)[-2:]) == {10, 30}
    unaligned = row_of(parts, "click-b", on_downbeat=False, nth=1)
    apart = mixer.mix_audio([Mix(first, unaligned, 0.5)], torch.tensor([0.5]))[0].numpy()
    assert len(onsets(apart)) > 6  # so the test can fail


def test_a_preview_is_the_mix_and_says_how_far_its_beats_are_apart(project, parts, tmp_path):
    folders = (project.latents, project.shards, project.clap, project.vae, project.vocoder)
    pairs = write_preview(toy_params(mixup="bam"), *folders, tmp_path, 4)
    mixer = make_mixer(parts, mixup="bam")
    for number, pair in enumerate(pairs):
        mix = mixer.pairs.draw([0, 0, number])
        sound, rate = soundfile.read(pair.wav)
        sides = [mixer.clip(row) for row in (mix.first, mix.second)]
        wanted = at_level(torch.from_numpy(pair.weight * sides[0] + (1 - pair.weight) * sides[1])[None])[0].numpy()
        assert rate == 16_000
        assert np.abs(sound - wanted).max() < 1e-4  # of 16 bits
        assert pair.png.stat().st_size > 10_000
        assert {pair.first, pair.second} <= {"click-a", "click-b", "click-c", "click-a-again"}
        assert pair.beats_apart < 0.015  # 120 beside 121 BPM: 4 ms more at each beat
    with pytest.raises(UsageError, match="nothing to preview"):
        write_preview(toy_params(mixup="none"), *folders, tmp_path, 1)


def test_distances_of_grids():
    assert apart(np.array([0.0, 1.0, 2.0]), np.array([0.1, 0.9, 5.0])) == pytest.approx(0.1)
    assert apart(np.array([]), np.array([1.0])) is None
    slow, fast = np.arange(0.0, 8.0, 1.0), np.arange(0.0, 8.0, 0.5)
    assert apart(slow, fast) == apart(fast, slow) == 0.0


def test_bam_trains_on_the_encoded_mix(parts):
    first, second = row_of(parts, "click-a"), row_of(parts, "click-c")
    mixer = make_mixer(parts, mixup="bam")
    mixer.pairs = Chosen(Mix(first, second, 0.3))
    z, condition = mixer.make([0], 0, CPU)
    sides = [mixer.clip(row) for row in (first, second)]
    audio = at_level(torch.from_numpy(0.3 * sides[0] + 0.7 * sides[1])[None].float())
    mean, logvar = parts["vae"].encode(mixer.mel(audio))
    noise = posterior_noise([0, 0, 0], mixer.params.latent_shape)[0]
    torch.testing.assert_close(z, 1.5 * (mean + (logvar / 2).exp() * noise), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(condition, parts["clap"].embed_audio(audio, 16_000), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", ["simple", "bam", "blm"])
def test_text_conditions_are_interpolated_and_normalised(parts, scheme):
    mixer = make_mixer(parts, mixup=scheme, condition="text")
    z, condition = mixer.make([5, 6], 0, CPU)
    mix = mixer.pairs.draw([0, 0, 6])
    sides = [parts["latents"].embedding(row, "text") for row in (mix.first, mix.second)]
    wanted = F.normalize(mix.weight * sides[0] + (1 - mix.weight) * sides[1], dim=0)
    torch.testing.assert_close(condition[1], wanted)
    torch.testing.assert_close(condition.norm(dim=-1), torch.ones(2))
    assert z.shape == (2, *mixer.params.latent_shape)


def test_bank_slides_and_depends_on_the_step_alone(parts):
    mixer = make_mixer(parts, mixup="blm", condition="text")
    made = []
    real = mixer.make
    mixer.make = lambda numbers, rank, device: made.extend(numbers) or real(numbers, rank, device)
    bank = Bank(mixer, per_step=2.0)  # of 8 clips, each for 4 uses: half a clip is replaced at every step
    for step in range(41):
        torch.manual_seed(step)
        z, condition = bank.draw(step, 2, 0, CPU)
        first = step // 2
        assert all((index + 1) * 4 > first and index * 4 < first + 8 for index in bank._chunks)
    assert len(made) == len(set(made))  # each clip is made once
    assert set(made) == set(range(28))
    fresh = Bank(mixer, per_step=2.0)
    torch.manual_seed(40)
    again = fresh.draw(40, 2, 0, CPU)
    assert torch.equal(again[0], z)
    assert torch.equal(again[1], condition)
