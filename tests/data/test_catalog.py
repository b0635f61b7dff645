"""The demo set, the check of a manifest, and the recipe for Debian's game music (with programs of our own)."""

import csv
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stages import params
from stages.data import debian_games
from stages.data.catalog import COLLECTIONS, check_manifest, copy_demo, demo_folder
from stages.data.collect import make_manifest
from stages.data.manifest import read_manifest, write_manifest
from stages.errors import DataError, MissingDependencyError

ROOT = Path(__file__).parents[2]


def test_the_demo_set_is_whole_licensed_and_copied_once(tmp_path: Path) -> None:
    rows = list(csv.DictReader((demo_folder() / "attribution.csv").open(encoding="utf-8")))
    assert len(rows) == 108
    assert all(row["caption"] and row["artist"] and row["licence"] for row in rows)
    assert {row["path"] for row in rows} == {path.name for path in demo_folder().glob("*.ogg")}
    copied = copy_demo(tmp_path / "demo")
    assert {path.relative_to(tmp_path / "demo") for path in copied} == {
        path.relative_to(demo_folder()) for path in demo_folder().rglob("*") if path.is_file()
    }
    assert copied[-1].name == "attribution.csv"
    times = [path.stat().st_mtime_ns for path in copied]
    copied[0].unlink()
    copy_demo(tmp_path / "demo")
    assert [path.stat().st_mtime_ns for path in copied][1:] == times[1:]
    copied[0].write_text("mine")
    with pytest.raises(DataError, match="another file"):
        copy_demo(tmp_path / "demo")
    assert copied[0].read_text() == "mine"


def test_the_check_tells_every_kind_of_damage(tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    for number in range(6):
        samples = 0.1 * np.sin(np.arange(16_000) * (0.1 + number / 50))
        soundfile.write(tmp_path / "music" / f"{number}.wav", samples, 8000)
        (tmp_path / "music" / f"{number}.txt").write_text("a tone")
    make_manifest(tmp_path / "music", None, tmp_path / "m", params.Manifest())
    assert check_manifest(tmp_path / "m") == (6, [])
    paths = [tmp_path / "music" / f"{number}.wav" for number in range(6)]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:9000])
    soundfile.write(paths[2], np.zeros(16_000), 8000)
    soundfile.write(paths[3], np.zeros(16_000), 16_000)
    soundfile.write(paths[4], np.zeros(12_000), 8000)
    count, problems = check_manifest(tmp_path / "m", jobs=2)
    assert (count, len(problems)) == (6, 5)
    for problem, path, words in zip(
        problems, paths, ("cannot be opened", "truncated", "other audio", "16000 Hz", "1.50 s"), strict=False
    ):
        assert str(path) in problem
        assert words in problem
    command = [sys.executable, "-m", "musicldm_cli", "--json", "data", "check", "m"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert json.loads(done.stdout)["error"]["message"].startswith("5 problem(s)")
    tracks = read_manifest(tmp_path / "m").tracks[5:]
    write_manifest(tmp_path / "m" / "manifest.csv", tracks)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["tracks"]) == (0, 1)


def test_the_list_of_debian_games_is_sound() -> None:
    rows, free = debian_games.listed("free"), debian_games.listed("cc")
    assert (len(rows), len(free)) == (365, 170)
    assert sum(row.seconds for row in rows) / 3600 == pytest.approx(COLLECTIONS[2].hours, abs=0.05)
    assert sum(row.seconds for row in free) / 3600 == pytest.approx(COLLECTIONS[1].hours, abs=0.05)
    assert len({row.target for row in rows}) == 365
    assert all(row.caption and row.licence and row.title for row in rows)
    assert not any("GPL" in row.licence and "CC" not in row.licence for row in free)
    assert not any(".." in Path(row.target).parts or row.source.startswith("/") for row in rows)
    some = debian_games.listed("cc", hours=0.5)
    assert sum(row.seconds for row in some[:-1]) < 1800 <= sum(row.seconds for row in some)


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """apt-get and dpkg of our own: a package is a folder; some music lies in a zip, as in the real ones."""
    store = tmp_path / "store"
    for row in debian_games.listed("cc"):
        before, _, member = row.source.partition("/unpacked/")
        if member:
            (store / row.package / before).mkdir(parents=True, exist_ok=True)
            name = "public.zip" if row.package == "0ad-data" else "0music.pk3"
            with zipfile.ZipFile(store / row.package / before / name, "a") as archive:
                archive.writestr(member, row.title)
        else:
            path = store / row.package / row.source
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(row.title)
    for package in store.iterdir():
        doc = package / "usr/share/doc" / package.name
        doc.mkdir(parents=True)
        (doc / "copyright").write_text(f"terms of {package.name}")
    programs = {
        "apt-get": f"""import os, pathlib, sys
            package = sys.argv[2]
            if not (pathlib.Path({str(store)!r}) / package).is_dir():
                sys.exit('E: Unable to locate package ' + package)
            open({str(tmp_path / "log")!r}, 'a').write(package + '\\n')
            pathlib.Path(package + '_1_all.deb').write_text(package)""",
        "dpkg": f"""import pathlib, shutil, sys
            shutil.copytree(pathlib.Path({str(store)!r}) / pathlib.Path(sys.argv[2]).read_text(), sys.argv[3])""",
    }
    (tmp_path / "bin").mkdir()
    for name, script in programs.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!{sys.executable}\n" + script.replace("\n            ", "\n"))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return store


def test_fetching_takes_music_and_credits_and_goes_on(debian: Path, tmp_path: Path) -> None:
    made = debian_games.fetch(tmp_path / "games", "cc")
    assert (len(made.tracks), made.missing) == (170, ())
    for row in made.tracks:
        assert (tmp_path / "games" / row.target).read_text() == row.title
    packages = {row.package for row in made.tracks}
    assert {path.name for path in (tmp_path / "games" / "licences").iterdir()} == {f"{p}.copyright" for p in packages}
    rows = list(csv.DictReader((tmp_path / "games" / "attribution.csv").open(encoding="utf-8")))
    assert [row["path"] for row in rows] == [row.target for row in made.tracks]
    assert not list((tmp_path / "games").glob(".tmp-*"))
    gone = tmp_path / "games" / made.tracks[0].target
    gone.unlink()
    (tmp_path / "log").unlink()
    debian_games.fetch(tmp_path / "games", "cc")
    assert gone.is_file()
    assert (tmp_path / "log").read_text().split() == [made.tracks[0].package], "only what is missing is downloaded"


def test_music_whose_archive_this_release_lacks_is_told(debian: Path, tmp_path: Path) -> None:
    shutil.rmtree(debian / "0ad-data/usr/share/games")
    made = debian_games.fetch(tmp_path / "games", "cc")
    assert {row.package for row in made.missing} == {"0ad-data"} and len(made.missing) == 61


def test_a_track_that_this_release_lacks_is_told(debian: Path, tmp_path: Path) -> None:
    row = debian_games.listed("cc")[0]
    (debian / row.package / row.source).unlink()
    made = debian_games.fetch(tmp_path / "games", "cc", hours=0.2)
    assert made.missing == (row,)
    assert row.target not in (tmp_path / "games" / "attribution.csv").read_text(encoding="utf-8")


def test_without_package_lists_or_without_apt_the_remedy_is_named(
    debian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (debian / debian_games.listed("cc")[0].package).rename(debian / "elsewhere")
    with pytest.raises(DataError, match="does not know") as caught:
        debian_games.fetch(tmp_path / "games", "cc")
    assert "apt-get update" in caught.value.remedy
    assert not (tmp_path / "games" / "attribution.csv").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="apt-get and dpkg"):
        debian_games.fetch(tmp_path / "none", "cc")
    assert not (tmp_path / "none").exists()
