from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from stages.data import hdf5
from stages.data.dataset import ClipDataset, StepBatches, collate, normalise
from stages.data.shards import ShardReader, write_shards
from stages.errors import DataError, ParamsError
from stages.params import resolve

CLIP = 32_000
PEAK = 0.5
NAMES = ["flare_boss_theme", "singularity_awakening"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory, write_collection):
    """Two real tracks of 11 s and the beginning of one, shorter than a clip."""
    work = tmp_path_factory.mktemp("clips")
    write_collection(work, NAMES, seconds=11)
    write_shards(work / "audio" / "manifest.csv", work / "beats" / "beats.jsonl",
                 work / "captions" / "captions.jsonl", work / "shards", resolve({"preset": "tiny"}))  # fmt: skip
    return ShardReader(work / "shards")


@pytest.fixture(scope="module")
def clips(reader):
    return ClipDataset(reader, "train", CLIP, PEAK)


def test_windows_cover_every_start_once(reader):
    samples = reader.tracks[0].samples
    for clip_samples in (CLIP, samples // 2, samples, samples + 1):
        windows = [w for w in ClipDataset(reader, "train", clip_samples, PEAK).windows if w.track == 0]
        starts = [start for w in windows for start in range(w.first, w.last + 1)]
        assert starts == list(range(max(samples - clip_samples, 0) + 1))
        assert len(windows) == max(samples // clip_samples, 1)


def test_a_clip_is_its_stretch_of_the_track_normalised(reader, clips):
    for seed in range(20):
        clip = clips[(3, seed)]
        audio = clip["audio"].numpy()
        assert (clip["audio"].shape, clip["audio"].dtype) == ((CLIP,), torch.float32)
        assert np.abs(audio).max() == pytest.approx(PEAK, abs=1e-6)
        assert abs(audio.mean()) < 1e-6
        window = clips.windows[3]
        track = reader.audio(window.track, 0, reader.tracks[window.track].samples).astype(np.float64)
        candidates = np.lib.stride_tricks.sliding_window_view(track, CLIP)[window.first : window.last + 1]
        found = np.argmax(candidates[:, :64] @ audio[:64] / np.linalg.norm(candidates[:, :64], axis=1))
        expected = candidates[found] - candidates[found].mean()
        np.testing.assert_allclose(audio, expected * PEAK / np.abs(expected).max(), atol=1e-6)


def test_the_place_of_a_clip_depends_on_the_draw_alone(clips):
    first = clips[(0, 12)]["audio"]
    np.random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(clips[(0, 12)]["audio"], first)
    assert not torch.equal(clips[(0, 13)]["audio"], first)


def test_a_short_track_is_padded_with_silence(reader):
    samples = reader.tracks[0].samples
    clip = ClipDataset(reader, "train", samples + 5000, PEAK)[(0, 1)]["audio"]
    assert torch.all(clip[samples:] == 0)
    assert clip[:samples].abs().max() == pytest.approx(PEAK)
    assert abs(float(clip[:samples].mean())) < 1e-6


def test_silence_stays_silence():
    for samples in (np.zeros(100), np.full(100, 37), np.resize([0, 1], 100)):
        assert not normalise(samples.astype(np.int16), PEAK).any()
    assert np.abs(normalise(np.array([-32768, 32767, 5], dtype=np.int16), PEAK)).max() == pytest.approx(PEAK)


def test_an_empty_split_is_refused(reader):
    with pytest.raises(DataError, match="no track in the split 'valid'"):
        ClipDataset(reader, "valid", CLIP, PEAK)


sizes = st.tuples(st.integers(1, 40), st.sampled_from([2, 4, 12]), st.integers(0, 2**31))


@given(sizes)
@settings(deadline=None, max_examples=50)
def test_every_item_comes_once_an_epoch(sizes):
    n_items, batch_size, seed = sizes
    steps = 3 * n_items  # batch_size * 3 epochs
    drawn = [item for batch in StepBatches(n_items, batch_size, steps, seed=seed) for item, _ in batch]
    for start in range(0, len(drawn), n_items):
        assert sorted(drawn[start : start + n_items]) == list(range(n_items))
    if n_items > 10:
        assert drawn[:n_items] != drawn[n_items : 2 * n_items]


@given(sizes, st.integers(0, 20))
@settings(deadline=None, max_examples=50)
def test_resume_and_ranks_see_the_same_batches(sizes, start):
    n_items, batch_size, seed = sizes
    whole = list(StepBatches(n_items, batch_size, 20, seed=seed))
    resumed = StepBatches(n_items, batch_size, 20, start_step=start, seed=seed)
    assert list(resumed) == whole[start:]
    assert len(resumed) == 20 - start
    ranks = [StepBatches(n_items, batch_size, 20, seed=seed, rank=rank, world_size=2) for rank in range(2)]
    assert [left + right for left, right in zip(*ranks, strict=True)] == whole


def test_draw_seeds_and_orders_differ_by_seed():
    batches = list(StepBatches(50, 10, 20))
    seeds = Counter(seed for batch in batches for _, seed in batch)
    assert len(seeds) == 200
    assert list(StepBatches(50, 10, 20, seed=1)) != batches


def test_a_batch_must_divide_among_the_processes():
    with pytest.raises(ParamsError, match=r"train\.batch_size 5 cannot be divided among 2"):
        StepBatches(10, 5, 1, world_size=2)


def test_workers_give_what_one_process_gives(clips):
    draws = StepBatches(len(clips), 4, 5, seed=3)
    batches = [
        list(DataLoader(clips, batch_sampler=draws, num_workers=workers, collate_fn=collate)) for workers in (0, 2)
    ]
    assert len(batches[0]) == 5
    for alone, shared in zip(*batches, strict=True):
        assert alone["audio"].shape == (4, CLIP)
        assert torch.equal(alone["audio"], shared["audio"])
        assert torch.equal(alone["track"], shared["track"])
    single = [clips[draw] for draw in next(iter(draws))]
    assert torch.equal(batches[0][0]["audio"], torch.stack([clip["audio"] for clip in single]))
    assert batches[0][0]["track"].tolist() == [clip["track"] for clip in single]


def test_the_longest_unread_dataset_is_closed_and_opened_again(reader, monkeypatch):
    monkeypatch.setattr(hdf5, "KEPT_OPEN", 1)
    first = [reader.audio(track, 0, 1000) for track in range(2)]
    assert list(reader._datasets._kept) == [f"{reader.tracks[1].id}/audio"]
    again = [reader.audio(track, 0, 1000) for track in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
