"""Reading YAML within bounds: what is read as DVC reads it, and what is refused at once."""

import time

import pytest

from stages.params.yaml12 import MOST_BYTES, read_yaml, write_yaml

NINE = "*a{0}, " * 9
BOMBS = {
    "lists in lists": "[" * 100_000,
    "mappings in mappings": "{a: " * 25_000,
    "blocks in blocks": "- " * 60_000,
    "a long list": f"[{'1,' * 60_000}]",
    "a long mapping": "\n".join(f"a{n}: 1" for n in range(12_000)),
    "a billion laughs": "a0: &a0 x\n" + "\n".join(f"a{n}: &a{n} [{NINE.format(n - 1)}]" for n in range(1, 10)),
    "a billion merges": "a0: &a0 {x: 1}\n" + "\n".join(
        f"a{n}: &a{n} {{<<: [{NINE.format(n - 1)}]}}" for n in range(1, 10)
    ),
    "an alias that holds itself": "a: &a [1, *a]",
    "a merge of itself": "a: &a {<<: *a}",
    "a huge file": "#" * (MOST_BYTES + 1),
    "a tag": "a: !!python/object/apply:os.system [true]",
    "a number by a tag": "a: !!int ten",
    "a key that is a number": "1: 2",
    "a key that is nothing": "~: 2",
    "a key that is true": "true: 2",
    "a key that is a list": "? [a]\n: 1",
    "a key that is there twice": "a: 1\nb: 2\na: 3",
    "two documents": "a: 1\n---\nb: 2",
    "a control character": "a: \x00",
    "a lone surrogate": "a: \udc80",
    "bytes that are no text": "ä".encode("latin-1"),
}  # fmt: skip


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_what_is_no_plain_yaml_is_refused_in_one_short_line_at_once(text):
    began = time.process_time()
    with pytest.raises(ValueError) as caught:
        read_yaml(text)
    assert time.process_time() - began < 1
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "text",
    ["a: 1e-4\nb: on\nc: -2.5E+3\nd: .5\ne: 5.", "a: ~\nb:\nc: null", "a: true\nb: yes\nc: 'true'", "a: [1, -2, +3]",
     "a: 1.0e-05\nb: .inf\nc: -.inf", "a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\ne: *x", ""],
)  # fmt: skip
def test_what_is_plain_is_read_as_dvc_reads_it(text):
    from dvc.utils.serialize import parse_yaml

    assert read_yaml(text) == (parse_yaml(text, "params.yaml") if text else None)


def test_numbers_that_readers_differ_on_stay_text():
    for text in ("010", "0x1F", "0b11", "1_000", "1:30", "9" * 5000, "2001-01-01"):
        assert read_yaml(f"a: {text}") == {"a": text}


def test_files_of_other_editors_are_read():
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert read_yaml("captions: mélodie.csv".encode(encoding)) == {"captions": "mélodie.csv"}


def test_what_is_written_is_read_back():
    data = {"words": ["1e-4", "010", "true", "null", "yes", "1_000", "", "a: b", "é"], "numbers": [1, 0.5, 1e-5, None]}
    assert read_yaml(write_yaml(data)) == data
