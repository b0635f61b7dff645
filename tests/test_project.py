"""`musicldm init`: a project of one's own, begun, refused, and brought up to this version."""

import csv

import pytest
import yaml

from stages import params
from stages.project import GRAPH, PARAMS
from stages.versions import VERSIONS, VERSIONS_FILE
from tests import DEMO, ROOT


@pytest.fixture
def music(tmp_path):
    """Three of the demo's files and their captions."""
    folder = tmp_path / "my music"
    folder.mkdir()
    with (folder / "words.csv").open("w", newline="", encoding="utf-8") as table:
        rows = csv.writer(table)
        rows.writerow(["path", "caption"])
        for path in sorted(DEMO.glob("flare_*.ogg"))[:3]:
            (folder / path.name).write_bytes(path.read_bytes())
            rows.writerow([path.name, f"A piece called {path.stem}"])
    return folder


def test_a_project_of_ones_own_music(typed, tmp_path, music):
    code, out, _ = typed(tmp_path, "--quiet", "init", "mine", "--music", music, "--captions", music / "words.csv")
    assert code == 0
    mine = tmp_path / "mine"
    assert {line for line in out.split() if line.endswith(".yaml")} == {
        f"mine/{n}" for n in (PARAMS, GRAPH, VERSIONS_FILE)
    }
    assert (mine / GRAPH).read_text() == (ROOT / GRAPH).read_text()
    read = params.load(mine / PARAMS)
    assert (read.preset, read.manifest.source, read.manifest.limit) == ("small", str(music), None)
    assert typed(mine, "prep", "manifest", "-j", "1")[0] == 0
    with (mine / "work/manifest/manifest.csv").open(encoding="utf-8") as table:
        assert len(list(csv.DictReader(table))) == 3


def test_relative_paths_are_meant_from_where_one_stands(typed, tmp_path, music):
    assert (
        typed(tmp_path, "init", "deep/mine", "--music", "my music", "--preset", "tiny", "-S", "vae.train.steps=7")[0]
        == 0
    )
    read = params.load(tmp_path / "deep/mine" / PARAMS)
    assert (read.manifest.source, read.manifest.captions, read.vae.train.steps) == ("../../my music", None, 7)


def test_without_music_the_demo_comes_along(typed, tmp_path):
    assert typed(tmp_path, "init", "demo")[0] == 0
    assert params.load(tmp_path / "demo" / PARAMS).preset == "tiny"
    assert len(list((tmp_path / "demo/data/demo").glob("*.ogg"))) == 108


@pytest.mark.parametrize("words", [("--music", "nowhere"), ("-S", "vae.no=1"), ("--update",)])
def test_nothing_is_written_for_a_mistake(typed, tmp_path, words):
    assert typed(tmp_path, "init", "mine", *words)[0] in (3, 4)
    assert not (tmp_path / "mine").exists()


def test_what_is_there_is_never_overwritten(typed, tmp_path, music):
    (tmp_path / "README.md").write_text("Mine.")
    assert typed(tmp_path, "init", ".", "--music", music)[0] == 0
    assert (tmp_path / "README.md").read_text() == "Mine."
    code, _, err = typed(tmp_path, "init", ".", "--music", music)
    assert code == 4 and "params.yaml is there already" in err


def test_another_versions_results_are_accepted_by_hand(typed, tmp_path, music):
    typed(tmp_path, "init", ".", "--music", music)
    file = tmp_path / VERSIONS_FILE
    file.write_text(yaml.safe_dump(VERSIONS | {"beats": VERSIONS["beats"] + 1}))
    code, _, err = typed(tmp_path, "prep", "manifest", "-j", "1")
    assert code == 3 and "gives other results in: beats" in err and "musicldm init --update ." in err
    code, out, _ = typed(tmp_path, "--json", "init", "--update", ".")
    assert code == 0 and '"changed": ["beats"]' in out
    assert yaml.safe_load(file.read_text()) == VERSIONS
    assert typed(tmp_path, "params", "show")[0] == 0


def test_a_versions_file_that_is_none(typed, tmp_path, music):
    typed(tmp_path, "init", ".", "--music", music)
    (tmp_path / VERSIONS_FILE).write_text("{")
    code, _, err = typed(tmp_path, "params", "show")
    assert code == 3 and "versions.yaml cannot be read" in err


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\x00", b"beats: *none"])
def test_versions_that_cannot_be_read(typed, tmp_path, music, content):
    typed(tmp_path, "init", ".", "--music", music)
    (tmp_path / VERSIONS_FILE).write_bytes(content)
    code, _, err = typed(tmp_path, "prep", "manifest", "-j", "1")
    assert code == 3 and "versions.yaml cannot be read" in err and "musicldm init --update" in err
