"""Tables as people have them: spreadsheets, other machines' paths, public sets' own files, prompts with odd rows."""

import csv
import json
import re
import shutil

import pytest

from stages.data.manifest import read_manifest
from stages.data.tables import read_captions
from stages.errors import DataError

MARK = "\x1fmusicldm"


@pytest.fixture
def lines(typed):
    """lines(fault) -> (code, stdout, stderr) of each `musicldm` line of cmd.sh, as the shell expands it, run here."""

    def run(case):
        stub = f"musicldm() {{ printf '{MARK}'; printf '\x1f%s' \"$@\"; echo; }}\n"
        shown = case.type(stub + (case.folder / "cmd.sh").read_text()).stdout
        return [typed(case.folder, *line.split("\x1f")[2:]) for line in shown.splitlines() if line.startswith(MARK)]

    return run


@pytest.fixture
def models(toy_models):
    """Puts small random networks where `generate` looks first; the shipped ones take seconds to load."""
    return lambda case: shutil.copytree(toy_models, case.folder / "work" / "models")


def captions(folder):
    return {track.path: track.caption for track in read_manifest(folder / "work" / "manifest").tracks}


def generated(folder):
    found = map(json.loads, (folder / "work" / "generated" / "manifest.jsonl").read_text().splitlines())
    return {row["file"]: row for row in found if (folder / "work" / "generated" / row["file"]).is_file()}


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_json_objects_under_one_key(fault, lines, typed):
    case = fault("json-under-data")
    assert [code for code, _, _ in lines(case)] == [0, 0]
    assert captions(case.folder) == {f"s{n}.wav": f"wavcaps caption {n}" for n in range(3)}
    code, _, err = typed(case.folder, "prep", "manifest", ".", "--captions", "train.json", "--strict", "-j", "1")
    assert code == 0, err  # its usual names need no --column
    assert captions(case.folder) == {f"s{n}.wav": f"audioldm caption {n}" for n in range(3)}


def test_a_column_twice_and_a_nul_are_refused(fault, lines):
    fault("chained-ogg")
    case = fault("tables")
    twice, nul = lines(case)
    assert (twice[0], nul[0]) == (4, 4)
    assert "duplicate_header.csv has the column `caption` more than once" in twice[2]
    assert "nul_byte.csv, line 5: the caption holds a NUL character" in nul[2]
    assert not (case.folder / "work").exists()


def test_spreadsheets(fault, lines, models):
    case = fault("spreadsheets")
    models(case)
    results = lines(case)
    assert [code for code, _, _ in results] == [0] * 7, results
    tracks = read_manifest(case.folder / "work" / "manifest").tracks
    assert {track.path: (track.caption, track.artist) for track in tracks} == {
        "s0.wav": ("Café crème, slow", "Zoë"), "s1.wav": ("naïve melody", "Ü"), "s2.wav": ("plain", "P")}  # fmt: skip
    assert all("3 tracks" in out and "rejected" not in out for _, out, _ in results[:4])
    made = {row["file"]: (row["prompt"], row["seed"]) for row in generated(case.folder).values()}
    assert made == {"prompt-0001.wav": ("calm piano", 0), "a.wav": ("calm piano", 0)}


def test_paths_of_another_machine(fault, lines):
    case = fault("windows-paths")
    results, folder = lines(case), case.folder
    assert results[0][0] == 0
    assert captions(folder) == {
        "x/01 Intro.wav": "ix",
        "y/01 Intro.wav": "iy",
        "y/song2.wav": "two",
        "conv.wav": "conv",
    }
    assert rows(folder / "work" / "manifest" / "rejected.csv") == []


def test_mtg_jamendo_is_unquoted(fault, lines):
    case = fault("mtg-jamendo-quote")
    results, folder = lines(case), case.folder
    assert results[0][0] == 0
    found = {row["path"]: (row["title"], row["artist"], row["album"]) for row in rows(folder / "attribution.csv")}
    titles = ("Plain", '"Unclosed song', "After quote", '"Quoted" end', "Last")
    assert found == {f"0{n}/100{n}.wav": (title, f"Artist {n}", f"Album {n}") for n, title in enumerate(titles)}


def test_musiccaps_by_the_names_of_its_downloaders(fault, lines):
    case = fault("musiccaps-names")
    results, folder = lines(case), case.folder
    assert results[0][0] == 0
    assert "4 more are listed by the set, and have no file" in results[0][1]
    assert {row["path"]: row["caption"] for row in rows(folder / "attribution.csv")} == {
        "Some Nice Song (Live) [-0Gj8-vB1q4].wav": "caption of -0Gj8-vB1q4",
        "YRRRRRRRRRRR.wav": "caption of RRRRRRRRRRR",
        "_0abcDEFghi.wav": "caption of _0abcDEFghi",
    }


def test_gtzan_as_its_authors_distributed_it(fault, lines, typed, toy_models):
    case = fault("gtzan-au")
    results, folder = lines(case), case.folder
    assert results[0][0] == 0
    expected = {f"genres/{genre}/{genre}.0000{n}.au": f"{genre} music" for genre in ("blues", "jazz") for n in (0, 1)}
    assert {row["path"]: row["caption"] for row in rows(folder / "attribution.csv")} == expected
    code, _, err = typed(folder, "prep", "manifest", ".", "--strict", "-j", "1")
    assert code == 0, err
    assert captions(folder) == expected
    command = ["--json", "eval", "zeroshot", ".", "--benchmark", "gtzan", "--clap", toy_models / "ldm"]
    code, out, err = typed(folder, *command)
    assert code == 0, err
    assert json.loads(out)["accuracy"]["n"] == 4


def test_prompt_ids_begin_with_a_dash_or_underscore(fault, lines, models):
    case = fault("prompt-ids")
    models(case)
    results, folder = lines(case), case.folder
    assert results[0][0] == 0
    assert {name: row["prompt"] for name, row in generated(folder).items()} == {
        "-0Gj8-vB1q4.wav": "calm piano", "_0abcDEFghi.wav": "fast drums", "aBcDeFgHiJk.wav": "guitar"}  # fmt: skip


def test_one_bad_prompt_is_listed_and_the_others_are_made(fault, lines, models):
    case = fault("prompt-rows")
    models(case)
    results, folder = lines(case), case.folder
    assert [code for code, _, _ in results] == [4, 4]
    for (_, _, err), reason in zip(results, ("the seed 9999", "is not JSON: nested too deeply"), strict=True):
        assert f"1 row(s) of the prompts file were left out, the other 1 done:\n  line 1: {reason}" in err
    assert {name: row["prompt"] for name, row in generated(folder).items()} == {"prompt-0002.wav": "ok"}


def test_relevance_takes_ids_with_a_suffix(fault, typed, toy_models):
    folder = fault("relevance-ids").folder
    command = (folder / "cmd.sh").read_text().partition(";")[0].replace("/path/to/a/pipeline", str(toy_models / "ldm"))
    code, _, err = typed(folder, *command.split()[1:])
    assert code == 0, err
    found = rows(folder / "work" / "metrics" / "relevance" / "prompts.csv")
    assert {row["id"]: row["prompt"] for row in found} == {"c0": "calm piano", "c1": "drums", "c2": "guitar, slow"}
    for number in range(3):
        (folder / f"c{number}.wav").rename(folder / f"other{number}.wav")
    code, _, err = typed(folder, *command.split()[1:])
    assert code == 4
    assert "No audio file of . is in its prompts.csv." in err
    assert "with or without its suffix" in err


@pytest.mark.parametrize("line", ["[1]", "{}", '{"id": 1, "file": "a.wav", "prompt": "x"}', "1", '"x"'])
def test_a_malformed_row_of_clips_is_named(typed, tmp_path, line):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/manifest.jsonl").write_text(f'{{"id": "a", "file": "a.wav", "prompt": "x"}}\n{line}\n')
    code, _, talk = typed(tmp_path, "generate", "x", "--out", "clips", "--seconds", "1", "--steps", "1")
    assert code == 4
    assert re.search(
        "clips/manifest.jsonl, (line 2 is no JSON object|row 2 has no text as `id`)", " ".join(talk.split())
    )


def test_lines_of_json_that_are_all_bad_are_named_and_control_characters_are_blanks(tmp_path):
    (tmp_path / "bad.jsonl").write_text('[{"path": "a.wav", "caption": "x"}]\n')
    with pytest.raises(DataError, match=r"bad.jsonl, line 1 is no JSON object"):
        read_captions(tmp_path / "bad.jsonl", {}, [])
    (tmp_path / "bell.csv").write_text("path,caption\na.wav,slow\x07\x92piano\n")
    assert read_captions(tmp_path / "bell.csv", {}, []) == [{"path": "a.wav", "caption": "slow piano"}]
