import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import soundfile

from stages.data.shards import ShardReader, verify, write_shards
from stages.errors import DataError
from stages.params import resolve
from stages.store import sha256

FILES = ["flare_boss_theme", "singularity_awakening", "hyperrogue_hr3_hell", "ufoai_david01", "warzone_rainout"]
NAMES = [name.replace("_", "-") for name in FILES]
PARAMS = resolve({"preset": "tiny", "shards": {"target_megabytes": 1}})  # two tracks of 12 s in each shard


def write(work, out, params=PARAMS):
    return write_shards(
        work / "audio" / "manifest.csv", work / "beats" / "beats.jsonl", work / "captions" / "captions.jsonl",
        out, params,
    )  # fmt: skip


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def work(tmp_path_factory, write_collection):
    """Five tracks in three shards."""
    work = tmp_path_factory.mktemp("work")
    write_collection(work, FILES, test=(FILES[4],))
    assert write(work, work / "shards")["shards"] == 3
    return work


@pytest.fixture
def folder(work, tmp_path):
    """A copy of the shards to break."""
    return shutil.copytree(work / "shards", tmp_path / "shards")


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_what_is_read_is_what_was_recorded(work):
    reader = ShardReader(work / "shards")
    assert [track.id for track in reader.tracks] == NAMES
    assert [track.split for track in reader.tracks] == ["train"] * 4 + ["test"]
    for i, track in enumerate(reader.tracks):
        samples, rate = soundfile.read(work / "audio" / "tracks" / f"{track.id}.flac", dtype="int16")
        assert (track.samples, reader.sample_rate) == (len(samples), rate)
        np.testing.assert_array_equal(reader.audio(i, 0, track.samples), samples)
        np.testing.assert_array_equal(reader.audio(i, 160_000, 170_000), samples[160_000:170_000])  # two chunks
        assert track.n_downbeats == len(reader.downbeats(i))
    np.testing.assert_array_equal(reader.beats(0), np.arange(24) * 0.5)
    np.testing.assert_array_equal(reader.downbeats(0), np.arange(6) * 2.0)
    assert len(reader.beats(2)) == 0
    assert (reader.tracks[2].tempo_bpm, reader.tracks[2].mean_bpm, reader.tracks[2].metre) == (None, None, None)
    assert (reader.tracks[0].tempo_bpm, reader.tracks[0].mean_bpm, reader.tracks[0].metre) == (120.0, 120.0, 4)
    assert reader.tracks[0].caption == "A measured piece called flare_boss_theme."
    assert reader.audio(0, 7, 7).shape == (0,)
    for start, stop in ((-1, 5), (0, reader.tracks[0].samples + 1)):
        with pytest.raises(IndexError):
            reader.audio(0, start, stop)


def test_a_file_says_what_it_holds(work):
    with h5py.File(work / "shards" / "shard-00000.h5") as file:
        group = file[NAMES[0]]
        assert group["audio"].dtype == np.int16
        assert group["audio"].chunks == (PARAMS.audio.clip_samples,)
        assert group["audio"].fletcher32
        assert group.attrs["licence"] == "CC-BY-SA"
        assert group.attrs["title"] == FILES[0]


def test_writing_again_gives_the_same_bytes(work, tmp_path):
    time.sleep(1.1)  # past the resolution of HDF5's timestamps
    write(work, tmp_path)
    assert contents(tmp_path) == contents(work / "shards")


def test_only_what_changed_is_written(work, tmp_path, write_collection):
    mine = shutil.copytree(work, tmp_path / "work")
    before = contents(mine / "shards")
    assert write(mine, mine / "shards")["written"] == 0

    write_collection(mine, [*FILES[:1], "flare_cave_theme", *FILES[1:]], test=(FILES[4],))
    assert write(mine, mine / "shards")["written"] == 1
    added = ShardReader(mine / "shards")
    assert [track.id for track in added.tracks] == [*NAMES, "flare-cave-theme"]
    assert len(contents(mine / "shards")) == len(before) + 1

    write_collection(mine, FILES[2:], test=(FILES[4],))
    write(mine, mine / "shards")
    assert [track.id for track in ShardReader(mine / "shards").tracks] == NAMES[2:]
    assert sorted(contents(mine / "shards")) == ["index.json", "shard-00000.h5", "shard-00001.h5"]


def test_a_stopped_run_is_taken_up(work, tmp_path):
    mine = shutil.copytree(work, tmp_path / "work")
    (mine / "shards" / "index.json").unlink()
    (mine / "shards" / ".tmp-abc.h5").write_bytes(b"half")
    flip(mine / "shards" / "shard-00001.h5", 100_000)
    assert write(mine, mine / "shards")["written"] == 1
    assert contents(mine / "shards") == contents(work / "shards")


def test_a_damaged_shard_is_written_again(work, folder):
    flip(folder / "shard-00002.h5", 300_000)
    assert write(work, folder)["written"] == 1
    assert contents(folder) == contents(work / "shards")


def test_verify_counts_what_is_whole(work):
    assert verify(work / "shards")["tracks"] == 5


def test_a_flipped_bit_is_named(work, folder):
    path = folder / "shard-00001.h5"
    with h5py.File(path) as file:
        offset = file[NAMES[3]]["audio"].id.get_chunk_info(1).byte_offset
    flip(path, offset + 1000)
    with pytest.raises(DataError, match=rf"shard-00001.h5 .*{NAMES[3]}, audio, elements 163840 .*checksum"):
        verify(folder)
    reader = ShardReader(folder)
    reader.audio(3, 0, 163_840)
    with pytest.raises(DataError, match=rf"shard-00001.h5, track {NAMES[3]}"):
        reader.audio(3, 0, 163_841)


@pytest.mark.parametrize("share", np.linspace(0, 0.999, 12))
def test_no_flipped_bit_passes(folder, share):
    path = folder / "shard-00000.h5"
    flip(path, int(share * path.stat().st_size))
    with pytest.raises(DataError, match="shard-00000"):
        verify(folder)


def test_missing_short_exchanged_and_foreign_shards(folder):
    path = folder / "shard-00000.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"shard-00000.h5 was cut short: it has [\d,]+ bytes"):
        ShardReader(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"shard-00000\.h5 is missing"):
        ShardReader(folder)
    with h5py.File(path, "w", userblock_size=0) as file:
        file.attrs["key"] = "another"
    path.write_bytes(path.read_bytes() + b"\0" * (len(whole) - path.stat().st_size))
    with pytest.raises(DataError, match=r"shard-00000\.h5, track"):
        ShardReader(folder).audio(0, 0, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index | {"schema": 3}, "schema 3; this version reads up to 2"),
        (lambda index: index | {"schema": 1}, "not an index of shards: its schema is 1"),
        (lambda index: index | {"schema": None}, "not an index of shards"),
        (lambda index: {**index, "shards": [{**index["shards"][0], "file": "../x.h5"}]}, "names a file"),
        (lambda index: {key: index[key] for key in ("schema", "shards")}, "not an index of shards"),
        (lambda index: [], "not an index of shards"),
    ],
)
def test_an_index_of_another_form_is_refused(folder, change, message):
    path = folder / "index.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=message):
        ShardReader(folder)


def replace(path, dataset, shape, **how):
    """Exchange a dataset for another of `shape`, with its index saying that all is as it should be."""
    with h5py.File(path, "a") as file:
        del file[dataset]
        file.create_dataset(dataset, shape, how.pop("dtype", "i2"), **how)
    index = path.with_name("index.json")
    said = json.loads(index.read_text())
    row = next(shard for shard in said["shards"] if shard["file"] == path.name)
    row |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
    index.write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("audio", {"external": [("secret.bin", 0, h5py.h5f.UNLIMITED)]}, "lies in other files"),
        ("audio", {"chunks": (1000,), "compression": "gzip"}, "has a filter"),
        ("audio", {"dtype": h5py.string_dtype()}, "is no dataset of int16"),
        ("audio", {}, "is larger than what is stored"),
        ("downbeats", {"external": [("secret.bin", 0, h5py.h5f.UNLIMITED)], "dtype": "f8"}, "lies in other files"),
    ],
)
def test_a_shard_that_points_elsewhere_is_refused_by_readers_and_verify(folder, name, how, said):
    (folder / "secret.bin").write_bytes(bytes(10**7))
    reader = ShardReader(folder)
    track, path = reader.tracks[0], folder / "shard-00000.h5"
    length = track.samples if name == "audio" else track.n_downbeats
    replace(path, f"{track.id}/{name}", (length,), **how)
    reader = ShardReader(folder)
    with pytest.raises(DataError, match=said):
        reader.audio(0, 0, 10) if name == "audio" else reader.downbeats(0)
    with pytest.raises(DataError, match=said):
        verify(folder)


def test_a_track_of_another_length_than_the_index_says_is_refused(folder):
    reader = ShardReader(folder)
    path = folder / "shard-00000.h5"
    replace(path, f"{reader.tracks[0].id}/audio", (10,), data=np.zeros(10, "i2"))
    with pytest.raises(DataError, match=r"audio has 10 elements, the index says \d+"):
        ShardReader(folder).audio(0, 0, 5)


def test_an_edited_row_is_found(folder):
    path = folder / "index.json"
    path.write_text(path.read_text().replace("120.0", "121.0", 1))
    with pytest.raises(DataError, match=f"track {NAMES[0]}: its row"):
        verify(folder)


def test_a_folder_without_index_has_no_shards(tmp_path):
    with pytest.raises(DataError, match=r"There is no .*index.json") as error:
        ShardReader(tmp_path)
    assert "musicldm prep shards" in error.value.remedy


def test_readers_cross_processes(work):
    reader = ShardReader(work / "shards")
    here = reader.audio(1, 5, 2000)  # so that the forked child inherits an open file
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).audio(1, 5, 2000), here)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(reader.audio, (1, 5, 2000)), here)
    queue = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(target=lambda: queue.put(reader.audio(1, 5, 2000)))
    child.start()
    np.testing.assert_array_equal(queue.get(), here)
    child.join()


def test_a_track_altered_since_its_manifest_is_refused(work, tmp_path):
    mine = shutil.copytree(work, tmp_path / "work", ignore=shutil.ignore_patterns("shards"))
    path = mine / "audio" / "tracks" / f"{NAMES[0]}.flac"
    samples, rate = soundfile.read(path, dtype="int16")
    samples[1000] += 1
    soundfile.write(path, samples, rate)
    with pytest.raises(DataError, match=rf"{NAMES[0]}\.flac was altered"):
        write(mine, mine / "shards")


def test_beats_of_an_older_version_are_told_with_the_command(work, tmp_path):
    mine = shutil.copytree(work, tmp_path / "work")
    path = mine / "beats" / "beats.jsonl"
    path.write_text(path.read_text().replace('"mean_bpm"', '"tempo_group"'))
    with pytest.raises(DataError, match=rf"or an older version's \({len(NAMES)} are missing\)") as error:
        write(mine, mine / "shards")
    assert "musicldm prep beats" in error.value.remedy


@pytest.mark.parametrize(("folder_name", "command"), [("beats", "prep beats"), ("captions", "prep captions")])
def test_a_track_without_a_row_is_named(work, tmp_path, folder_name, command):
    mine = shutil.copytree(work, tmp_path / "work")
    path = mine / folder_name / f"{folder_name}.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=f"no row for track {NAMES[4]}") as error:
        write(mine, mine / "shards")
    assert command in error.value.remedy
    assert contents(mine / "shards") == contents(work / "shards")


def test_audio_of_another_rate_leaves_nothing_half_written(work, tmp_path):
    mine = shutil.copytree(work, tmp_path / "work")
    shutil.rmtree(mine / "shards")
    soundfile.write(mine / "audio" / "tracks" / f"{NAMES[0]}.flac", np.zeros(1000, dtype=np.int16), 8000)
    with pytest.raises(DataError, match=rf"{NAMES[0]}\.flac is at 8000 Hz"):
        write(mine, mine / "shards")
    assert not (mine / "shards" / "index.json").exists()


def test_the_commands(work, tmp_path):
    mine = shutil.copytree(work, tmp_path / "work", ignore=shutil.ignore_patterns("shards"))
    start = [sys.executable, "-m", "musicldm_cli", "--json", "--work", str(mine), "prep"]
    run = {"capture_output": True, "text": True, "cwd": tmp_path}
    made = subprocess.run([*start, "shards", "-S", "preset=tiny", "-S", "shards.target_megabytes=1"], **run)
    assert json.loads(made.stdout)["tracks"] == 5
    assert contents(mine / "shards") == contents(work / "shards")
    flip(mine / "shards" / "shard-00001.h5", 200_000)
    refused = subprocess.run([*start, "verify"], **run)
    assert refused.returncode == 4
    assert "shard-00001.h5 was altered: track" in json.loads(refused.stdout)["error"]["message"]
