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


@pytest.mark.parametrize(
    ("name", "text"),
    [("semicolon.csv", "prompt;seed\ncalm piano, slow;3\n"),
     ("sep.csv", "sep=|\r\nprompt|seed\r\ncalm piano, slow|3\r\n"),
     ("tabs.CSV", "Prompt\tSeed\rcalm piano, slow\t3\r"),
     ("tabs.tsv", 'prompt\tseed\n"calm piano, slow"\t3\n'),
     ("empty-rows.csv", 'prompt,seed,,\n"calm piano, slow",3,,\n,,,\n , ,,\n'),
     ("usual-name.csv", 'text,seed\n"calm piano, slow",3\n'),
     ("keys.JSONL", '{"prompt": "calm\u2028piano, slow", "seed": 3}\r\n\r\n')],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_spreadsheets_of_prompts(tmp_path, name, text, encoding):
    (tmp_path / name).write_bytes(text.encode(encoding))
    prompts, bad = read_prompts(tmp_path / name, DEFAULTS)
    assert [(p.id, p.prompt, p.seed) for p in prompts] == [("prompt-0001", "calm piano, slow", 3)]
    assert bad == []


@pytest.mark.parametrize("name", ["-0Gj8-vB1q4", "_0abcDEFghi", "--help", "-", "a.b", "Ünï 音楽", "console", "0" * 120])
def test_ids_that_name_a_file(tmp_path, name):
    (tmp_path / "p.csv").write_text(f"id,prompt\n{name},x\n", encoding="utf-8")
    assert [p.id for p in read_prompts(tmp_path / "p.csv", DEFAULTS)[0]] == [name]


@pytest.mark.parametrize(
    ("name", "said"),
    [("../escape", "cannot be a file name"), ("a/b", "cannot be"), ("a\\b", "cannot be"), ("..", "cannot be"),
     (".hidden", "cannot be"), ("end.", "cannot be"), (" blank", "cannot be"), ("blank ", "cannot be"),
     ("a:b", "cannot be"), ("0" * 121, "cannot be"), ("音" * 41, "cannot be"), ("\ud800", "cannot be"),
     ("CON", "Windows"), ("nul.txt", "Windows"), ("Lpt1", "Windows"),
     ("FINE", "used above"), ("u\u0308", "used above")],
)  # fmt: skip
def test_ids_that_name_none_are_refused_by_row(tmp_path, name, said):
    rows = [{"prompt": "x", "id": "fine"}, {"prompt": "x", "id": "ü"}, {"prompt": "x", "id": name}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts, bad = read_prompts(tmp_path / "p.jsonl", DEFAULTS)
    assert ([p.id for p in prompts], [row.line for row in bad]) == (["fine", "ü"], [3])
    assert said in bad[0].reason


DIGITS = "9" * 400


@pytest.mark.parametrize(
    ("row", "said"),
    [(f'{{"prompt": "x", "seed": {DIGITS}}}', "the seed 9999"),
     (f'{{"prompt": "x", "seed": "{DIGITS}"}}', "the seed '9999"),
     (f'{{"prompt": "x", "guidance": {DIGITS}}}', "the guidance 9999"),
     (f'{{"prompt": "x", "seconds": -{DIGITS}}}', "the seconds -9999"),
     ('{"prompt": "x", "seed": 4294967296}', "the seed 4294967296 is not between 0 and 4294967295"),
     (f'{{"prompt": "x", "seed": {DIGITS * 20}}}', "Exceeds the limit (4300 digits)"),
     ("[" * 50_000 + "]" * 50_000, "nested too deeply"),
     ('{"prompt": ' + "[" * 50_000 + "]" * 50_000 + "}", "nested too deeply"),
     ('{"prompt": "x", "prompt": "y"}', "the key 'prompt' is there twice"),
     ('{"prompt": "a\\u0000b"}', "control character U+0000"),
     ('{"prompt": "' + "x" * 100_001 + '"}', "the prompt has 100,001 characters")],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_one_row_that_explodes_is_listed(tmp_path, row, said):
    (tmp_path / "p.jsonl").write_text(f'{row}\n{{"prompt": "ok"}}\n')
    prompts, bad = read_prompts(tmp_path / "p.jsonl", DEFAULTS)
    assert ([p.prompt for p in prompts], [row.line for row in bad]) == (["ok"], [1])
    assert said in bad[0].reason
    assert len(bad[0].reason) < 200


def test_rows_of_a_csv_that_explode_are_listed(tmp_path):
    (tmp_path / "p.csv").write_text(f"prompt,seed\nx,{DIGITS}\nx\0y,1\nslow, sad, piano\nok,1\n")
    prompts, bad = read_prompts(tmp_path / "p.csv", DEFAULTS)
    assert ([p.prompt for p in prompts], [row.line for row in bad]) == (["ok"], [2, 3, 4])
    assert bad[2].reason == "has 3 cells under 2 columns"


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
        ("twice.csv", b"prompt,seed,seed\nx,1,2\n", "column `seed` more than once"),
        ("open.csv", b'prompt,seed\n"x,1\ny,2\n', "line 2 is malformed"),
        ("cp1252.csv", "prompt\nCafé\n".encode("cp1252"), "Windows-1252, where line 2 reads: Café"),
        ("cp1252.TXT", "Café\n".encode("cp1252"), "Windows-1252, where line 1 reads: Café"),
        ("two.csv", b"text,description\nx,y\n", "unknown column 'text'"),
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
