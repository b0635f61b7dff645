"""HDF5 datasets that are not what they seem: each is refused before a byte of it is read."""

import h5py
import numpy as np
import pytest

from stages.data.hdf5 import attribute, dataset, member, new_hdf5

DATA = np.arange(1000, dtype=np.int16)


@pytest.fixture
def plain(tmp_path):
    """A file of ours with `t/a` in chunks, `t/b` in one piece, `t/none` empty; and `secret` of another file."""
    with new_hdf5(tmp_path / "a.h5") as file:
        group = file.create_group("t")
        group.create_dataset("a", data=DATA, chunks=(300,), fletcher32=True)
        group["b"], group["none"] = DATA, DATA[:0]
        group.attrs.update(
            {"title": "été", "bpm": 120.0, "group": np.int64(3), "list": [1, 2], "bytes": np.bytes_(b"x")}
        )
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = DATA
    DATA.tofile(tmp_path / "secret.bin")
    return tmp_path / "a.h5"


def external(file):
    file["t"].create_dataset("x", DATA.shape, "i2", external=[("secret.bin", 0, DATA.nbytes)])


def virtual(file):
    layout = h5py.VirtualLayout(DATA.shape, "i2")
    layout[:] = h5py.VirtualSource("other.h5", "secret", DATA.shape)
    file["t"].create_virtual_dataset("x", layout)


def linked(link):
    def make(file):
        file["t"]["x"] = link

    return make


def made(shape=DATA.shape, dtype="i2", **how):
    def make(file):
        file["t"].create_dataset("x", shape, dtype, **how)

    return make


def filled(**how):
    def make(file):
        file["t"].create_dataset("x", data=DATA, **how)

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (external, "lies in other files"),
        (virtual, "lies in other files"),
        (linked(h5py.ExternalLink("other.h5", "secret")), "is a link to another place"),
        (linked(h5py.SoftLink("/t/a")), "is a link to another place"),
        (lambda file: file["t"].create_group("x"), "is no dataset of int16"),
        (filled(dtype="i4"), "is no dataset of int16"),
        (made(dtype=h5py.string_dtype()), "is no dataset of int16"),
        (made(dtype=h5py.vlen_dtype("i2")), "is no dataset of int16"),
        (made(dtype=h5py.ref_dtype), "is no dataset of int16"),
        (made(dtype=[("a", "i2")]), "is no dataset of int16"),
        (made(()), "has the shape"),
        (made((10, 10)), "has the shape"),
        (made(None, h5py.Empty("i2").dtype, data=h5py.Empty("i2")), "has the shape None"),
        (filled(chunks=(100,), compression="gzip"), "has a filter that is not the checksum"),
        (filled(chunks=(100,), shuffle=True), "has a filter that is not the checksum"),
        (filled(chunks=(100,), scaleoffset=0), "has a filter that is not the checksum"),
        (filled(chunks=(2**30,), maxshape=(None,)), "has chunks larger than itself"),
        (made((2**50,), chunks=(1000,), fletcher32=True), "is larger than what is stored"),
        (made((2**40,)), "is larger than what is stored"),
    ],
)
def test_only_plain_datasets_are_read(plain, make, said):
    with h5py.File(plain, "a") as file:
        make(file)
    with h5py.File(plain, "r") as file, pytest.raises(OSError, match=said):
        dataset(file, "t/x", "i2", (None,))


def test_ours_are_read(plain):
    with h5py.File(plain, "r") as file:
        for name in ("a", "b"):
            np.testing.assert_array_equal(dataset(file, f"t/{name}", "i2", (None,))[:], DATA)
            with pytest.raises(OSError, match="has the shape"):
                dataset(file, f"t/{name}", "i2", (999,))
        assert len(dataset(file, "t/none", "i2", (None,))) == 0
        with pytest.raises(KeyError, match="t/absent is missing"):
            dataset(file, "t/absent", "i2", (None,))


def test_a_link_on_the_way_is_refused(plain):
    with h5py.File(plain, "a") as file:
        file["soft"], file["far"] = h5py.SoftLink("/t"), h5py.ExternalLink("other.h5", "/")
    with h5py.File(plain, "r") as file:
        for path in ("soft/a", "far/secret"):
            with pytest.raises(OSError, match="link to another place"):
                member(file, path)


def test_attributes_are_of_the_wanted_type(plain):
    with h5py.File(plain, "r") as file:
        group = member(file, "t")
        assert attribute(group, "title", str) == "été"
        assert (attribute(group, "bpm", float), attribute(group, "group", int)) == (120.0, 3)
        assert isinstance(attribute(group, "group", float), float)
        for name, kind in (("title", int), ("bpm", int), ("list", float), ("bytes", str), ("group", str)):
            with pytest.raises(OSError, match=f"its {name} is"):
                attribute(group, name, kind)
        with pytest.raises(KeyError):
            attribute(group, "absent", str)
