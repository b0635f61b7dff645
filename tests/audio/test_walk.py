"""What counts as audio in a folder: links, litter, and music in formats that are not read."""

from pathlib import Path

import pytest

from stages.audio.suffixes import SUFFIXES
from stages.audio.walk import UNREAD_SUFFIXES, find_audio, walk_audio
from stages.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(folder: Path, **options: bool) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in walk_audio(folder, **options).files]


def test_audio_is_found_at_any_depth_in_one_order_and_litter_is_passed_over(tmp_path: Path) -> None:
    audio = ["B.WAV", "a.wav", "a/z.Flac", "b c/d.webm", "b/e.mp3"]
    litter = [
        "._a.wav",
        ".hidden.ogg",
        ".trash/a.wav",
        "__MACOSX/a.wav",
        "__MACOSX/._a.wav",
        ".DS_Store",
        "Thumbs.db",
        "README.txt",
        "a.txt",
        "cover.jpg",
        "list.m3u",
        "wav",
        "a.wav.part",
    ]
    touch(tmp_path, *audio, *litter)
    assert names(tmp_path) == sorted(audio)
    assert names(tmp_path, deep=False) == ["B.WAV", "a.wav"]
    assert not walk_audio(tmp_path).unread and not walk_audio(tmp_path).closed


def test_every_suffix_is_either_read_or_named_as_not_read(tmp_path: Path) -> None:
    assert {".wav", ".w64", ".caf", ".au", ".aifc", ".m4a", ".m4b", ".webm", ".mka", ".mkv", ".wma"} <= set(SUFFIXES)
    assert {".mid", ".xm", ".mpc", ".dsf", ".m4p", ".aax", ".amr", ".cda"} <= UNREAD_SUFFIXES
    assert not UNREAD_SUFFIXES & {*SUFFIXES, ".txt", ".json", ".csv", ".beats"}
    touch(tmp_path, *(f"song{suffix}" for suffix in UNREAD_SUFFIXES), "good.wav", "LOUD.MID")
    walk = walk_audio(tmp_path)
    assert [path.name for path in walk.files] == ["good.wav"]
    assert {path.name for path in walk.unread} == {*(f"song{suffix}" for suffix in UNREAD_SUFFIXES), "LOUD.MID"}
    reason = walk.unread[tmp_path / "LOUD.MID"]
    assert reason.startswith("is in a format that is not read (.mid); known are: .wav, ")


def test_links_are_followed_once_and_one_folder_can_be_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "music/real/a.wav", "other/b.wav", "music/work/audio/c.wav")
    music = tmp_path / "music"
    (music / "again").symlink_to("real")
    (music / "loop").symlink_to("..")
    (music / "elsewhere").symlink_to(tmp_path / "other")
    (music / "lost").symlink_to("nowhere")
    assert names(music) == ["elsewhere/b.wav", "real/a.wav", "work/audio/c.wav"]
    found = walk_audio(music, without=music / "real" / ".." / "work").files
    assert [path.name for path in found] == ["b.wav", "a.wav"]


def test_nothing_to_find_is_one_sentence_that_names_what_is_there_instead(tmp_path: Path) -> None:
    touch(tmp_path, "empty/notes.txt", "scores/a.mid", "scores/b.mid")
    with pytest.raises(DataError, match=r"no audio file below .*empty\.$"):
        find_audio(tmp_path / "empty")
    with pytest.raises(DataError, match=r"2 cannot be read, e\.g\. .*a\.mid is in a format that is not read \(\.mid\)"):
        find_audio(tmp_path / "scores")
    with pytest.raises(DataError, match="gone cannot be opened: No such file"):
        find_audio(tmp_path / "gone")
