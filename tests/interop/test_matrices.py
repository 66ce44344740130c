"""Code matrices from files, in particular from untrusted pickles."""

import contextlib
import json
import os
import pickle

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ensdiff
from ensdiff.interop import read_code
from ensdiff.interop.matrices import read_pickled_array

MATRIX = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]])


@given(
    arrays.arrays(st.sampled_from(["?", "u1", "<i4", ">i8", "<f4", "f8"]), arrays.array_shapes(min_dims=1, min_side=0)),
    st.integers(0, pickle.HIGHEST_PROTOCOL),
    st.booleans(),
)
def test_any_pickled_array_is_read_as_numpy_would(array, protocol, transposed):
    array = array.T if transposed else array
    got = read_pickled_array(pickle.dumps(array, protocol=protocol))
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize(
    "name", ["code.npy", "code.npz", "several.npz", "names.npz", "code.pkl", "list.pkl", "code.json"]
)
def test_every_kind_of_file(tmp_path, name):
    path = tmp_path / name
    if name == "code.npy":
        np.save(path, MATRIX.astype(float))
    elif name == "code.npz":
        np.savez(path, anything=MATRIX)
    elif name == "several.npz":
        np.savez(path, code=MATRIX, other=np.zeros(3))
    elif name == "names.npz":
        np.savez(path, code=MATRIX, names=["zed", "ada", "bob"])
    elif name == "code.json":
        path.write_text(json.dumps(ensdiff.Code.from_matrix(MATRIX).to_dict()))
    else:
        path.write_bytes(pickle.dumps(MATRIX.tolist() if name == "list.pkl" else MATRIX.astype(bool)))
    code = read_code(path)
    np.testing.assert_array_equal(code.matrix(), MATRIX)
    assert code.names == (("zed", "ada", "bob") if name == "names.npz" else None)


class Call:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_pickles_of_anything_else_are_refused_and_not_run(tmp_path):
    made = tmp_path / "made"
    for value, message in (
        (Call(os.mkdir, str(made)), r"posix.mkdir; it was not run|nt.mkdir; it was not run"),
        (Call(eval, f"__import__('os').mkdir({str(made)!r})"), "builtins.eval; it was not run"),
        (Call(np.load, str(tmp_path)), "it was not run"),
        (Call(np.ndarray, (10**15,)), "not a readable pickle|dtype"),
        (Call(bytes, 10**15), "not a readable pickle"),
        (np.array([Call(os.mkdir, str(made))], object), "dtype 'O8'"),
        (np.array(["a"]), "dtype 'U1'"),
        (np.array([(1, 2)], dtype=[("a", int), ("b", int)]), "dtype 'V16'"),
        ({"code": [1]}, "a pickled dict: expected an array of numbers"),
        ([["a"]], "a pickled list with a str: expected numbers"),
        ([[1], None], "a pickled list with a NoneType: expected numbers"),
    ):
        path = tmp_path / "code.pkl"
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(ValueError, match=message):
            read_code(path)
        assert not made.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04]r\xff\xff\xff\x03.", "a pickle of 9 bytes with memo index 67108863 at byte 3: it is damaged"),
        (b"]p67108863\n.", "memo index 67108863"),
        (b"]p-1\n.", "memo index -1"),
        (b"\x80\x05\x96" + (2**29).to_bytes(8, "little") + b".", "truncated, or damaged.*536870912 bytes"),
    ],
    ids=["binary index", "index", "negative index", "bytes"],
)  # fmt: skip
def test_a_pickle_cannot_ask_for_more_memory_than_it_holds(content, message):
    """Found by fuzzing: the C unpickler allocates twice as many entries as a memo index states, here 1 GiB."""
    with pytest.raises(pickle.UnpicklingError, match=message):
        read_pickled_array(content)


def nested(depth, inner):
    for _ in range(depth):
        inner = [inner, inner]
    return inner


def test_shared_lists_do_not_expand_beyond_the_file(monkeypatch):
    """A pickle stores a shared list once, so a few hundred bytes can claim an array of 2^32 numbers or more."""
    content = pickle.dumps(nested(31, [1, 0]))
    assert len(content) < 400
    for value, message in (
        (nested(31, [1, 0]), "would become an array of more than 1048576 numbers"),
        (nested(21, [1]), "would become an array of more than 1048576 numbers"),
        (nested(30, []), "would become an array of more than"),  # holds no numbers, but that many lists
        ([nested(12, [1])] * 1000, "would become an array of more than"),
    ):
        with pytest.raises(pickle.UnpicklingError, match=message):
            read_pickled_array(pickle.dumps(value))
    deep = [1]
    for _ in range(40):
        deep = [deep]
    itself = [1]
    itself.append(itself)
    for value in (deep, itself):
        with pytest.raises(pickle.UnpicklingError, match="nested more than 32 deep, or in themselves"):
            read_pickled_array(pickle.dumps(value))
    # allowed: rows that are one shared list, and as many numbers as the file has bytes
    monkeypatch.setattr("ensdiff.interop.matrices.FREE", 20_000)
    row = [0, 1] * 8
    np.testing.assert_array_equal(read_pickled_array(pickle.dumps([row] * 1000)), [row] * 1000)
    np.testing.assert_array_equal(read_pickled_array(pickle.dumps((tuple(row), row))), [row] * 2)
    many = np.arange(60_000).reshape(3, -1) % 2
    np.testing.assert_array_equal(read_pickled_array(pickle.dumps(many.tolist())), many)


def test_a_long_string_in_a_list_does_not_make_all_entries_long():
    with pytest.raises(pickle.UnpicklingError, match="a pickled list with a str"):
        read_pickled_array(pickle.dumps(["a" * 10**6] + ["b"] * 1000))  # would take 4 GB as an array of strings


@given(st.data())
def test_damaged_pickles_raise_only_unpickling_errors(data):
    content = bytearray(pickle.dumps(MATRIX, protocol=data.draw(st.integers(0, pickle.HIGHEST_PROTOCOL))))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(pickle.UnpicklingError):
        read_pickled_array(bytes(content))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pkl", ".json"])
def test_damaged_and_foreign_files_are_named(tmp_path, suffix):
    path = tmp_path / f"code{suffix}"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_code(path)
    for content in (b"", b"nonsense", b"\x93NUMPY\x01\x00", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"code{suffix}"):
            read_code(path)


def test_other_errors(tmp_path):
    np.savez(tmp_path / "two.npz", a=MATRIX, b=MATRIX)
    with pytest.raises(ValueError, match=r"holds the arrays \['a', 'b'\]: choose one"):
        read_code(tmp_path / "two.npz")
    with pytest.raises(ValueError, match="there is no 'c'"):
        read_code(tmp_path / "two.npz", "c")
    np.testing.assert_array_equal(read_code(tmp_path / "two.npz", "b").matrix(), MATRIX)
    np.save(tmp_path / "code.npy", np.array([[1, 2]]))
    with pytest.raises(ValueError, match=r"code.npy: code\[0, 1\] is 2"):
        read_code(tmp_path / "code.npy")
    with pytest.raises(ValueError, match="key='b': .*code.npy holds one code"):
        read_code(tmp_path / "code.npy", "b")
    (tmp_path / "code.txt").write_text("1 0")
    with pytest.raises(ValueError, match=r"expected a code matrix in a file of type .npy"):
        read_code(tmp_path / "code.txt")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="objects.npy"):
        read_code(tmp_path / "objects.npy")
