"""Tables that people bring: every way to write one that has one meaning, and a sentence for those that have none."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import tabular
from stages.errors import DataError
from stages.tabular import candidates, parse_json, read_table

CELLS = [{"path": "a.wav", "caption": "slow, sad"}, {"path": "b.wav", "caption": 'the "acid" one'}]


def cells(tmp_path: Path, name: str, data: str | bytes, **options: list[str]) -> list[dict[str, object]]:
    (tmp_path / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return read_table(tmp_path / name, **options).cells()


@pytest.mark.parametrize(
    ("name", "text"),
    [("comma.csv", 'path,caption\na.wav,"slow, sad"\nb.wav,"the ""acid"" one"\n'),
     ("no-last-line-end.CSV", 'path,caption\na.wav,"slow, sad"\nb.wav,the "acid" one'),
     ("semicolon.csv", 'path;caption\na.wav;slow, sad\nb.wav;"the ""acid"" one"\n'),
     ("tabs.csv", 'path\tcaption\na.wav\t"slow, sad"\nb.wav\t"the ""acid"" one"\n'),
     ("tabs-unquoted.tsv", 'path\tcaption\na.wav\tslow, sad\nb.wav\tthe "acid" one\n'),
     ("commas.TSV", 'path,caption\na.wav,"slow, sad"\nb.wav,the "acid" one\n'),
     ("sep.csv", 'sep=;\npath;caption\na.wav;slow, sad\nb.wav;the "acid" one\n'),
     ("sep-quoted.csv", '"SEP=|"\npath|caption\na.wav|slow, sad\nb.wav|the "acid" one\n'),
     ("sep-tab.csv", 'sep=\t\npath\tcaption\na.wav\tslow, sad\nb.wav\tthe "acid" one\n'),
     ("empty-cells.csv", 'path,caption,,\na.wav,"slow, sad",,\n,,,\nb.wav,the "acid" one,,\n,,,\n\n \n'),
     ("blank-before.csv", '\n\npath,caption\na.wav,"slow, sad"\nb.wav,the "acid" one\n'),
     ("quoted-header.csv", '"path","caption"\na.wav,"slow, sad"\nb.wav,the "acid" one\n'),
     ("index.csv", ',path,caption\n0,a.wav,"slow, sad"\n1,b.wav,the "acid" one\n'),
     ("formula.csv", 'path,caption\n"=""a.wav""","slow, sad"\n="b.wav",the "acid" one\n'),
     ("list.json", json.dumps(CELLS)),
     ("lines.jsonl", "".join(json.dumps(row) + "\n\n" for row in CELLS)),
     ("lines.json", "\n".join(json.dumps(row) for row in CELLS)),
     ("under-data.json", json.dumps({"version": 2, "about": {"by": "us"}, "data": CELLS})),
     ("mapping.json", json.dumps({row["path"]: row["caption"] for row in CELLS})),
     ("mapping-to-objects.json", json.dumps({row["path"]: {"caption": row["caption"]} for row in CELLS})),
     ("by-id.json", json.dumps({str(n): row for n, row in enumerate(CELLS)})),
     ("columns.json", json.dumps({key: [row[key] for row in CELLS] for key in ("path", "caption")})),
     ("other-order.json", json.dumps({key: {n: CELLS[n][key] for n in order} for key, order in
                                      (("path", range(len(CELLS))), ("caption", range(len(CELLS))[::-1]))})),
     ("frame.json", json.dumps({key: {n: row[key] for n, row in enumerate(CELLS)} for key in ("path", "caption")}))],
)  # fmt: skip
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_one_meaning_many_spellings(tmp_path: Path, name: str, text: str, line_end: str, encoding: str) -> None:
    assert cells(tmp_path, name, text.replace("\n", line_end).encode(encoding)) == CELLS


def test_a_row_of_json_alone(tmp_path: Path) -> None:
    assert cells(tmp_path, "one.json", json.dumps(CELLS[0])) == CELLS[:1]


def test_other_line_separators_are_part_of_a_cell(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three\x0bfour"
    assert cells(tmp_path, "t.csv", f"path,caption\na.wav,{text}\n") == [{"path": "a.wav", "caption": text}]
    assert cells(tmp_path, "t.jsonl", json.dumps({"caption": text}, ensure_ascii=False)) == [{"caption": text}]


def test_cells_that_are_left_out_at_the_end_are_empty(tmp_path: Path) -> None:
    assert cells(tmp_path, "t.csv", "path,caption,artist\na.wav,slow\n")[0]["artist"] == ""


def test_tabs_without_quoting_keep_their_quotes(tmp_path: Path) -> None:
    text = 'id\ttitle\n1\t"Unclosed song\n2\tafter\n3\t"Quoted" end\n4\t"closed"\n'
    assert [row["title"] for row in cells(tmp_path, "t.tsv", text)] == [
        '"Unclosed song', "after", '"Quoted" end', "closed"]  # fmt: skip


def test_tabs_with_cells_over_lines_are_quoted(tmp_path: Path) -> None:
    text = 'path\tcaption\tartist\na.wav\t"over\nlines, and a\ttab"\tme\n'
    assert cells(tmp_path, "t.tsv", text) == [{"path": "a.wav", "caption": "over\nlines, and a\ttab", "artist": "me"}]


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters='\0\r\n"')), min_size=1, max_size=4)
)
def test_what_is_quoted_is_read_back(tmp_path_factory: pytest.TempPathFactory, row: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    header = ",".join(f"c{n}" for n in range(len(row)))
    path.write_text(header + "\n" + ",".join(f'"{cell}"' for cell in row) + "\n", encoding="utf-8")
    assert [list(found.values()) for found in read_table(path).cells()] == ([row] if any(map(str.strip, row)) else [])


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [("more.csv", "path,caption\na.wav,x\nb.wav,slow, sad\n", "line 3 has 3 cells under 2 columns"),
     ("more-unnamed.csv", "path,caption,,\na.wav,slow, sad,\n", "line 2 has 4 cells under 2 columns"),
     ("multi-line.csv", 'sep=,\npath,caption\n"a.wav","two\nlines"\nb.wav,slow, sad\n', "line 5 has 3 cells"),
     ("unclosed.csv", 'path,caption\na.wav,x\nb.wav,"open\nc.wav,y\nd.wav,z\n', "line 3 is malformed"),
     ("within.csv", 'path,caption\na.wav,"big" drums\n', "line 2 is malformed"),
     ("twice.csv", "path,caption, caption\n", "column `caption` more than once"),
     ("twice.jsonl", '{"path": "a"}\n{"path": "b", "path": "c"}\n', "line 2 is not JSON: the key 'path'"),
     ("twice.json", '{"a.wav": "x", "a.wav": "y"}', "the key 'a.wav' is there twice"),
     ("nul-header.csv", "path,cap\0tion\n", "NUL character in the column name"),
     ("unmarked-utf16.csv", "path,caption\n".encode("utf-16-le"), "NUL character in the column name"),
     ("deep.json", "[" * 50_000 + "]" * 50_000, "is not JSON: nested too deeply"),
     ("deep.jsonl", '{"a": 1}\n' + "[" * 50_000 + "]" * 50_000, "line 2 is not JSON: nested too deeply"),
     ("digits.jsonl", '{"a": ' + "9" * 5000 + "}", "line 1 is not JSON: Exceeds the limit (4300 digits)"),
     ("no-object.jsonl", '{"a": 1}\n[2]\n', "line 2 is no JSON object"),
     ("two-lists.json", '{"train": [{"a": 1}], "test": [{"a": 1}]}', "lists of objects under train, test"),
     ("ragged.json", '{"path": ["a"], "caption": []}', "columns that are not of the same rows"),
     ("other-rows.json", '{"path": {"0": "a"}, "caption": {"1": "x"}}', "columns that are not of the same rows"),
     ("broken.json", '{\n"path": "a"', "is not JSON: Expecting ',' delimiter: line 2"),
     ("cut.csv", "path,caption\na.wav,Café crème é".encode()[:-1], "line 2 cannot be read: it is not UTF-8"),
     ("russian.csv", "path,caption\na.wav,музыка\n".encode("cp1251"), "line 2 cannot be read"),
     ("japanese.csv", "path,caption\na.wav,静かなピアノ\n".encode("shift-jis"), "line 2 cannot be read"),
     ("xlsx.csv", b"PK\x03\x04\x14\x00\x06\x00\x08\x00\xe9\x00!", "line 1 cannot be read"),
     ("odd.csv", "path".encode("utf-16")[:-1], "cannot be read: it is not UTF-16")],
)  # fmt: skip
def test_two_meanings_or_none_are_refused_with_their_line(
    tmp_path: Path, name: str, data: str | bytes, words: str
) -> None:
    with pytest.raises(DataError) as caught:
        cells(tmp_path, name, data)
    assert str(tmp_path / name) in caught.value.message
    assert words in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("caption", ["Café crème", "Spaß …", "“naïve”: 5 €", "CAFÉ” für Élise"])
def test_windows_1252_is_named(tmp_path: Path, caption: str) -> None:
    data, notes = f"path,caption\nx.wav,plain\na.wav,{caption}\n".encode("cp1252"), list[str]()
    assert cells(tmp_path, "t.csv", data, notes=notes)[1]["caption"] == caption
    assert len(notes) == 1
    assert f"it was read as Windows-1252, where line 3 reads: a.wav,{caption}" in notes[0]
    with pytest.raises(DataError, match="Windows-1252, where line 3 reads"):
        cells(tmp_path, "t.csv", data)


def test_a_table_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no") as caught:
        read_table(tmp_path / "gone.csv", "Make it.")
    assert caught.value.remedy == "Make it."
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_table(tmp_path / "folder.csv")


def test_columns_by_their_own_or_a_usual_name() -> None:
    assert candidates(["file", "path"], "path") == ["path"]
    assert candidates(["Caption", "File Name"], "path") == ["File Name"]
    assert candidates(["Caption", "File Name"], "caption") == ["Caption"]
    assert candidates(["text", "description", "title"], "caption") == ["text", "description"]
    assert candidates(["performer", "license"], "artist") == ["performer"]
    assert candidates(["ID"], "id") == ["ID"]
    assert candidates([], "path") == []


def test_usual_names_of_one_table_have_one_meaning() -> None:
    fields = ("path", "caption", "title", "artist", "album", "licence")
    names = [name for field in fields for name in tabular.USUAL_NAMES[field]]
    assert len(names) == len(set(names)) > 20


@pytest.mark.parametrize("text", ["", "nul", "{'a': 1}", '{"a": 1, "a": 2}', "[" * 10_000, '"\n"'])
def test_what_is_not_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
