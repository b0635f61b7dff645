"""The catalogue: captions from everywhere, whole artists in one split, nothing outside the folder."""

import csv
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import mutagen.flac
import mutagen.id3
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import params
from stages.audio.io import SUFFIXES
from stages.data import splits, tables
from stages.data.collect import Catalogue, Duplicate, make_manifest, track_id
from stages.data.manifest import read_manifest
from stages.errors import DataError, MissingDependencyError

DEMO = Path(__file__).parents[2] / "data" / "demo"
SETTINGS = params.Manifest()


def tone(path: Path, hertz: float = 440.0, seconds: float = 1.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 10_000 * np.sin(2 * np.pi * hertz * np.arange(round(8000 * seconds)) / 8000)
    soundfile.write(path, wave.astype(np.int16), 8000)
    return path


def catalogue(source: Path, captions: Path | None = None, **options: Any) -> Catalogue:
    settings = options.pop("settings", SETTINGS)
    return make_manifest(source, captions, source.parent / "out", settings, jobs=2, **options)


def captions_of(made: Catalogue) -> dict[str, str]:
    return {track.path: track.caption for track in made.tracks}


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """Three tones with awkward names."""
    for number, name in enumerate(("one.wav", "zwei, ü.flac", "sub/three.wav")):
        tone(tmp_path / "music" / name, 300 + 50 * number)
    return tmp_path / "music"


ROWS = [("one.wav", "a slow\npiano, alone"), ("zwei, ü.flac", "Überall “laut”"), ("sub/three.wav", "drums")]
CLEAN = {path: " ".join(caption.split()) for path, caption in ROWS}


def table_text(suffix: str, path: str = "path", caption: str = "caption") -> str:
    if suffix in (".csv", ".tsv"):
        cells = [[path, caption], *map(list, ROWS)]
        separator = "," if suffix == ".csv" else "\t"
        return "".join(separator.join(f'"{cell}"' for cell in row) + "\r\n" for row in cells)
    rows = [{path: a, caption: b} for a, b in ROWS]
    return json.dumps(rows) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_kind_of_table_gives_the_same_captions(music: Path, suffix: str, encoding: str) -> None:
    table = music.parent / f"t{suffix}"
    table.write_bytes(table_text(suffix).encode(encoding))
    assert captions_of(catalogue(music, table)) == CLEAN


def test_a_csv_with_semicolons_is_read(music: Path) -> None:
    table = music.parent / "t.csv"
    table.write_text("\ufeff" + "".join(f'"{a}";"{b}"\r\n' for a, b in [("path", "caption"), *ROWS]), encoding="utf-8")
    assert captions_of(catalogue(music, table)) == CLEAN


def test_columns_are_mapped_by_option_and_named_when_missing(music: Path) -> None:
    table = music.parent / "t.csv"
    table.write_text(table_text(".csv", "track", "words"), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        catalogue(music, table)
    assert "track, words" in caught.value.message
    assert "--column path=NAME --column caption=NAME" in caught.value.remedy
    assert not (music.parent / "out").exists()
    made = catalogue(music, table, columns={"path": "track", "caption": "words"})
    assert captions_of(made) == CLEAN
    made = catalogue(music, table, settings=params.Manifest(columns={"path": "track", "caption": "words"}))
    assert captions_of(made) == CLEAN


def test_usual_names_of_columns_are_taken(music: Path) -> None:
    table = music.parent / "t.csv"
    table.write_text(table_text(".csv", "File Name", "Description"), encoding="utf-8")
    assert captions_of(catalogue(music, table)) == CLEAN
    table.write_text(table_text(".csv", "location", "caption").replace("\r", ",text\r", 1), encoding="utf-8")
    assert captions_of(catalogue(music, table)) == CLEAN, "a column of our own name goes first"
    table.write_text("path,text,prompt\none.wav,a,b\n")
    made = catalogue(music, table, columns={"caption": "prompt"})
    assert captions_of(made) == {"one.wav": "b"}


def test_a_table_in_windows_1252_is_read_and_said_so(music: Path) -> None:
    table = music.parent / "T.CSV"
    table.write_bytes("path,caption\none.wav,Café\n".encode("cp1252"))
    made = catalogue(music, table)
    assert captions_of(made) == {"one.wav": "Café"}
    assert made.notes[:1] == (f"{table} is not UTF-8; it was read as Windows-1252, where line 2 reads: one.wav,Café",)
    (music / "one.txt").write_bytes("Café".encode("cp1252"))
    (music / "sub" / "three.txt").write_text("drums")
    assert "Windows-1252" in {item.path: item.reason for item in catalogue(music).rejected}["one.wav"]


def test_a_table_is_found_in_any_letter_case(music: Path) -> None:
    (music / "Captions.CSV").write_text(table_text(".csv"), encoding="utf-8")
    assert captions_of(catalogue(music)) == CLEAN


FILES = [
    "x/01 Intro.wav",
    "y/01 Intro.wav",
    "y/song2.wav",
    "conv.wav",
    "A.wav",
    "a.wav",
    "e\u0301te.flac",
    "01. Dawn.mp3",
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("x/01 Intro.wav", "x/01 Intro.wav"),
     ("./x//01 Intro.wav", "x/01 Intro.wav"),
     ("C:\\Users\\me\\x\\01 Intro.wav", "x/01 Intro.wav"),
     ("\\\\nas\\music\\Y\\01 INTRO.WAV", "y/01 Intro.wav"),
     ("..\\y\\01 intro.mp3", "y/01 Intro.wav"),
     ("D:\\m\\y\\SONG2.WAV", "y/song2.wav"),
     ("z/SONG2.flac", "y/song2.wav"),
     ("/home/me/conv.mp3", "conv.wav"),
     ("conv", "conv.wav"),
     (" conv.wav ", "conv.wav"),
     ("file:///C:/Music/x/01%20Intro.wav", "x/01 Intro.wav"),
     ("file:/home/me/y/01%20Intro.wav", "y/01 Intro.wav"),
     ("https://example.org/y/song2.wav?raw=1#top", "y/song2.wav"),
     ("E:\\A.wav", "A.wav"),
     ("E:\\a.wav", "a.wav"),
     ("/mnt/\u00e9te.flac", "e\u0301te.flac"),
     ("01. dawn", "01. Dawn.mp3"),
     ("/z/" * 50_000 + "conv.wav", "conv.wav")],
)  # fmt: skip
def test_a_path_of_another_machine_means_the_file_with_its_longest_end(wanted: str, found: str) -> None:
    assert tables.Lookup(Path("/music"), Path("/lists/t.csv"), FILES).find(wanted).path == found


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [("C:\\z\\01 Intro.wav", "two files are called 01 Intro.wav: x/01 Intro.wav, y/01 Intro.wav"),
     ("intro.wav", "is no audio file of the folder"),
     ("01", "is no audio file of the folder"),
     ("A.mp3", "two files are called A.mp3: A.wav, a.wav"),
     (" ", "has no path"),
     ("../../etc/passwd", "is no audio file of the folder")],
)  # fmt: skip
def test_a_path_that_could_be_two_files_or_none_says_so(wanted: str, reason: str) -> None:
    found = tables.Lookup(Path("/music"), Path("/lists/t.csv"), FILES).find(wanted)
    assert found.path == "" and reason in found.reason


def test_a_guess_never_takes_a_file_from_the_row_that_names_it(music: Path) -> None:
    table = music.parent / "t.json"
    table.write_text(json.dumps({"one.mp3": "guessed", "C:\\ONE.WAV": "nearer", "one.wav": "sure"}))
    made = catalogue(music, table)
    assert captions_of(made) == {"one.wav": "sure"}
    again = [item.path for item in made.rejected if "again" in item.reason]
    assert again == ["C:\\ONE.WAV", "one.mp3"]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [("one.txt", "a\0b", "the caption holds a NUL character"),
     ("one.txt", "x" * 1_200_000, "the caption has 1,200,000 characters"),
     ("one.json", '{"caption": "\\udc00"}', "the caption holds half a character"),
     ("one.json", "[" * 50_000, "is not JSON: nested too deeply"),
     ("one.json", '{"text": "a", "prompt": "b"}', "2 that may be it: text, prompt")],
)  # fmt: skip
def test_a_sidecar_that_cannot_be_used_is_told(music: Path, name: str, text: str, reason: str) -> None:
    (music / name).write_text(text)
    (music / "sub" / "three.json").write_text('{"description": "drums", "performer": "P"}')
    made = catalogue(music)
    assert [(track.path, track.caption, track.artist) for track in made.tracks] == [("sub/three.wav", "drums", "P")]
    assert reason in {item.path: item.reason for item in made.rejected}["one.wav"]


def test_what_a_tag_says_is_bounded_too(music: Path) -> None:
    tagged = mutagen.flac.FLAC(music / "zwei, ü.flac")
    tagged["comment"] = "x" * tables.TEXT_LIMIT
    tagged["title"] = "T"
    tagged.save()
    (music / "one.txt").write_text("x" * tables.TEXT_LIMIT)
    made = catalogue(music)
    assert [track.path for track in read_manifest(made.folder).tracks] == ["one.wav"], "what is written is read again"
    assert "its caption has 100,003 characters" in {item.path: item.reason for item in made.rejected}["zwei, ü.flac"]


def test_parquet_needs_pyarrow(music: Path) -> None:
    (music.parent / "t.parquet").write_bytes(b"PAR1")
    try:
        from pyarrow import parquet, table
    except ImportError:
        with pytest.raises(MissingDependencyError, match="pyarrow"):
            catalogue(music, music.parent / "t.parquet")
        return
    with pytest.raises(DataError, match="cannot be read"):
        catalogue(music, music.parent / "t.parquet")
    parquet.write_table(table({"path": [a for a, _ in ROWS], "caption": [b for _, b in ROWS]}),
                        music.parent / "t.parquet")  # fmt: skip
    assert captions_of(catalogue(music, music.parent / "t.parquet")) == CLEAN


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [("a.csv", "path,caption\none.wav,slow, sad piano\n", "line 2 has 3 cells"),
     ("b.csv", 'path,caption\none.wav,"open\n', "malformed"),
     ("c.json", "[1, 2]", "must hold objects"),
     ("d.jsonl", '{"path": "one.wav", "caption": "a"}\n{', "line 2 is not JSON"),
     ("e.txt", "x", "no caption table"),
     ("f.csv", "", "no column `path` and `caption`; it has none"),
     ("g.csv", "path|caption\none.wav|a\n", "it has path|caption"),
     ("h.json", "[" * 5000, "not JSON"),
     ("i.csv", "path,text,Description\none.wav,a,b\n", "no column `caption`, but 2 that may be it: text, Description"),
     ("j.csv", "path,caption,artist\none.wav,a,b\none.wav,a,b\0c\n", "line 3: the artist holds a NUL character"),
     ("k.json", '[{"path": "one.wav", "caption": "a\\u0000b"}]', "row 1: the caption holds a NUL"),
     ("l.jsonl", '{"path": "one.wav", "caption": "\\ud83d"}', "line 1: the caption holds half a character"),
     ("m.tsv", "path\tcaption\none.wav\t" + "x" * 1_200_000, "line 2: the caption has 1,200,000 characters"),
     ("n.json", '[{"path": "one.wav", "caption": {"en": "a"}}]', "row 1: the caption is an object"),
     ("o.json", '[{"path": ["one.wav", {}], "caption": "a"}]', "row 1: the path is an object")],
)  # fmt: skip
def test_a_malformed_table_is_one_sentence(music: Path, name: str, text: str, words: str) -> None:
    table = music.parent / name
    table.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        catalogue(music, table)
    assert words in caught.value.message
    assert str(table) in caught.value.message


def test_table_then_sidecar_then_tags_then_rejection(tmp_path: Path) -> None:
    source = tmp_path / "music"
    for number, name in enumerate(("listed.wav", "text.wav", "json.wav", "tagged.flac", "mute.wav")):
        tone(source / name, 300 + 10 * number)
    (source / "captions.csv").write_text("path,caption,licence\nlisted,from the table,CC-BY\ngone.wav,no file\n")
    for stem in ("listed", "text"):
        (source / f"{stem}.txt").write_text("\ufefffrom\r\nthe text", encoding="utf-8")
    (source / "json.json").write_text('{"caption": "from json", "artist": "J"}')
    tagged = mutagen.flac.FLAC(source / "tagged.flac")
    tagged.update({"title": "Dawn", "artist": "Somebody", "genre": "ambient", "comment": "very slow"})
    tagged.save()
    mp3 = mutagen.id3.ID3()
    mp3.add(mutagen.id3.TIT2(text="Dusk"))
    mp3.add(mutagen.id3.COMM(text="slow as well"))
    mp3.save(tone(source / "tagged.mp3", 800))
    made = catalogue(source)
    assert captions_of(made) == {
        "tagged.mp3": "Dusk, slow as well",
        "listed.wav": "from the table",
        "text.wav": "from the text",
        "json.wav": "from json",
        "tagged.flac": "Dawn by Somebody, ambient, very slow",
    }
    assert {track.path: (track.artist, track.licence) for track in made.tracks}["listed.wav"] == ("", "CC-BY")
    assert {track.path: track.artist for track in made.tracks}["tagged.flac"] == "Somebody"
    rejected = {row["path"]: row["reason"] for row in csv.DictReader((tmp_path / "out" / "rejected.csv").open())}
    assert set(rejected) == {"mute.wav", "gone.wav"}
    assert "no caption" in rejected["mute.wav"]


def test_bad_files_are_listed_and_the_rest_is_used(music: Path) -> None:
    (music / "cut.wav").write_bytes((music / "one.wav").read_bytes()[:9000])
    (music / "empty.mp3").touch()
    (music / "folder.wav").mkdir()
    (music / "loop.wav").symlink_to("loop.wav")
    (music / "again").symlink_to(music)
    (music / "endless").symlink_to("endless/deeper")
    tone(music / "short.wav", seconds=0.5)
    names = [*(a for a, _ in ROWS), "cut.wav", "empty.mp3", "loop.wav", "short.wav", "one.wav"]
    table = music.parent / "t.json"
    table.write_text(json.dumps([{"path": name, "caption": "c"} for name in names]))
    made = catalogue(music, table)
    assert sorted(captions_of(made)) == sorted(CLEAN)
    reasons = {item.path: item.reason for item in made.rejected}
    assert set(reasons) == {"cut.wav", "empty.mp3", "loop.wav", "short.wav", "one.wav"}
    assert reasons["cut.wav"].startswith("is truncated")
    assert "again" in reasons["one.wav"]
    before = (music.parent / "out" / "manifest.csv").read_bytes()
    with pytest.raises(DataError, match="5 file"):
        catalogue(music, table, strict=True)
    assert (music.parent / "out" / "manifest.csv").read_bytes() == before


def test_strange_names_survive_the_round_trip(tmp_path: Path) -> None:
    names = ["new\nline.wav", 'quo"te, comma.wav', "🎵.wav", "two  spaces.wav", "é.wav", "A.wav", "a.wav",
             "b" * 251 + ".wav"]  # fmt: skip
    for number, name in enumerate(names):
        tone(tmp_path / "music" / name, 300 + 20 * number)
    (tmp_path / "music" / "captions.json").write_text(json.dumps(dict.fromkeys(names, "x")))
    made = catalogue(tmp_path / "music")
    found = read_manifest(tmp_path / "out")
    assert found.tracks == made.tracks
    assert {track.path for track in found.tracks} == set(names)
    assert len({track.id for track in found.tracks}) == len(names)
    assert all(found.audio_path(track).is_file() for track in found.tracks)


def test_nothing_to_use_is_one_sentence_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.wav").write_text("no sound")
    (tmp_path / "bad" / "a.txt").write_text("a caption")
    (tmp_path / "file").touch()
    for name, words in (("empty", "no audio file"), ("bad", "None of the 1"), ("gone", "does not exist"),
                        ("file", "not a folder")):  # fmt: skip
        with pytest.raises(DataError, match=words):
            catalogue(tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_copies_of_a_recording_share_a_split_across_artists(tmp_path: Path) -> None:
    source = tmp_path / "music"
    rows = []
    for number in range(12):
        tone(source / f"{number}.wav", 200 + 10 * number)
        rows.append({"path": f"{number}.wav", "caption": "c", "artist": f"artist {number}"})
    tone(source / "copy.flac", 200)
    tone(source / "copy2.flac", 210)
    rows += [{"path": "copy.flac", "caption": "c", "artist": "artist 1"},
             {"path": "copy2.flac", "caption": "c", "artist": "thief"}]  # fmt: skip
    (source / "captions.json").write_text(json.dumps(rows))
    for seed in range(8):
        made = catalogue(source, settings=params.Manifest(seed=seed, valid_share=0.3, test_share=0.3))
        split = {track.path: track.split for track in made.tracks}
        assert split["0.wav"] == split["copy.flac"] == split["1.wav"] == split["copy2.flac"]
        assert made.duplicates == (Duplicate("copy.flac", "0.wav", 1.0), Duplicate("copy2.flac", "1.wav", 1.0))
        recording = {track.path: track.recording for track in made.tracks}
        assert recording["0.wav"] == recording["copy.flac"] != recording["1.wav"] == recording["copy2.flac"]
        assert recording["2.wav"] == ""


names = st.text("abcdefgh", min_size=1, max_size=3)
sizes_of_groups = st.dictionaries(names, st.integers(1, 12), min_size=1, max_size=9)


@given(sizes=sizes_of_groups, valid=st.floats(0.01, 0.45), test=st.floats(0.01, 0.45), seed=st.integers(0, 99))
def test_splits_are_whole_full_and_close(sizes: dict[str, int], valid: float, test: float, seed: int) -> None:
    found = splits.divide(sizes, valid, test, seed)
    assert found.keys() == sizes.keys()
    assert found == splits.divide(dict(reversed(sizes.items())), valid, test, seed)
    count = Counter(found.values())
    assert len(count) == min(3, len(sizes))
    assert count["train"] > 0
    if len(sizes) >= 3:  # no other choice of groups for `test` is closer, as all of them tried shows
        groups, target = sorted(sizes), test * sum(sizes.values())
        sums = [sum(sizes[g] for i, g in enumerate(groups) if mask >> i & 1) for mask in range(1, 1 << len(groups))
                if mask.bit_count() <= len(groups) - 2]  # fmt: skip
        got = sum(sizes[group] for group in groups if found[group] == "test")
        assert abs(got - target) <= min(abs(total - target) for total in sums) + 0.5


def test_a_share_of_zero_leaves_the_split_empty_and_large_collections_are_quick() -> None:
    assert set(splits.divide(dict.fromkeys("abc", 1), 0.0, 0.3, 0).values()) == {"train", "test"}
    sizes = {str(number): 1 + number % 20 for number in range(30_000)}
    found = splits.divide(sizes, 0.05, 0.1, 0)
    total = sum(sizes.values())
    for split, share in (("valid", 0.05), ("test", 0.1)):
        assert sum(sizes[group] for group in found if found[group] == split) == pytest.approx(share * total, abs=1)


@given(groups=st.lists(st.sampled_from("abcde"), min_size=1, max_size=40), seed=st.integers(0, 9))
def test_a_drawn_beginning_is_spread_over_the_groups(groups: list[str], seed: int) -> None:
    order = splits.spread(range(len(groups)), groups, seed)
    assert sorted(order) == list(range(len(groups)))
    distinct = len(set(groups))
    assert len({groups[i] for i in order[:distinct]}) == distinct


def test_the_demo_collection_and_its_limit(tmp_path: Path) -> None:
    settings = params.Manifest(limit=12, valid_share=0.1, test_share=0.2, seed=3)
    made = make_manifest(DEMO, None, tmp_path / "a", settings)
    again = make_manifest(DEMO, DEMO / "attribution.csv", tmp_path / "b", settings, jobs=1)
    assert made.tracks == again.tracks
    assert len(made.tracks) == 12
    assert not made.rejected
    rows = {row["path"]: row for row in csv.DictReader((DEMO / "attribution.csv").open(encoding="utf-8"))}
    assert all(track.caption == rows[track.path]["caption"] and track.licence for track in made.tracks)
    split_of = {track.artist: track.split for track in made.tracks}
    assert all(split_of[track.artist] == track.split for track in made.tracks)
    assert set(split_of.values()) == {"train", "valid", "test"}
    assert len(split_of) >= 8, "the draw is spread over artists"
    other = make_manifest(DEMO, None, tmp_path / "c", settings.model_copy(update={"seed": 4}))
    assert other.tracks != made.tracks


def test_music_that_is_not_read_is_named_with_and_without_a_table(music: Path) -> None:
    for name in ("score.mid", "sub/live.mpc", "._one.wav", "notes.odt"):
        (music / name).write_bytes(b"MThd")
    (music / os.fsdecode(b"ex\xe9rcice.mod")).touch()
    table = music.parent / "t.json"
    table.write_text(json.dumps([{"path": name, "caption": "c"} for name in (*CLEAN, "score.mid", "notes.odt", "no")]))
    for captions in (table, None):
        (music / "one.txt").write_text("a caption")
        made = catalogue(music, captions)
        reasons = {item.path: item.reason for item in made.rejected}
        assert reasons["score.mid"].startswith("is in a format that is not read (.mid); known are: .wav, ")
        assert reasons["sub/live.mpc"].startswith("is in a format that is not read (.mpc)")
        assert len(reasons) == len(made.rejected), "each is named once"
        if captions is not None:
            assert set(reasons) == {"score.mid", "sub/live.mpc", "ex\\xe9rcice.mod", "notes.odt", "no"}
            assert reasons["notes.odt"].startswith("is in a format that is not read (.odt)")
            assert "no audio file of the folder" in reasons["no"]


def test_what_a_limit_leaves_out_is_listed_and_is_not_rejected(music: Path) -> None:
    for stem in ("one", "zwei, ü", "sub/three"):
        (music / f"{stem}.txt").write_text("a caption")
    made = catalogue(music, settings=params.Manifest(limit=2), strict=True)
    assert len(made.tracks) == 2 and len(made.left_out) == 1 and not made.rejected
    rows = list(csv.DictReader((music.parent / "out" / "rejected.csv").open(encoding="utf-8")))
    assert rows == [{"path": made.left_out[0], "reason": "is left out by manifest.limit=2"}]
    assert {track.path for track in made.tracks} | {made.left_out[0]} == set(CLEAN)


def test_results_below_the_music_are_no_music(music: Path) -> None:
    (music / "captions.json").write_text(json.dumps(CLEAN))
    tone(music / "work" / "audio" / "one.wav")
    assert len(catalogue(music, results=music / "work").rejected) == 0
    assert [item.path for item in catalogue(music).rejected] == ["work/audio/one.wav"]


def test_the_commonest_reasons_come_first(music: Path) -> None:
    (music / "captions.json").write_text(json.dumps({**CLEAN, "gone": "c"}))
    for number in range(3):
        (music / f"{number}.mid").touch()
    tone(music / "mute.wav")
    reasons = catalogue(music).reasons(2)
    assert [(count, first.path) for count, first in reasons] == [(3, "0.mid"), (1, "gone")]


def test_the_rule_of_the_splits_is_in_the_manifest(music: Path) -> None:
    (music / "captions.json").write_text(
        json.dumps([{"path": p, "caption": c, "artist": "Me"} for p, c in CLEAN.items()])
    )
    made = catalogue(music)
    about = json.loads((music.parent / "out" / "manifest.json").read_text())
    assert about["split_by"] == made.division.by == "album"
    assert about["notes"] == made.division.notes
    assert set(made.split_sizes.values()) == {1}


HEADER = "id,path,caption,title,artist,album,licence,split,seconds,sample_rate,sha256\n"


@pytest.mark.parametrize(
    ("row", "words"),
    [("a,../../etc/passwd,c,,,,,train,1,16000,x", "line 2.*leaves"),
     ("a,/etc/passwd,c,,,,,train,1,16000,x", "line 2.*leaves"),
     ("a,b/../../c.wav,c,,,,,train,1,16000,x", "line 2.*leaves"),
     ("../a,a.wav,c,,,,,train,1,16000,x", "line 2.*no id"),
     ("a,a.wav,c,,,,,dev,1,16000,x", "line 2.*split"),
     ("a,a.wav,c,,,,,train,nan,16000,x", "line 2.*positive"),
     ("a,a.wav,c,,,,,train,long,16000,x", "line 2.*long"),
     ("a,a.wav,c,,,,,train,1,16000", "line 2.*cells"),
     ("a,a.wav,c,,,,,train,1,16000,x,y", "line 2.*cells"),
     ("a,a.wav,c,,,,,train,1,16000,x\na,b.wav,c,,,,,train,1,16000,y", "a is there twice"),
     ("", "lists no track")],
)  # fmt: skip
def test_a_manifest_that_was_tampered_with_is_refused(tmp_path: Path, row: str, words: str) -> None:
    (tmp_path / "manifest.csv").write_text(HEADER + row)
    with pytest.raises(DataError, match=f"(?s){words}"):
        read_manifest(tmp_path)


def test_a_manifest_without_its_columns_or_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no .*manifest\.csv"):
        read_manifest(tmp_path / "manifest.csv")
    (tmp_path / "manifest.csv").write_text("path,caption\na.wav,b\n")
    with pytest.raises(DataError, match=r"lacks the column.*id.*sha256"):
        read_manifest(tmp_path)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=80))
@settings(max_examples=50)
def test_ids_are_safe_and_pass_our_own_check(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    made = track_id(f"album/{name}.wav")
    assert made == track_id(f"album/{name}.wav")
    assert re.fullmatch(r"[\w-]+", made) and "_" not in made and made[0] != "-"
    assert made == unicodedata.normalize("NFC", made.lower()), "file systems that fold letters keep it"
    assert 12 <= len(made) <= 53 and len(made.encode()) <= 93
    table = tmp_path_factory.getbasetemp() / "one-id.csv"
    table.write_text(f"{HEADER}{made},a.wav,c,,,,,train,1,16000,x", encoding="utf-8")
    assert read_manifest(table).tracks[0].id == made


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("One Song", "one-song-"),
        ("Überall, laut!", "uberall-laut-"),
        ("Песня Йога", "песня-йога-"),
        ("音楽が", "音楽が-"),
        ("한국어", "한국어-"),
        ("straße №5", "straße-no5-"),
        ("🎵", ""),
        ("ﬁ x²", "fi-x2-"),
        ("音" * 60, "音" * 26 + "-"),
    ],
)
def test_ids_keep_letters_of_any_script(name: str, slug: str) -> None:
    made = track_id(f"a/{name}.wav")
    assert re.fullmatch(re.escape(slug) + "[0-9a-f]{12}", made)
    assert made == track_id(unicodedata.normalize("NFD", f"a/{name}.wav"))


def test_the_ids_of_ascii_names_are_as_they_always_were() -> None:
    known = {
        "sub/My Song (Live) 02.wav": "my-song-live-02-53b8374b2ca5",
        "A.wav": "a-de71e8a27ff2",
        "a.wav": "a-bc30c538c410",
    }
    assert {path: track_id(path) for path in known} == known


def test_sidecars_of_every_suffix_are_no_audio() -> None:
    assert not {".txt", *tables.TABLE_SUFFIXES} & set(SUFFIXES)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "musicldm_cli", "--json", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_command(music: Path) -> None:
    table = music.parent / "t.csv"
    table.write_text(table_text(".csv", caption="words"), encoding="utf-8")
    wrong = run(music.parent, "prep", "manifest", "music", "--captions", "t.csv")
    assert wrong.returncode == 4
    assert "path, words" in json.loads(wrong.stdout)["error"]["message"]
    assert not (music.parent / "work").exists()
    right = run(music.parent, "prep", "manifest", "music", "--captions", "t.csv", "--column", "caption=words")
    assert right.returncode == 0, right.stderr
    assert json.loads(right.stdout)["splits"] == {"train": 1, "valid": 1, "test": 1}
    root = json.loads((music.parent / "work" / "manifest" / "manifest.json").read_text())["root"]
    assert root == "../../music"
    assert captions_of_manifest(music.parent / "work" / "manifest") == CLEAN


def captions_of_manifest(folder: Path) -> dict[str, str]:
    return {track.path: track.caption for track in read_manifest(folder).tracks}
