"""Where caches go when the home cannot be written."""

import os
from pathlib import Path

import pytest

from stages import caches
from stages.audio import descriptors
from stages.errors import MissingDependencyError


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    """A home that cannot be made, and a temporary folder of its own."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    monkeypatch.setattr(caches.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_home_that_can_be_written_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "yet"))
    caches.install()
    assert caches.cache_home() == tmp_path / "not" / "yet"
    assert list(tmp_path.iterdir()) == []


def test_without_one_a_private_folder_is_taken_again_and_again(no_home):
    caches.install()
    folder = no_home / f"musicldm-{os.getuid()}"
    assert caches.cache_home() == folder
    assert Path(os.environ["MPLCONFIGDIR"]) == folder / "matplotlib"
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["open to others", "a link"])
def test_a_folder_that_others_may_have_made_is_not_taken(no_home, kind):
    """What lies in a cache is run."""
    folder = no_home / f"musicldm-{os.getuid()}"
    if kind == "a link":
        (no_home / "theirs").mkdir()
        folder.symlink_to(no_home / "theirs")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    caches.install()
    assert caches.cache_home() != folder
    assert caches.cache_home().name.startswith("musicldm-")
    assert caches.cache_home().stat().st_mode & 0o777 == 0o700


def test_no_place_at_all_is_said_in_one_sentence(monkeypatch):
    def describe(*_):
        raise RuntimeError("cannot cache function '__o_fold': no locator available for file 'notation.py'")

    monkeypatch.setattr(descriptors, "describe", describe)
    with pytest.raises(MissingDependencyError, match="no folder to keep librosa's compiled functions"):
        descriptors.compile_librosa()
