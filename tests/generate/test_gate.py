"""The novelty gate: other seeds for what is too close, the best kept and marked, and guidance away from neighbours."""

import pytest
import torch
from torch.nn import functional as F

from stages.errors import UsageError
from stages.generate.batch import generate_files, make_clips
from stages.generate.gate import Gate, Neighbour, steered
from stages.generate.manifest import read_manifest
from stages.generate.pipeline import Pipeline
from stages.generate.prompts import Prompt
from stages.generate.samplers import Away, Diffusion, diffusion, guided, make_scheduler, sample
from stages.generate.settings import Settings
from stages.ldm.folder import scheduler as saved_scheduler
from stages.params import Ldm

QUICK = Settings("ddim", 3, 0.0, 1)
CONFIG = dict(saved_scheduler(Ldm()).config)
PROMPT = Prompt("a", "calm piano", 1, None, 2.0, 1.28)


@pytest.fixture(scope="module")
def pipeline(toy_models):
    return Pipeline.load(toy_models / "ldm", "cpu")


def near(*similarities):
    """Similarities for one clip after the other, the last for all further ones."""
    left = list(similarities)

    def nearest(waveform):
        value = left.pop(0) if len(left) > 1 else left[0]
        return Neighbour("track-1", 2.56, value, F.normalize(torch.ones(64), dim=0))

    return nearest


def test_a_clip_too_close_is_made_again_with_another_seed(pipeline, tmp_path):
    gate = Gate(near(0.99, 0.97, 0.5), "digest", most=0.95, tries=4)
    rows, _ = generate_files(pipeline, [PROMPT], QUICK, tmp_path, gate=gate)
    row = rows[0]
    assert (row["candidate"], row["similarity"], row["too_close"]) == (2, 0.5, False)
    assert (row["nearest"], row["nearest_start_seconds"]) == ("track-1", 2.56)
    assert (row["index"], row["max_similarity"], row["tries"]) == ("digest", 0.95, 4)
    third = pipeline.waveforms([PROMPT], [2], QUICK)[0]
    found = make_clips(pipeline, [PROMPT], QUICK, gate=Gate(near(0.99, 0.97, 0.5), "", 0.95, 4))[0]
    assert torch.equal(found.waveform, found.gain * third)


def test_where_none_passes_the_least_close_is_kept_and_marked(pipeline, tmp_path):
    gate = Gate(near(0.99, 0.96, 0.98), "digest", most=0.95, tries=3)
    generate_files(pipeline, [PROMPT], QUICK, tmp_path, gate=gate)
    row = read_manifest(tmp_path)[0]
    assert (row["candidate"], row["similarity"], row["too_close"]) == (1, 0.96, True)
    _, made = generate_files(pipeline, [PROMPT], QUICK, tmp_path, gate=gate)
    assert made == []  # asked again, it says so again and makes nothing
    _, made = generate_files(pipeline, [PROMPT], QUICK, tmp_path, gate=Gate(near(0.1), "digest", 0.95, 9))
    assert made[0]["too_close"] is False


def test_of_candidates_the_one_clap_likes_best_that_passes_is_taken(pipeline):
    settings = Settings("ddim", 3, 0.0, 3)
    plain = make_clips(pipeline, [PROMPT], settings)[0]
    found = make_clips(pipeline, [PROMPT], settings, gate=Gate(near(0.99, 0.5), "", 0.95, 2))[0]
    assert found.candidate != plain.candidate
    assert found.clap_score <= plain.clap_score
    looked = make_clips(pipeline, [PROMPT], settings, gate=Gate(near(0.99), ""))[0]
    assert (looked.candidate, looked.too_close) == (plain.candidate, False)  # without a limit it only looks


@pytest.mark.parametrize(("most", "tries"), [(0.0, 1), (1.1, 1), (float("nan"), 1), (0.9, 0)])
def test_impossible_gates_are_usage_errors(most, tries):
    with pytest.raises(UsageError):
        Gate(near(0.5), "", most, tries)


def test_guidance_away_from_a_neighbour_is_its_formula():
    def denoise(x, t, condition):
        return x + condition.sum(1).view(-1, 1, 1, 1)

    x, one = torch.zeros(1, 1, 1, 1), torch.ones(1)
    condition, null, copied = torch.tensor([[3.0]]), torch.tensor([[1.0]]), torch.tensor([[5.0]])
    away = Away(0.5, copied)
    assert guided(denoise, condition, null, 2 * one, away=away)(x, torch.tensor(1)).item() == 1 + 2 * 2 - 0.5 * 4
    assert guided(denoise, condition, null, one, away=away)(x, torch.tensor(1)).item() == 3 - 0.5 * 4
    inside = guided(denoise, condition, null, 2 * one, (0.2, 0.6), 1000)
    assert [inside(x, torch.tensor(t)).item() for t in (100, 400, 700)] == [3, 5, 3]


def test_neighbours_are_looked_for_at_three_steps_in_what_the_latents_will_be():
    process = Diffusion(torch.linspace(0.99, 0.01, 1000), "epsilon")
    seen, away = [], Away(1.0)

    def like(clean):
        seen.append(clean)
        return torch.ones(1, 1)

    times = torch.arange(900, -1, -100)
    predict = steered(lambda x, t: torch.zeros_like(x), away, like, process, times)
    for time in times:
        predict(torch.ones(1, 1, 1, 1), time)
    assert away.condition is not None
    wanted = [1 / process.alpha_bar[t].sqrt() for t in (700, 400, 200)]
    assert [float(clean) for clean in seen] == pytest.approx([float(value) for value in wanted])


def test_a_network_that_knows_clips_by_heart_is_led_away_from_them():
    """Its data are eight clips that it knows exactly, each under its own condition, and music at large, a wide
    Gaussian: then the best prediction is known in closed form. Asked for what is near to a clip's condition it gives
    the clip; steered away it gives less of it, the more so the higher the weight up to that of guidance itself."""
    generator = torch.Generator().manual_seed(0)
    scheduler = make_scheduler("ddim", CONFIG, 50)
    process = diffusion(scheduler)
    clips = torch.randn(8, 4, 8, 4, generator=generator)
    conditions = F.normalize(torch.randn(8, 16, generator=generator), dim=1)
    narrow, wide, known = 0.1, 1.0, 0.5  # spreads of a clip and of all music; share of what is known by heart

    def denoise(x, t, condition):
        a = process.alpha_bar[int(t)]
        centres = torch.cat([clips, torch.zeros(1, 4, 8, 4)])
        spreads = torch.tensor([narrow] * 8 + [wide])
        variance = a * spreads.square() + 1 - a
        asked = (10 * condition @ conditions.T).softmax(1) * known
        prior = torch.cat([asked, torch.full((len(x), 1), 1 - known)], 1)
        away_from = (x[:, None] - a.sqrt() * centres).flatten(2)
        density = prior.log() - away_from.square().sum(2) / (2 * variance) - 128 / 2 * variance.log()
        best = away_from / variance.view(-1, 1)  # minus the score of each part
        return (1 - a).sqrt() * (density.softmax(1)[..., None] * best).sum(1).view_as(x)

    def nearest(latents):
        return F.cosine_similarity(latents[:, None].flatten(2), clips.flatten(1)[None], dim=2).max(1)

    asked = F.normalize(conditions + 0.1 * torch.randn(8, 16, generator=generator), dim=1)
    null = torch.zeros(8, 16)
    noise = torch.randn(8, 4, 8, 4, generator=generator)
    near = []
    for weight in (0.0, 1.0, 2.0):
        away = Away(weight)
        predict = guided(denoise, asked, null, torch.full((8,), 2.0), away=away)
        predict = steered(predict, away, lambda z: conditions[nearest(z).indices], process, scheduler.timesteps)
        made = sample(predict, noise, scheduler, [])
        near.append(nearest(made).values.mean().item())
    assert near[0] > 0.7  # measured: 0.77, 0.56, 0.36
    assert near[1] < near[0] - 0.1
    assert near[2] < near[1] - 0.1


def test_avoiding_changes_the_sound_where_the_network_hears_its_condition(pipeline):
    avoiding = Settings("ddim", 8, 0.0, 1, avoid=1.0)
    plain, away = (
        pipeline.waveforms([PROMPT], [0], s, nearest=near(0.9)) for s in (Settings("ddim", 8, 0.0, 1), avoiding)
    )
    assert (plain - away).abs().max() > 1e-3 * plain.abs().max()
    assert torch.equal(away, pipeline.waveforms([PROMPT], [0], avoiding, nearest=near(0.9)))
