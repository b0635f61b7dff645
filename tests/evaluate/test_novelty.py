"""The index, the exact search, the spectrogram similarity, the cache, and the planted copies."""

import json

import numpy as np
import pytest
import soundfile

from stages.errors import DataError
from stages.evaluate import planted, search, spectral
from stages.evaluate.cache import EmbeddingCache, Entry, key
from stages.evaluate.duplicates import duplicates
from stages.evaluate.embeddings import Segment, embed
from stages.evaluate.index import TrainingIndex, write_index
from stages.evaluate.novelty import Found, Gate, parse_gate
from stages.params import Audio, Evaluate
from tests import DEMO

RATE = 16_000
AUDIO = Audio(clip_seconds=4.0)
NAMES = ["flare_battle_theme", "flare_cave_theme", "singularity_nebula", "hyperrogue_hr3_caves", "ufoai_azrael1"]


def music(name, seconds=16.0, start=0.0):
    samples, _ = soundfile.read(
        DEMO / f"{name}.ogg", start=int(start * RATE), frames=int(seconds * RATE), dtype="float32"
    )
    return samples


class Spectrum:
    """A stand-in network: the unit vector of 64 band energies; counts how often it runs."""

    name, keeps_level, patch_seconds = "spectrum 1", False, 0.0

    def __init__(self):
        self.runs = 0

    def __call__(self, waveform):
        self.runs += 1
        power = np.square(np.abs(np.fft.rfft(waveform.numpy(), axis=1)))[:, : 64 * 400].reshape(len(waveform), 64, -1)
        import torch

        return torch.nn.functional.normalize(torch.from_numpy(np.log(power.mean(2) + 1e-3)).float(), dim=1), None


def segments(names=NAMES, seconds=16.0):
    for name in names:
        samples = music(name, seconds)
        for start in range(0, len(samples), AUDIO.clip_samples):
            yield Segment(name, start / RATE, samples[start : start + AUDIO.clip_samples], RATE)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_index(tmp_path_factory.mktemp("index") / "i", segments(), Spectrum(), AUDIO, "demo")


@pytest.mark.parametrize("kind", ["random", "clusters", "equal", "halves"])
def test_the_search_is_the_full_search_in_float64(kind):
    generator = np.random.default_rng(0)
    stored, queries = generator.normal(size=(40_000, 32)), generator.normal(size=(70, 32))
    if kind == "clusters":
        stored = stored[:50][generator.integers(50, size=40_000)] + 0.001 * stored
        queries = stored[::600] + 0.001 * generator.normal(size=(67, 32))
    if kind == "equal":
        stored = np.tile(stored[:1], (1000, 1))
    stored, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (stored, queries))
    stored = stored.astype(np.float16 if kind == "halves" else np.float32)
    full = (queries[:, None] * stored[None, :1000] if kind == "equal" else np.zeros((1, 1, 1))).sum(2)
    if kind != "equal":
        full = np.stack([(query * stored.astype(np.float64)).sum(1) for query in queries])
    found, rows = search.nearest(queries, stored)
    assert (found == full.max(1)).all()  # bit for bit, and
    assert (rows == full.argmax(1)).all()  # the first of equal rows
    alone, row = search.nearest(queries[3:4], stored)
    assert (alone[0], row[0]) == (found[3], rows[3])  # whatever is searched beside it
    own = np.stack([rows, rows + 1], 1)
    full[np.arange(len(queries)), rows] = -np.inf
    other, second = search.nearest(queries, stored, own=own)
    assert (other == full.max(1)).all()
    assert (second == full.argmax(1)).all()


def test_a_query_may_look_nowhere():
    found, rows = search.nearest(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32), own=np.array([[0, 3]] * 3))
    assert rows.tolist() == [-1, -1, -1]
    assert found.tolist() == [-1.0, -1.0, -1.0]


def test_spectrogram_similarity_is_the_correlation_over_all_offsets():
    clip, track = spectral.sketch(music(NAMES[0], 3.0), RATE), spectral.sketch(music(NAMES[1], 15.0), RATE)
    expected = []
    for offset in range(len(track) - len(clip) + 1):
        a, b = clip.astype(float), track[offset : offset + len(clip)].astype(float)
        a, b = a - a.mean(0), b - b.mean(0)
        expected.append((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
    found = spectral.search([clip], [(0, track)])
    assert found.similarity[0] == pytest.approx(max(expected), abs=1e-4)
    assert found.start[0] == pytest.approx(np.argmax(expected) / spectral.FRAMES_PER_SECOND)


def test_many_tracks_of_any_length_are_searched_as_one_by_one(monkeypatch):
    """Tracks lie end to end in blocks: no stretch reaches into a neighbour, and each query leaves out its own."""
    monkeypatch.setattr(spectral, "BLOCKS", 2)
    draw = np.random.default_rng(0)
    lengths = [5, 30, 29, 31, 700, 3000, 1, 60, 90]
    tracks = [(10 + i, draw.normal(size=(n, spectral.BANDS)).astype(np.float16)) for i, n in enumerate(lengths)]
    queries = [tracks[5][1][2970:], tracks[4][1][100:130], tracks[8][1][7:57], tracks[1][1], tracks[0][1]]
    queries += [np.concatenate([tracks[4][1][-15:], tracks[5][1][:15]])]  # across the joint of two tracks
    own = [15, 10, 12, 11, 10, 10]

    def one_by_one(query, number):
        found = (0.0, -1, 0)
        for track, frames in tracks:
            padded = np.zeros((max(len(frames), len(query)), spectral.BANDS))
            padded[: len(frames)] = frames.astype(float) - frames.astype(float).mean(0)
            for at in range(len(padded) - len(query) + 1 if track != number else 0):
                a, b = query.astype(float), padded[at : at + len(query)]
                a, b = a - a.mean(0), b - b.mean(0)
                value = (a * b).sum() / max(1e-9, np.sqrt((a**2).sum() * (b**2).sum()))
                found = max(found, (value, track, at / 10), key=lambda one: one[0])
        return found

    for left_out in (None, own):
        best = spectral.search(queries, tracks, left_out)
        wanted = [one_by_one(query, own[i] if left_out else None) for i, query in enumerate(queries)]
        assert best.similarity == pytest.approx([one[0] for one in wanted], abs=1e-5)
        assert best.track.tolist() == [one[1] for one in wanted]
        assert best.start == pytest.approx([one[2] for one in wanted])
    assert wanted[0][1] != 15


def test_spectrogram_similarity_finds_a_copy_at_its_place_whatever_its_level_and_equalisation():
    piece = music(NAMES[0], 60)
    track, at = np.concatenate([piece[::-1], piece]), len(piece) / RATE + 7.3  # several blocks
    clip = music(NAMES[0], 4.0, start=7.3)
    changed = planted.equalised(planted.Excerpt(0.1 * clip, clip, clip, RATE))
    found = spectral.search([spectral.sketch(x, RATE) for x in (clip, changed)], [(5, spectral.sketch(track, RATE))])
    assert found.start == pytest.approx([at, at], abs=0.11)
    assert found.track.tolist() == [5, 5]
    assert (found.similarity > [0.9, 0.85]).all()
    silent = np.zeros(4 * RATE, np.float32)
    none = spectral.search([spectral.sketch(silent, RATE)], [(5, spectral.sketch(track, RATE))])
    assert (none.similarity[0], none.track[0]) == (0, -1)


def test_an_index_is_read_as_it_was_written_and_half_of_it_is_near_enough(index, tmp_path):
    assert [track.id for track in index.tracks] == NAMES
    queries = embed(segments(NAMES[1:2]), Spectrum(), AUDIO, "queries")
    found, rows = index.search(queries.vectors)
    assert found == pytest.approx(np.ones(4), abs=1e-5)
    assert [index.place(int(row)) for row in rows] == [(NAMES[1], 4.0 * i) for i in range(4)]
    half = write_index(tmp_path / "half", segments(), Spectrum(), AUDIO, "demo", "float16")
    assert half.search(queries.vectors)[0] == pytest.approx(found, abs=1e-3)
    written = {file.name: file.read_bytes() for file in index.path.iterdir()}
    again = write_index(tmp_path / "again", segments(), Spectrum(), AUDIO, "demo")
    assert {file.name: file.read_bytes() for file in again.path.iterdir()} == written
    index.check("spectrum 1", index.preprocessing)


def test_an_index_that_does_not_fit_is_refused_in_a_sentence(index, tmp_path):
    import shutil

    with pytest.raises(DataError, match=r"another network \(spectrum 1\) than"):
        index.check("clap 123", index.preprocessing)
    with pytest.raises(DataError, match="another preprocessing"):
        index.check("spectrum 1", "8000 Hz")
    for name, change, said in (
        ("newer", {"schema": 99}, "by a newer musicldm .schema 99"),
        ("older", {"schema": 2}, "by an older musicldm .schema 2"),
        ("other", {"format": "a list"}, "is not a training index"),
        ("short", {"tracks": [["a", 99, 1]]}, "is damaged"),
    ):
        folder = shutil.copytree(index.path, tmp_path / name)
        header = json.loads((folder / "index.json").read_text()) | change
        (folder / "index.json").write_text(json.dumps(header))
        with pytest.raises(DataError, match=said):
            TrainingIndex(folder)
    with pytest.raises(DataError, match=r"no .*nowhere"):
        TrainingIndex(tmp_path / "nowhere")


def test_duplicates_of_other_tracks_are_found_and_a_track_is_not_its_own(tmp_path):
    copies = (Segment("again", s.start_seconds, 0.5 * s.samples, RATE) for s in segments(NAMES[:1]))
    twice = [*segments(NAMES[:3]), *copies]
    rows, shares = duplicates(write_index(tmp_path / "i", twice, Spectrum(), AUDIO, "d"), Evaluate(bootstrap=5))
    assert {row["track"] for row in rows[:8]} == {NAMES[0], "again"}
    assert all(row["mel_other_track"] != row["track"] != row["other_track"] for row in rows)
    assert rows[0]["start_seconds"] == pytest.approx(rows[0]["mel_other_start_seconds"], abs=0.1)
    assert shares["duplicates_mel@0.95"]["value"] == pytest.approx(8 / 16)


def test_what_was_heard_is_not_heard_again_and_what_changed_is(tmp_path):
    cache, network = EmbeddingCache(tmp_path / "c.sqlite"), Spectrum()
    first = embed(segments(NAMES[:2]), network, AUDIO, "x", cache)
    runs = network.runs
    again = embed(segments(NAMES[:2]), network, AUDIO, "x", cache)
    assert network.runs == runs
    assert (again.vectors == first.vectors).all()
    embed(segments(NAMES[:3]), network, AUDIO, "x", cache)
    assert network.runs == runs + 1  # the third track's four windows are one batch
    other = Spectrum()
    other.name = "spectrum 2"
    embed(segments(NAMES[:1]), other, AUDIO, "x", cache)
    assert other.runs == 1
    alone = embed(list(segments(NAMES[:2]))[5:6], Spectrum(), AUDIO, "x")
    assert (alone.vectors[0] == first.vectors[5]).all()  # neighbours do not change bits


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"not a database, but long enough to look like one" * 40)
    with pytest.raises(DataError, match="no cache of embeddings"):
        EmbeddingCache(path)
    samples = np.ones(4, np.float32)
    assert len({key(samples, "a", "b"), key(samples, "b", "b"), key(samples, "a", "c"), key(-samples, "a", "b")}) == 4
    cache = EmbeddingCache(tmp_path / "d.sqlite")
    cache.add([b"k"], [Entry(np.ones((2, 3), np.float32), None)])
    assert cache.find([b"k", b"l"])[1] is None


@pytest.mark.slow  # librosa compiles itself
def test_disguises_change_the_sound_and_keep_the_length():
    longer, cover = music(NAMES[0], 5.0), music(NAMES[3], 4.0)
    excerpt = planted.Excerpt(longer[: 4 * RATE], longer, cover, RATE)
    made = {name: change(excerpt) for name, change in planted.DISGUISES.items()}
    assert len(made) == 7
    assert {len(samples) for samples in made.values()} == {4 * RATE}
    for name, samples in made.items():
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() <= 1.0
        assert (name == "copy") == bool((samples == excerpt.samples).all())
    rest = made["mixed_at_-6_dB"] - cover  # what lies under the cover, 6 dB below it, where nothing was turned down
    if np.abs(made["mixed_at_-6_dB"]).max() < 1:
        assert 20 * np.log10(rest.std() / cover.std()) == pytest.approx(-6, abs=0.1)


def test_a_spool_gives_back_what_was_put_into_it(tmp_path):
    spool, kept = planted.Spool(tmp_path / "new"), list(segments(NAMES[:2]))
    for segment in kept:
        spool.add(segment)
    assert list(tmp_path.glob("new/*")) == []  # the file has no name and goes with the process
    for i in (3, 0, len(spool) - 1):
        assert (spool[i].name, spool[i].start_seconds) == (kept[i].name, kept[i].start_seconds)
        assert np.array_equal(spool[i].samples, kept[i].samples)


def test_recall_counts_alarms_above_the_level_that_one_percent_of_innocents_pass():
    names = [f"innocent:{i}" for i in range(200)] + [f"{kind}:t" for kind in planted.DISGUISES for _ in range(4)]
    similarity = np.concatenate([np.linspace(0, 0.5, 200), np.tile([0.4, 0.498, 0.9, 0.9], len(planted.DISGUISES))])
    tracks = ["t"] * (len(names) - 1) + ["u"]
    found, warnings = planted.recalls(names, Found(similarity, tracks))
    assert found["false_alarms"]["value"] == pytest.approx(0.01)
    assert found["recall copy"]["value"] == 0.75
    assert found["right track mixed_at_-6_dB"]["value"] == 0.5
    assert warnings == []
    assert planted.recalls(names[150:], Found(similarity[150:], tracks[150:]))[1]


def test_a_gate_may_be_about_the_spectrograms():
    assert parse_gate("mel:0@0.7") == Gate(0.0, 0.7, "mel")
    assert parse_gate("mel:0@0.7").key == "sim_mel@0.7"
