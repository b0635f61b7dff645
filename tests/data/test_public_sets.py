"""Public sets in their own formats, made small: their tables become ours, and a manifest."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicldm_cli.commands.data import PublicSet
from stages import params
from stages.data.catalog import COLLECTIONS
from stages.data.collect import make_manifest
from stages.data.public_sets import SETS, convert
from stages.errors import DataError


def tone(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pitch = 0.05 + 0.001 * (sum(path.name.encode()) % 200)
    soundfile.write(path, 0.3 * np.sin(np.arange(24_000) * pitch), 16_000)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def fma(folder: Path) -> None:
    write(folder / "fma_metadata" / "tracks.csv",
          ",album,album,artist,set,track,track,track,track",
          ",id,title,name,subset,genre_top,license,tags,title",
          "track_id,,,,,,,,",
          '2,1,AWOL,AWOL,small,Hip-Hop,CC-BY-NC-SA 3.0,[],Food',
          '134,1,AWOL,AWOL,small,,CC-BY,"[\'slow\', \'loud\']","Street, Music"',
          "999,1,Gone,Gone,small,Rock,CC-BY,[],Gone")  # fmt: skip
    tone(folder / "fma_small" / "000" / "000002.mp3")
    tone(folder / "fma_small" / "000" / "000134.mp3")


def mtg_jamendo(folder: Path) -> None:
    write(folder / "data" / "autotagging.tsv", "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS",
          "track_0000948\tartist_000087\talbum_000149\t48/948.mp3\t212.7\tmood/theme---calm\tgenre---rock",
          "track_0000950\tartist_000088\talbum_000150\t50/950.mp3\t180.1\tinstrument---piano",
          "track_0000951\tartist_000088\talbum_000150\t51/951.mp3\t180.1\tinstrument---harp")  # fmt: skip
    write(folder / "data" / "raw.meta.tsv",
          "TRACK_ID\tARTIST_ID\tALBUM_ID\tTRACK_NAME\tARTIST_NAME\tALBUM_NAME\tRELEASEDATE\tURL",
          "track_0000948\tartist_000087\talbum_000149\tOff\tThe Band\tFirst\t2005\thttp://x")  # fmt: skip
    tone(folder / "audio" / "48" / "948.low.mp3")
    tone(folder / "audio" / "50" / "950.mp3")


def musiccaps(folder: Path) -> None:
    write(folder / "musiccaps-public.csv",
          "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval",
          '-0Gj8-vB1q4,30,40,"/m/0140xf","[\'slow\']","A slow ballad, sung\nsoftly.",4,False,True',
          '0A1b2C3d4E5,10,20,"/m/02cjck","[]","Fast drums.",4,False,True',
          'zzzzzzzzzzz,10,20,"/m/02cjck","[]","Gone.",4,False,True')  # fmt: skip
    tone(folder / "audio" / "-0Gj8-vB1q4.wav")
    tone(folder / "audio" / "[0A1b2C3d4E5]-[10-20].wav")


def song_describer(folder: Path) -> None:
    write(folder / "song_describer.csv",
          "caption_id,annotator_id,caption,aspects,familiarity,artist_id,album_id,path,duration,track_id,is_valid_subset",
          "1,a,a poor caption,,1,5,7,04/1004.mp3,120,1004,False",
          "2,b,a calm guitar,,1,5,7,04/1004.mp3,120,1004,True",
          "3,b,another calm guitar,,1,5,7,04/1004.mp3,120,1004,True",
          "4,b,a choir,,1,6,8,05/1005.mp3,120,1005,True")  # fmt: skip
    tone(folder / "audio" / "04" / "1004.2min.mp3")
    tone(folder / "audio" / "05" / "1005.2min.mp3")


def gtzan(folder: Path) -> None:
    for name in ("blues/blues.00000", "hiphop/hiphop.00012", "hiphop/other"):
        tone(folder / "genres" / f"{name}.wav")


def esc50(folder: Path) -> None:
    write(folder / "meta" / "esc50.csv", "filename,fold,target,category,esc10,src_file,take",
          "1-100032-A-0.wav,1,0,dog,True,100032,A", "1-100032-B-0.wav,1,0,dog,True,100032,B",
          "5-9032-A-0.wav,5,0,vacuum_cleaner,True,9032,A")  # fmt: skip
    for name in ("1-100032-A-0", "1-100032-B-0", "5-9032-A-0"):
        tone(folder / "audio" / f"{name}.wav")


JAMENDO = "Creative Commons, see jamendo.com"
FREESOUND = ("freesound 100032", "", "CC-BY-NC-3.0")
EXPECTED = {
    "fma": (fma, 1, {
        "fma_small/000/000002.mp3": ("Food by AWOL, Hip-Hop", "Food", "AWOL", "AWOL", "CC-BY-NC-SA 3.0"),
        "fma_small/000/000134.mp3": ("Street, Music by AWOL, slow, loud", "Street, Music", "AWOL", "AWOL", "CC-BY")}),
    "mtg-jamendo": (mtg_jamendo, 1, {
        "audio/48/948.low.mp3": ("rock, calm", "Off", "The Band", "First", JAMENDO),
        "audio/50/950.mp3": ("piano", "", "artist_000088", "album_000150", JAMENDO)}),
    "musiccaps": (musiccaps, 1, {
        "audio/-0Gj8-vB1q4.wav": ("A slow ballad, sung softly.", "youtube -0Gj8-vB1q4 at 30 s", "youtube -0Gj8-vB1q4",
                                  "", ""),
        "audio/[0A1b2C3d4E5]-[10-20].wav": ("Fast drums.", "youtube 0A1b2C3d4E5 at 10 s", "youtube 0A1b2C3d4E5", "",
                                            "")}),
    "song-describer": (song_describer, 0, {
        "audio/04/1004.2min.mp3": ("a calm guitar", "", "5", "7", JAMENDO),
        "audio/05/1005.2min.mp3": ("a choir", "", "6", "8", JAMENDO)}),
    "gtzan": (gtzan, 0, {
        "genres/blues/blues.00000.wav": ("blues music", "", "unknown, blues.00000", "", ""),
        "genres/hiphop/hiphop.00012.wav": ("hip hop music", "", "unknown, hiphop.00012", "", "")}),
    "esc-50": (esc50, 0, {
        "audio/1-100032-A-0.wav": ("the sound of dog", "", *FREESOUND),
        "audio/1-100032-B-0.wav": ("the sound of dog", "", *FREESOUND),
        "audio/5-9032-A-0.wav": ("the sound of vacuum cleaner", "", "freesound 9032", "", "CC-BY-NC-3.0")}),
}  # fmt: skip


def test_every_set_is_offered_and_tested() -> None:
    assert list(SETS) == list(EXPECTED) == list(PublicSet)
    assert {f"musicldm data convert {name} DIR" for name in SETS} <= {item.command for item in COLLECTIONS}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_set_becomes_a_table_and_a_manifest(tmp_path: Path, name: str) -> None:
    make, missing, expected = EXPECTED[name]
    folder = tmp_path / "set"
    make(folder)
    made = convert(name, folder)
    assert (made.path, made.tracks, made.missing) == (folder / "attribution.csv", len(expected), missing)
    with made.path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        assert next(reader) == ["path", "caption", "title", "artist", "album", "licence"]
        assert {row[0]: tuple(row[1:]) for row in reader} == expected
    catalogue = make_manifest(folder, None, tmp_path / "out", params.Manifest(), jobs=1)
    found = {t.path: (t.caption, t.title, t.artist, t.album, t.licence) for t in catalogue.tracks}
    assert found == expected
    convert(name, folder)  # writes over its own


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_missing_or_malformed_is_one_sentence(tmp_path: Path, name: str) -> None:
    make = EXPECTED[name][0]
    with pytest.raises(DataError, match="does not exist"):
        convert(name, tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"There is no (.*\.[ct]sv|audio file) below"):
        convert(name, tmp_path / "empty")
    make(tmp_path / "set")
    (tmp_path / "set" / "attribution.csv").write_text("mine")
    with pytest.raises(DataError, match="another file"):
        convert(name, tmp_path / "set")
    for table in (path for suffix in ("csv", "tsv") for path in (tmp_path / "set").rglob(f"*.{suffix}")):
        table.write_text("a,b\nc\n1,2\n3,4\n")
    if name != "gtzan":
        with pytest.raises(DataError, match="not as published"):
            convert(name, tmp_path / "set", tmp_path / "out.csv")
        assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    "name",
    ["zbY8rHqXe-k", "zbY8rHqXe-k_30", "[zbY8rHqXe-k]-[30-40]", "YzbY8rHqXe-k", "A [Live-in-Rom] song [zbY8rHqXe-k]",
     "An old download-zbY8rHqXe-k", "zbY8rHqXe-k.f251"],
)  # fmt: skip
def test_downloaders_names_of_a_video(tmp_path: Path, name: str) -> None:
    write(tmp_path / "musiccaps-public.csv", "ytid,start_s,caption", "zbY8rHqXe-k,30,calm", "YzbY8rHqXe-,0,other")
    tone(tmp_path / f"{name}.wav")
    convert("musiccaps", tmp_path)
    (row,) = csv.DictReader((tmp_path / "attribution.csv").open(encoding="utf-8"))
    assert (row["path"], row["caption"]) == (f"{name}.wav", "calm")


def test_clips_in_another_format_are_the_set_s(tmp_path: Path) -> None:
    esc50(tmp_path)
    for path in sorted((tmp_path / "audio").iterdir()):
        path.rename(path.with_suffix(".flac"))
    assert convert("esc-50", tmp_path).tracks == 3


@pytest.mark.parametrize(
    ("name", "file", "line", "words"),
    [("fma", "tracks.csv", "3,1,AWOL", "line 7 has 3 cells under 9 columns"),
     ("fma", "tracks.csv", "3,1,AWOL,AWOL,small,Rock,CC-BY,[,Food", "never closed"),
     ("fma", "tracks.csv", "3,1,AWOL,AWOL,small,Rock,CC-BY," + "[" * 9999 + ",Food", "not as published"),
     ("mtg-jamendo", "autotagging.tsv", "track_1\tartist_2", "not enough values"),
     ("song-describer", "song_describer.csv", '4,b,"open', "line 6 is malformed"),
     ("esc-50", "esc50.csv", "nodash.wav,1,0,dog,True,1,A", "not as published"),
     ("musiccaps", "musiccaps-public.csv", "a,b\xff", "is not UTF-8")],
)  # fmt: skip
def test_a_row_that_is_not_as_published_is_one_sentence(
    tmp_path: Path, name: str, file: str, line: str, words: str
) -> None:
    EXPECTED[name][0](tmp_path)
    (table,) = tmp_path.rglob(file)
    table.write_bytes(table.read_bytes() + line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match=words):
        convert(name, tmp_path)
    assert not (tmp_path / "attribution.csv").exists()


@pytest.mark.parametrize("name", ["fma", "mtg-jamendo", "musiccaps", "song-describer", "esc-50"])
def test_an_empty_table_is_one_sentence(tmp_path: Path, name: str) -> None:
    EXPECTED[name][0](tmp_path)
    for path in [path for suffix in ("csv", "tsv") for path in tmp_path.rglob(f"*.{suffix}")]:
        path.write_bytes(b"")
    with pytest.raises(DataError):
        convert(name, tmp_path)


def test_the_command(tmp_path: Path) -> None:
    esc50(tmp_path / "ESC-50")
    command = [sys.executable, "-m", "musicldm_cli", "--json", "data", "convert", "esc-50", "ESC-50", "--out", "t.csv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == {"ok": True, "paths": ["t.csv"], "tracks": 3, "missing": 0}
    by_artist = params.Manifest(split_by="artist")
    made = make_manifest(tmp_path / "ESC-50", tmp_path / "t.csv", tmp_path / "out", by_artist, jobs=1)
    split = {track.path: track.split for track in made.tracks}
    assert split["audio/1-100032-A-0.wav"] == split["audio/1-100032-B-0.wav"]
