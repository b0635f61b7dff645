"""Files are whole or not there, and model folders know when they were altered."""

import json
import os
import signal
import subprocess
import sys

import pytest

from stages import params, store
from stages.errors import DataError, ModelError


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    store.write_text(target, "old")
    with pytest.raises(RuntimeError), store.atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_folder_leaves_the_old_folder(tmp_path):
    target = tmp_path / "model"
    with store.atomic_folder(target) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(RuntimeError), store.atomic_folder(target) as temporary:
        (temporary / "a").write_text("half")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    with store.atomic_folder(target) as temporary:
        (temporary / "b").write_text("new")
    assert [file.name for file in target.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [target]


def test_what_dead_processes_left_is_removed_before_the_work_and_after_it(tmp_path):
    """Before it for its space, after it for what a cluster's worker left that died in this run."""

    def leave():
        for name in ("step-1", ".tmp-step-1-abc", ".old-step-1-abc/step-1", "tracks/.tmp-nested"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / ".tmp-weights").touch()
        (folder / ".old-step-2-abc" / "step-2").mkdir(parents=True)
        (folder / "tracks" / ".tmp-abc.wav").touch()
        (folder / "tracks" / "a.wav").touch()

    def left():
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))

    folder, whole = tmp_path / "run", ["step-1", "step-2", "tracks", "tracks/a.wav"]  # the second is nowhere else
    leave()
    with store.exclusive(folder):
        assert left() == whole
        leave()
    assert left() == whole


KILLED = """
import os, signal, sys
from pathlib import Path
from stages import store

path, moment = Path(sys.argv[1]), sys.argv[2]
replace = Path.replace
renames = []

def counted(self, target):
    if moment == f"before rename {len(renames) + 1}":
        os.kill(os.getpid(), signal.SIGKILL)
    renames.append(self)
    return replace(self, target)

Path.replace = counted
with store.model_folder(path, "vae", {"preset": "new"}) as folder:
    (folder / "weights").write_bytes(bytes(1000))
    if moment == "writing":
        print("writing", flush=True)
        sys.stdin.read()
"""


def writer(path, moment):
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, path, moment], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("moment", ["before rename 1", "before rename 2"])
def test_a_writer_killed_at_a_rename_leaves_a_whole_model_and_no_litter(tmp_path, moment):
    """Between its two renames the model exists as `.old-*` only: whoever reads or writes it next puts it back."""
    folder = tmp_path / "model"
    _seal(tmp_path)
    digest = store.model_digest(folder)
    with writer(folder, moment) as process:
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert folder.exists() == (moment == "before rename 1")
    assert any(path.name.startswith(".tmp-model-") for path in tmp_path.iterdir())
    assert store.model_digest(folder) == digest
    assert store.verify_model(folder) == []
    with store.atomic_folder(tmp_path / "other"):
        pass
    assert any(path.name.startswith(".tmp-model-") for path in tmp_path.iterdir())  # not this writer's to remove
    _seal(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]


def test_a_living_writers_folder_is_not_removed(tmp_path):
    folder = tmp_path / "model"
    with writer(folder, "writing") as process:
        process.stdout.readline()
        _seal(tmp_path)
        assert any(path.name.startswith(".tmp-model-") for path in tmp_path.iterdir())
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert store.model_card(folder)["preset"] == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_in_a_folder_that_was_moved_away_is_found(tmp_path):
    (tmp_path / ".old-manifest-x0_1" / "manifest").mkdir(parents=True)
    (tmp_path / ".old-manifest-x0_1" / "manifest" / "root.json").write_text("{}")
    assert store.read_json(tmp_path / "manifest" / "root.json", "") == {}
    assert [path.name for path in tmp_path.iterdir()] == ["manifest"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_named_and_nothing_is_left(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a tmpfs here")
    try:
        with pytest.raises(DataError, match="is full"):
            store.write_text(small / "big.txt", "x" * 1_000_000)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_forbidden_paths_are_data_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        store.write_text(tmp_path / "file" / "below.txt", "x")


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError):
        store.write_json(tmp_path / "a.json", {"fd": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_jsonl_round_trip_and_bad_line(tmp_path):
    rows = [{"id": "é", "beats": [0.5]}, {"id": "b"}]
    file = tmp_path / "rows.jsonl"
    store.write_jsonl(file, rows)
    assert store.read_jsonl(file, "") == rows
    file.write_text(file.read_text() + "{half")
    with pytest.raises(DataError, match="line 3"):
        store.read_jsonl(file, "again")


def _seal(tmp_path, kind="vae"):
    folder = tmp_path / "model"
    with store.model_folder(folder, kind, {"preset": "tiny"}) as temporary:
        (temporary / "vae").mkdir()
        (temporary / "vae" / "weights").write_bytes(b"12345")
    return folder


def test_a_model_folder_is_sealed_and_verified(tmp_path):
    folder = _seal(tmp_path)
    assert store.verify_model(folder) == []
    assert store.model_card(folder, "vae")["preset"] == "tiny"
    before = store.model_digest(folder)
    (folder / "vae" / "weights").write_bytes(b"12346")
    (folder / "extra").write_text("")
    assert store.verify_model(folder) == ["extra is not part of the model", "vae/weights was altered"]
    (folder / "vae" / "weights").unlink()
    assert "vae/weights is missing" in store.verify_model(folder)
    assert store.model_digest(_seal(tmp_path)) == before


def test_wrong_models_are_refused(tmp_path):
    with pytest.raises(ModelError, match="not a model folder"):
        store.model_card(tmp_path)
    folder = _seal(tmp_path)
    with pytest.raises(ModelError, match="holds a vae model"):
        store.model_card(folder, "clap")
    card = json.loads((folder / store.CARD).read_text())
    (folder / store.CARD).write_text(json.dumps(card | {"schema": 99}))
    with pytest.raises(ModelError, match="schema 99"):
        store.model_card(folder)


def test_a_model_of_another_version_names_the_parameter(tmp_path):
    folder = tmp_path / "model"
    with store.model_folder(folder, "vae", {"params": params.preset("tiny").model_dump(mode="json")}):
        pass
    assert store.model_params(folder) == params.preset("tiny")
    card = json.loads((folder / store.CARD).read_text())
    card["params"]["vae"]["colour"] = "red"
    (folder / store.CARD).write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"does not read \(vae\.colour\)"):
        store.model_params(folder)
    (folder / store.CARD).write_text(json.dumps(card | {"params": None}))
    with pytest.raises(ModelError, match="all of them"):
        store.model_params(folder)


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ([], "holds a list"),
        (None, "holds a NoneType"),
        ({"kind": "vae", "files": {}}, "has schema None"),
        ({"schema": 1, "files": {}}, "malformed at kind"),
        ({"schema": 1, "kind": ["vae"], "files": {}}, "malformed at kind"),
        ({"schema": 1, "kind": "vae"}, "malformed at files"),
        ({"schema": 1, "kind": "vae", "files": ["a"]}, "malformed at files"),
        ({"schema": 1, "kind": "vae", "files": {"a": 1}}, "malformed at files.a"),
        ({"schema": 1, "kind": "vae", "files": {"a": {"bytes": "1", "sha256": ""}}}, r"malformed at files\.a\.bytes"),
        ({"schema": 1, "kind": "vae", "files": {"../a": {"bytes": 1, "sha256": ""}}}, "is not inside the folder"),
        ({"schema": 1, "kind": "vae", "files": {}, "params": [1]}, "malformed at params"),
        ({"schema": 1, "kind": "vae", "files": {}, "few_steps": 4}, "malformed at few_steps"),
    ],
)
def test_a_card_that_lacks_or_mistypes_a_key_is_one_sentence(tmp_path, card, said):
    (tmp_path / store.CARD).write_text(json.dumps(card))
    for read in (store.model_card, store.model_digest, store.verify_model, store.model_params):
        with pytest.raises(ModelError, match=said):
            read(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": 1' + "0" * 5000 + "}", "\xff", " " * 5_000_000, ""])
def test_a_card_that_is_deep_or_long_is_one_sentence(tmp_path, text):
    (tmp_path / store.CARD).write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"cannot be read|has more than 4 MB") as caught:
        store.model_card(tmp_path)
    assert len(caught.value.message.splitlines()) == 1
