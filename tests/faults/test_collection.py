"""Collections as people have them: tagged files without a table, and music that is all by one artist."""

import csv
import json


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


FFMPEGS = "Ff Title {0} by Carl Example, House, driving bass and claps"
TAGS = {  # file: title, artist, album, caption
    "w.wav": ("Sunrise Waltz", "Anna Example", "Album W", "Sunrise Waltz by Anna Example, Ambient, slow strings"),
    "i.aiff": ("Moonset Tango", "Bob Example", "", "Moonset Tango by Bob Example, Tango"),
    **{
        f"ff.{kind}": (f"Ff Title {kind}", "Carl Example", "", FFMPEGS.format(kind))
        for kind in ("wav", "mp3", "flac", "ogg")
    },
    "onlycomment.mp3": ("", "", "", "only a comment here"),
    "onlycomment.flac": ("", "", "", "only a description"),
}


def test_tags_of_every_format_are_read(fault):
    case = fault("tags")
    done = case.cmd()
    assert done.returncode == 0, done.stderr
    found = rows(case.folder / "work" / "manifest" / "manifest.csv")
    assert {
        path: tuple(row[key] for key in ("title", "artist", "album", "caption")) for path, row in found.items()
    } == TAGS
    assert (case.folder / "work" / "manifest" / "rejected.csv").read_text() == "path,reason\n"
    assert len({found[f"ff.{kind}"]["split"] for kind in ("wav", "mp3", "flac", "ogg")}) == 1, "one artist, one split"


def make_music(case):
    done = case.type((case.folder / "cmd.sh").read_text().split("musicldm prep", 1)[0])
    assert done.returncode == 0, done.stderr
    return case.folder


def test_the_music_of_one_artist_is_divided_by_track_generated_from_and_measured(fault, typed):
    case = fault("one-artist")
    commands = (case.folder / "cmd.sh").read_text().partition("musicldm prep")[2].replace("\n", ";").split(";")
    manifest, *preparations, generate, quality = (
        line.split()[1:] for line in ["- prep" + commands[0], *commands[1:-1]]
    )
    folder = make_music(case)
    code, out, error = typed(folder, *manifest)
    assert code == 0, error
    assert "2 train, 1 valid, 2 test" in out
    assert "Split by track: 5 tracks, since 1 artist cannot fill every split." in out
    assert "-S manifest.split_by=artist" in out
    assert max(map(len, out.splitlines())) <= 80
    for line in preparations:
        code, _, error = typed(folder, *line, *([] if "shards" in line else ["-j", "1"]))
        assert code == 0, error
    assert (folder / "work" / "captions" / "prompts.csv").read_text().count("my song") == 2
    code, _, error = typed(folder, *generate, "--steps", "1", "--sampler", "ddim")
    assert code == 0, error
    assert len(list((folder / "work" / "generated").glob("t*.wav"))) == 2
    code, out, error = typed(folder, "--json", *quality)
    assert code == 0, error
    assert json.loads(out)["n_generated"] == json.loads(out)["n_reference"] == 2


def test_without_a_test_split_generate_says_so(fault, typed):
    folder = make_music(fault("one-artist"))
    code, out, _ = typed(folder, "--json", "prep", "manifest", ".", "-j", "1", "-S", "manifest.split_by=artist")
    made = json.loads(out)
    assert code == 0 and made["splits"] == {"train": 5, "valid": 0, "test": 0}
    assert made["split_by"] == "artist"
    assert made["notes"][1].startswith("valid and test are empty, as 1 artist cannot fill every split")
    (folder / "work" / "captions").mkdir()
    (folder / "work" / "captions" / "prompts.csv").write_text("id,prompt\n")  # of no test track
    code, _, error = typed(folder, "generate")
    assert code == 4
    assert "There is no test split: work/captions/prompts.csv holds no prompts." in error
    assert "musicldm prep manifest -S manifest.split_by=auto" in error


def test_a_second_run_takes_none_of_the_firsts_results_for_music(fault, typed):
    folder = make_music(fault("one-artist"))
    for _ in range(2):
        code, out, _ = typed(folder, "--json", "prep", "manifest", ".", "-j", "1")
        assert code == 0 and json.loads(out)["tracks"] == 5 and json.loads(out)["rejected"] == 0
        assert typed(folder, "prep", "resample", "-j", "1")[0] == 0
    assert sorted(rows(folder / "work" / "manifest" / "manifest.csv")) == [f"t{number}.wav" for number in range(5)]
