"""Weight files that are cut, lie, or unpack to more than they are: one sentence, at once, and little memory."""

import io
import json
import pickle
import re
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stages.errors import ModelError
from stages.tensors import fit, read_tensors


def network(layers=20):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))


def same(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("zipped", [True, False])
def test_published_checkpoints_are_read_with_what_lies_beside_their_tensors(tmp_path, zipped):
    model = network()
    optimizer = {"state": {n: {"step": torch.tensor(1.0)} for n in range(40)}, "param_groups": [{"betas": (0.9, 0.99)}]}
    beside = {"epoch": np.int64(15), "loss": np.float64(0.5), "name": "été", "optimizer": optimizer,
              "shape": torch.Size([1, 2]), "dtype": torch.float32}  # fmt: skip
    for key, table in (
        ("state_dict", {f"module.{name}": value for name, value in model.state_dict().items()}),
        ("generator", dict(model.named_parameters())),
        ("model", model.state_dict()),
    ):
        torch.save({key: table} | beside, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
        assert same(read_tensors(tmp_path / "a.ckpt"), model.state_dict())
    half = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.tensor(True), "c": torch.tensor(3)}
    torch.save(half, tmp_path / "b.pt", _use_new_zipfile_serialization=zipped)
    assert same(read_tensors(tmp_path / "b.pt"), half)
    shared = torch.ones(100)
    torch.save({"a": shared, "b": shared, "c": shared[50:]}, tmp_path / "c.pt")
    assert read_tensors(tmp_path / "c.pt")["c"].sum() == 50


def test_safetensors_are_read_under_any_name(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.ckpt")
    assert same(read_tensors(tmp_path / "a.ckpt"), {"a": torch.ones(2)})


def saved(content, **how):
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def checkpoint(content, compression=zipfile.ZIP_STORED):
    """A file of torch's format around this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/version", "3\n")
    return buffer.getvalue()


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def deflated(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


MEGABYTE = b"X" + struct.pack("<I", 10**6) + b"x" * 10**6
COPY = b"h\x01h\x02\x85R"  # call the memo's 1 with its 2
BOMBS = {
    "two gigabytes deflated": checkpoint(b"\x80\x02B" + struct.pack("<I", 2**31 - 1) + bytes(2**20), 8),
    "deflated zeros": deflated(saved({"a": torch.zeros(10**6)})),
    "a string encoded 2,000 times": checkpoint(
        b"\x80\x02(c_codecs\nencode\nq\x01" + MEGABYTE + b"q\x02" + COPY * 2000 + b"t."
    ),
    "a tuple copied 50,000 times": checkpoint(
        b"\x80\x02(c" + b"torch\nSize\nq\x01(" + b"K\x01" * 100_000 + b"tq\x02" + COPY * 25_000 + b"t."
    ),
    "a bytearray": checkpoint(b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
    "a set": checkpoint(b"\x80\x02c__builtin__\nset\n]\x85R."),
    "millions of values": checkpoint(b"\x80\x02(" + b"N" * 5_000_000 + b"t."),
    "deep": checkpoint(b"\x80\x02]" + b"\x85" * 200_000 + b"."),
    "marks": checkpoint(b"\x80\x02" + b"(" * 250_000 + b"t" * 250_000 + b"."),
    "colliding keys": checkpoint(pickle.dumps({(2**61 - 1) * n: n for n in range(20_000)}, protocol=2)),
    "a storage of a terabyte": checkpoint(
        b"\x80\x02(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu\x8a\x06" + bytes(5) + b"\x01tQ."
    ),
    "one number a million times": saved({"a": torch.zeros(1).expand(10**6)}),
    "views that add up": saved(dict.fromkeys("abcdefgh", torch.zeros(10**5))),
    "sparse": saved({"a": torch.zeros(10, 10).to_sparse()}),
    "meta": saved({"a": torch.empty(10**12, device="meta")}),
    "a legacy bytearray": saved({"a": torch.ones(1), "b": bytearray(5)}, _use_new_zipfile_serialization=False),
}
BROKEN = {
    "empty": b"",
    "text": b"no checkpoint at all",
    "torn zip": b"PK\x03\x04 torn",
    "cut zip": saved({"a": torch.ones(1000)})[:3000],
    "cut legacy": saved({"a": torch.ones(1000)}, _use_new_zipfile_serialization=False)[:1000],
    "bare pickle": pickle.dumps({"a": 1}, protocol=2),
    "empty pickle": checkpoint(b""),
    "stack underflow": checkpoint(b"\x80\x02\x86R."),
    "unknown operation": checkpoint(b"\x80\x02\xff."),
    "protocol 4": checkpoint(pickle.dumps({"a": [1]}, protocol=4)),
    "a list": saved([torch.ones(1)]),
    "nothing": saved({}),
    "numbers": saved({"a": 1.0}),
    "keys that are numbers": saved({3: torch.ones(1)}),
    "keys of both kinds": saved({"state_dict": {"a": torch.ones(1), ("b",): torch.ones(1)}}),
    "no header": bytes(8),
    "half a length": b"\x08\0\0",
    "a header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "a header that is a list": safetensors([]),
    "a deep header": safetensors(b"[" * 100_000),
    "a shape of another size": safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
    "a shape beyond numbers": safetensors(
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "an unknown type": safetensors({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "data outside": safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [400, 404]}}, bytes(4)),
}


@pytest.mark.parametrize("name", [*BOMBS, *BROKEN])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_what_is_no_table_of_tensors_is_one_sentence_at_once(tmp_path, name, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes((BOMBS | BROKEN)[name])
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=re.escape(str(path))) as caught:
        read_tensors(path, "Mend it.")
    assert time.process_time() - began < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
    assert len(caught.value.message.splitlines()) == 1
    assert len(caught.value.message) < 500 + len(str(path))
    assert caught.value.remedy == "Mend it."


def test_what_is_no_file_is_told(tmp_path):
    for path, said in ((tmp_path, "is no file"), (tmp_path / "absent.pt", "There is no")):
        with pytest.raises(ModelError, match=said):
            read_tensors(path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"0.bias": None}, "1 tensors differ: 0.bias is missing, it should be 8."),
        ({"0.bias": torch.ones(8, 1)}, "0.bias is 8 x 1, it should be 8."),
        ({"0.bias": torch.ones(8, dtype=torch.int64)}, "0.bias holds whole numbers, it should hold real ones."),
        ({"0.bias": torch.ones(8, dtype=torch.complex64)}, "0.bias holds complex numbers"),
        ({"1.bias": torch.ones(8)}, "1 tensors differ: 1.bias has no place."),
    ],
)
def test_a_network_takes_its_own_names_shapes_and_kinds_only(changed, said):
    model = network(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrong = {name: value for name, value in (before | changed).items() if value is not None}
    with pytest.raises(ModelError, match=re.escape(said)):
        fit(model, wrong, "x.pt")
    assert same(model.state_dict(), before)
    fit(model, {name: torch.full_like(value, 0.5).half() for name, value in before.items()}, "x.pt")
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    with torch.device("meta"):
        other = nn.Sequential(nn.Linear(8, 8))
    fit(other, before, "x.pt", assign=True)
    assert same(other.state_dict(), before)


def test_two_numbers_in_a_byte_are_no_plain_tensor(tmp_path):
    head = json.dumps({"a": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "f4.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(8))
    with pytest.raises(ModelError, match="does not hold a table of tensors"):
        read_tensors(tmp_path / "f4.safetensors")
