"""Prompts from the command line and from files, good and bad."""

import json

import pytest

from stages.errors import DataError, UsageError
from stages.generate.prompts import Defaults, read_prompts, slug, takes, typed_prompt

DEFAULTS = Defaults(seed=7, negative=None, guidance=2.0, seconds=10.24)


def test_a_typed_prompt_names_its_file_after_itself_and_its_seed():
    prompt = typed_prompt("  Dramatic\ttrailer!  ", DEFAULTS)
    assert (prompt.id, prompt.prompt, prompt.seed) == ("dramatic-trailer-7", "Dramatic trailer!", 7)


@pytest.mark.parametrize("text", ["", " \n", "a\x00b", "bell \x07", "\udcff"])
def test_an_unusable_typed_prompt_is_a_usage_error(text):
    with pytest.raises(UsageError):
        typed_prompt(text, DEFAULTS)


def test_texts_of_any_script_get_distinct_safe_names():
    names = [slug(text) for text in ("音楽", "музыка", "Ünï côdé", "../../etc/passwd", "x" * 500)]
    assert len(set(names)) == 5
    assert names[2:4] == ["uni-code", "etc-passwd"]
    assert all(name.isascii() and "/" not in name and len(name) <= 48 for name in names)


def test_csv_columns_override_defaults_and_rows_count_up_the_seed(tmp_path):
    file = tmp_path / "p.csv"
    text = '\ufeffid,prompt,seed,negative,guidance,seconds\na,"one, two",,,,\nb,three,99,noise,1.5,4\n'
    file.write_text(text, encoding="utf-8")
    prompts, bad = read_prompts(file, DEFAULTS)
    assert bad == []
    assert [(p.id, p.prompt, p.seed, p.negative, p.guidance, p.seconds) for p in prompts] == [
        ("a", "one, two", 7, None, 2.0, 10.24),
        ("b", "three", 99, "noise", 1.5, 4.0),
    ]


def test_bad_rows_are_listed_by_line_and_the_others_kept(tmp_path):
    rows = [
        {"prompt": "fine"},
        {"prompt": ""},
        {"prompt": "x", "seed": 1.5},
        {"prompt": "x", "seed": -1},
        {"prompt": "x", "seconds": -3},
        {"prompt": "x", "guidance": "nan"},
        {"prompt": "x", "id": "../escape"},
        {"prompt": "x", "id": "PROMPT-0001"},
        {"prompt": 5},
        {"prompt": "x", "sampler": "ddim"},
        {"prompt": "x", "seed": True},
    ]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not json\n[1]\n")
    prompts, bad = read_prompts(file, DEFAULTS)
    assert [p.id for p in prompts] == ["prompt-0001"]
    assert [row.line for row in bad] == list(range(2, 14))
    assert "used above" in bad[6].reason
    assert "sampler" in bad[8].reason


def test_txt_holds_one_prompt_a_line(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("calm piano\n\nfast drums\n")
    assert [(p.prompt, p.seed) for p in read_prompts(file, DEFAULTS)[0]] == [("calm piano", 7), ("fast drums", 8)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "There is no"),
        ("empty.csv", b"", "no column `prompt`"),
        ("header.csv", b"prompt\n", "no prompts"),
        ("columns.csv", b"prompt,steps\nx,3\n", "unknown column 'steps'"),
        ("binary.txt", b"\xff\xfe\xfa", "cannot be read"),
        ("all-bad.txt", b"\x07\n", "no usable prompt"),
        ("what.md", b"hello", "none of .csv"),
    ],
)
def test_unusable_files_are_one_data_error(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_prompts(tmp_path / name, DEFAULTS)


def test_takes_have_names_and_seeds_of_their_own(tmp_path):
    (tmp_path / "p.csv").write_text("id,prompt\na,one\nb,two\n")
    prompts, _ = read_prompts(tmp_path / "p.csv", DEFAULTS)
    many = takes(prompts, 3)
    assert [p.id for p in many] == ["a", "b", "a-take2", "b-take2", "a-take3", "b-take3"]
    assert [p.seed for p in many] == [7, 8, 9, 10, 11, 12]
    assert takes(prompts, 1) == prompts
    (tmp_path / "p.csv").write_text("id,prompt\na,one\nA-take2,two\n")
    with pytest.raises(DataError, match="a-take2"):
        takes(read_prompts(tmp_path / "p.csv", DEFAULTS)[0], 2)
