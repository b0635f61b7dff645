"""Latents: which windows, what is stored of them, and how they are read back."""

import json
import pickle
import shutil

import h5py
import numpy as np
import pytest
import torch

from stages.audio.mel import clip_mel
from stages.clap.model import load_clap
from stages.data.shards import ShardReader
from stages.errors import DataError
from stages.ldm.latents import (
    LatentDataset,
    LatentReader,
    choose_windows,
    prepare,
    read_clip,
    sample_posterior,
)
from stages.store import exclusive, sha256, write_json
from stages.vae.model import load_vae
from tests.ldm.toy import toy_params


def test_windows_are_downbeats_and_a_grid(project):
    reader = ShardReader(project.shards)
    number = next(i for i, track in enumerate(reader.tracks) if track.id == "click-a")
    windows = choose_windows(number, reader.tracks[number], reader.downbeats(number), project.params)
    # 9 s, clips of 2.56 s: starts up to 6.44 s; downbeats at 0.3 + 2 n; the grid at 1.28 n
    assert [w.start / 16_000 for w in windows if w.on_downbeat] == [0.3, 2.3, 4.3, 6.3]
    assert [w.start / 16_000 for w in windows if w.on_grid] == [0, 1.28, 2.56, 3.84, 5.12, 6.4]
    assert all(w.on_grid or w.on_downbeat for w in windows)
    assert set(windows.track) == {number}
    few = choose_windows(number, reader.tracks[number], np.arange(0, 9, 0.5), toy_params_with_three_downbeats())
    assert [w.start / 16_000 for w in few if w.on_downbeat] == [0, 3, 6]
    assert [w.on_grid for w in few if w.start == 0] == [True]  # a downbeat that lies on the grid is of both


def toy_params_with_three_downbeats():
    params = toy_params()
    return params.model_copy(update={"latents": params.latents.model_copy(update={"downbeats_per_track": 3})})


def test_what_is_stored_is_what_vae_and_clap_say(project):
    latents, shards = LatentReader(project.latents), ShardReader(project.shards)
    vae, clap = load_vae(project.vae), load_clap(project.clap)
    assert latents.scale == vae.scale == 1.5
    assert {shards.tracks[w.track].split for w in latents.windows} == {"train", "valid"}
    assert len(latents) == project.made["windows"] == 10 * 6 + 19  # on the grid, and downbeats
    row = next(i for i, w in enumerate(latents.windows) if w.on_downbeat)
    window = latents.windows[row]
    clip = torch.from_numpy(read_clip(shards, window.track, window.start, project.params))[None]
    assert float(clip.abs().max()) == pytest.approx(0.5)
    assert abs(float(clip.mean())) < 1e-6
    for ours, theirs in zip(latents.posterior(row), vae.encode(clip_mel(project.params)(clip)), strict=True):
        assert ours.shape == project.params.latent_shape
        torch.testing.assert_close(ours, theirs[0].half().float(), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(latents.embedding(row, "audio"), clap.embed_audio(clip, 16_000)[0], atol=1e-5, rtol=0)
    caption = shards.tracks[window.track].caption
    torch.testing.assert_close(latents.embedding(row, "text"), clap.embed_text([caption])[0], atol=1e-5, rtol=0)


def test_dataset_gives_one_splits_grid(project):
    latents, shards = LatentReader(project.latents), ShardReader(project.shards)
    train = LatentDataset(latents, shards.tracks, "train", "audio")
    valid = LatentDataset(latents, shards.tracks, "valid", "text")
    assert len(train) + len(valid) == sum(w.on_grid for w in latents.windows) == 10 * 6
    assert all(latents.windows[row].on_grid for row in (*train.rows, *valid.rows))
    item = pickle.loads(pickle.dumps(valid))[0, 123]  # as a loader's worker gets it
    assert shards.tracks[item["track"]].id == "click-valid"
    assert torch.equal(item["condition"], latents.embedding(valid.rows[0], "text"))


def test_by_track_an_item_is_a_track_and_the_seed_its_window(project):
    latents, shards = LatentReader(project.latents), ShardReader(project.shards)
    train = LatentDataset(latents, shards.tracks, "train", "audio", by_track=True)
    assert len(train) == 9
    for index in range(9):
        items = [train[index, seed] for seed in range(12)]
        assert len({item["track"] for item in items}) == 1
        rows = [row for row in train.rows if latents.windows[row].track == items[0]["track"]]
        assert [bool(torch.equal(item["mean"], latents.posterior(rows[seed % 6])[0]))
                for seed, item in enumerate(items)] == [True] * 12  # fmt: skip


def test_parts_of_any_size_are_found_by_their_windows(project, tmp_path):
    """Also one that holds none, as a shard of the test split makes it."""
    latents = LatentReader(project.latents)
    copy, (part,) = tmp_path / "latents", latents.index["parts"]
    shutil.copytree(project.latents, copy)
    path = copy / "latents-00001.h5"
    with h5py.File(path, "w") as none:
        none.attrs["key"] = "none"
    empty = {"file": path.name, "bytes": path.stat().st_size, "key": "none", "windows": 0}
    np.save(copy / "windows.npy", np.concatenate([latents.windows, latents.windows]))
    digest = {"windows_sha256": sha256(copy / "windows.npy")}
    write_json(copy / "index.json", latents.index | digest | {"parts": [empty, part, empty, part]})
    reader = LatentReader(copy)
    assert len(reader) == 2 * len(latents)
    for row in (0, 7, len(latents) - 1):
        assert torch.equal(reader.posterior(row)[0], latents.posterior(row)[0])
        assert torch.equal(reader.posterior(row + len(latents))[0], latents.posterior(row)[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda path, _: path.unlink(),
        lambda path, _: path.write_bytes(path.read_bytes()[:-1]),
        lambda path, _: np.save(path, np.zeros(3)),
        lambda path, windows: np.save(path, windows[:-1]),
        lambda path, windows: np.save(path, windows.astype([(name, "i8") for name in windows.dtype.names])),
        lambda path, _: np.save(path, np.array([{}], dtype=object), allow_pickle=True),
    ],
)
@pytest.mark.parametrize("lies", [False, True])
def test_a_list_of_windows_that_is_not_the_indexs_is_refused(project, tmp_path, change, lies):
    """Also where the index was altered to name it; and it is never unpickled."""
    copy = tmp_path / "latents"
    shutil.copytree(project.latents, copy)
    change(copy / "windows.npy", LatentReader(project.latents).windows)
    if lies and (copy / "windows.npy").exists():
        index = json.loads((copy / "index.json").read_text())
        write_json(copy / "index.json", index | {"windows_sha256": sha256(copy / "windows.npy")})
    with pytest.raises(DataError, match=r"windows\.npy cannot be read") as caught:
        LatentReader(copy)
    assert "musicldm prep latents" in caught.value.remedy


def test_posterior_samples_have_its_moments():
    mean, logvar = torch.full((20_000,), 2.0), torch.full((20_000,), float(np.log(0.25)))
    z = sample_posterior(mean, logvar, torch.randn(20_000, generator=torch.Generator().manual_seed(0)), 3.0)
    assert float(z.mean()) == pytest.approx(6.0, abs=0.05)
    assert float(z.std()) == pytest.approx(1.5, abs=0.05)


def test_parts_are_kept_made_again_and_guarded(project, tmp_path):
    copy = tmp_path / "latents"
    shutil.copytree(project.latents, copy)
    part = copy / "latents-00000.h5"
    before = sha256(part)

    def again():
        return prepare(project.params, project.shards, project.vae, project.clap, copy)

    assert again()["written"] == 0
    part.unlink()
    with pytest.raises(DataError, match="missing"):
        LatentReader(copy)
    assert again()["written"] == 1
    assert sha256(part) == before  # equal inputs, equal bytes
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(bytes(data))
    reader = LatentReader(copy)
    with pytest.raises(DataError, match="cannot be read"):
        for row in range(len(reader)):
            reader.posterior(row)
            reader.embedding(row, "audio")
            reader.embedding(row, "text")


def test_latents_of_other_models_are_refused(project):
    reader, shards = LatentReader(project.latents), ShardReader(project.shards)
    reader.check(shards, project.vae, project.clap, project.params)
    with pytest.raises(DataError, match="its vae was"):
        reader.check(shards, project.vocoder, project.clap, project.params)


@pytest.mark.parametrize(("name", "said"), [("mean", "lies in other files"), ("logvar", "is a link to another place")])
def test_a_part_that_points_elsewhere_is_refused(project, tmp_path, name, said):
    folder = shutil.copytree(project.latents, tmp_path / "latents")
    path = folder / "latents-00000.h5"
    with h5py.File(path, "a") as file:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        if name == "mean":
            file.create_dataset(name, shape, dtype, external=[("secret.bin", 0, h5py.h5f.UNLIMITED)])
        else:
            file[name] = h5py.ExternalLink("secret.h5", f"/{name}")
    index = json.loads((folder / "index.json").read_text())
    index["parts"][0]["bytes"] = path.stat().st_size
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=said):
        LatentReader(folder).posterior(0)


def test_an_index_that_names_files_elsewhere_or_lacks_a_key_is_refused(project, tmp_path):
    folder = shutil.copytree(project.latents, tmp_path / "latents")
    index = json.loads((folder / "index.json").read_text())
    part = index["parts"][0]
    for changed, said in (
        ({"parts": [part | {"file": "../latents/latents-00000.h5"}]}, "names a file"),
        ({"parts": [{key: part[key] for key in part if key != "bytes"}]}, "lacks or mistypes a value: 'bytes'"),
        ({"parts": 3}, "lacks or mistypes"),
        ({"scale": None}, "lacks or mistypes"),
    ):
        (folder / "index.json").write_text(json.dumps(index | changed))
        with pytest.raises(DataError, match=said):
            LatentReader(folder)


def test_two_preparations_at_once_are_refused(project):
    with exclusive(project.latents), pytest.raises(DataError, match="Another process is at work in"):
        prepare(project.params, project.shards, project.vae, project.clap, project.latents)
