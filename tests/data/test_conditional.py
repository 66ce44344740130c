"""Data sets of latents and of items with conditions: what is kept, and what counts as the same item."""

import dataclasses
import hashlib
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensdiff import data
from ensdiff.certificate.sections import copies
from ensdiff.data import checked
from ensdiff.data.manifest import Manifest, hash_item
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.space import Latents


def conditional(shades, classes, units=None, **options):
    images = np.asarray(shades, np.uint8).reshape(-1, 1, 1)
    return data.arrays(images, units, condition=np.asarray(classes), classes=5, **options)


def test_the_hash_and_manifest_of_plain_pixels_are_those_of_format_1(rng):
    """Runs of earlier versions store these bytes, and must be found again."""
    images = rng.integers(0, 256, (3, 2, 4, 3), dtype=np.uint8)
    plain = data.arrays(images, groups=["a", "b", "a"])
    lines = [f"{unit} {hashlib.sha256(image.tobytes()).hexdigest()}\n" for unit, image in zip([0, 1, 0], images)]  # noqa: B905
    text = "ensdiff data manifest 1: 3 items of 2x4x3\n" + "".join(lines)
    assert plain.manifest().to_bytes() == text.encode()
    assert plain.digest() == hashlib.sha256(text.encode()).hexdigest()
    assert plain.with_condition([0, 1, 2]).with_condition(None).digest() == plain.digest()


def test_the_hash_covers_dtype_and_condition():
    """Written out independently: another caption, class or dtype is another item."""
    item = np.arange(4, dtype=np.float16).reshape(1, 1, 4)
    row = {"b": np.int32(3), "a": np.array([1.5], np.float32)}
    text = b"ensdiff item 2: float16\n" + item.tobytes()
    assert hash_item(item) == hashlib.sha256(text).hexdigest()
    text += b'\ncondition "a": float32 (1,)\n' + np.float32(1.5).tobytes()
    text += b'\ncondition "b": int32 ()\n' + np.int32(3).tobytes()
    assert hash_item(item, row) == hashlib.sha256(text).hexdigest()
    assert hash_item(item.astype(">f2"), row) == hash_item(item, row)
    pixels = np.zeros((1, 1, 4), np.uint8)
    assert len({hash_item(x) for x in (pixels, pixels.astype(np.float16), pixels.astype(np.float32))}) == 3


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
@pytest.mark.parametrize("classes", [None, [0, 2, 1]])
def test_manifests_of_every_kind_come_back_from_bytes(dtype, classes):
    space = None if dtype == np.uint8 else Latents()
    given = data.arrays(np.arange(12).reshape(3, 2, 2, 1).astype(dtype), condition=classes, space=space)
    manifest = given.manifest()
    back = Manifest.from_bytes(manifest.to_bytes())
    assert back.to_bytes() == manifest.to_bytes()
    assert (back.dtype, back.condition, back.shape) == (manifest.dtype, manifest.condition, (2, 2, 1))
    np.testing.assert_array_equal(back.contents, manifest.contents)
    assert (manifest.sha256_alone is None) == (classes is None)
    plain = dtype == np.uint8 and classes is None
    first = f"ensdiff data manifest {1 if plain else 2}: 3 items of 2x2x1{'' if plain else ' ' + np.dtype(dtype).name}"
    assert manifest.to_bytes().startswith(first.encode())


@pytest.mark.parametrize("text", [
    b"ensdiff data manifest 1: 1 items of 1x1x1 uint8\n0 %s\n", b"ensdiff data manifest 2: 1 items of 1x1x1\n0 %s\n",
    b"ensdiff data manifest 2: 1 items of 1x1x1 float64\n0 %s\n",
    b"ensdiff data manifest 2: 1 items of 1x1x1 float16\n0 %s %s\n",
    b"ensdiff data manifest 2: 1 items of 1x1x1 float16, condition %s\n0 %s\n",
])  # fmt: skip
def test_other_first_lines_are_no_manifest(text):
    with pytest.raises(ValueError, match="line [12] is not"):
        Manifest.from_bytes(text.replace(b"%s", b"ab" * 32))


def test_conditions_follow_their_items():
    given = conditional([9, 8, 7, 6], [0, 3, 4, 1], ["a", "b", "a", "c"], labels=["w", "x", "y", "z"])
    part = given.subset([3, 1, 0])
    assert part.condition.tolist() == [1, 3, 0]
    assert part.condition_spec == given.condition_spec
    assert part.digest() == conditional([6, 8, 9], [1, 3, 0], ["c", "b", "a"]).digest()
    assert given.regroup(None).condition.tolist() == [0, 3, 4, 1]
    assert given.conditions_of(np.array([[0, 1], [2, 3]])).tolist() == [[0, 3], [4, 1]]
    mixed = given.subset([2, 0, 3, 1])
    found = mixed.align(given.manifest())
    assert found.condition.tolist() == [0, 3, 4, 1]
    assert found.labels.tolist() == ["w", "x", "y", "z"]
    assert found.digest() == given.digest()
    assert repr(found) == "Dataset(arrays: 4 images of 1x1x1 in 3 units, conditioned on 5 classes)"


@given(st.data())
def test_alignment_does_not_depend_on_the_order(choose):
    """Of equal pictures with any conditions, each goes back to a place with its own condition and unit."""
    count = choose.draw(st.integers(2, 10))
    numbers = st.lists(st.integers(0, 2), min_size=count, max_size=count)
    shades, classes = choose.draw(numbers), choose.draw(numbers)
    whole = conditional(shades, classes, labels=np.arange(count))
    mixed = whole.subset(choose.draw(st.permutations(range(count))))
    found = mixed.align(whole.manifest())
    assert found.images.ravel().tolist() == shades
    assert found.condition.tolist() == classes
    assert sorted(found.labels.tolist()) == list(range(count))
    assert found.digest() == whole.digest()


def test_trees_of_conditions():
    tree = {"text": {"tokens": np.arange(6).reshape(3, 2)}, "size": np.array([1.0, 2.0, 3.0])}
    given = data.arrays(np.zeros((3, 2, 2), np.uint8), condition=tree)
    assert given.condition["text"]["tokens"].dtype == np.int32
    assert given.condition["size"].dtype == np.float32
    row = given.conditions_of([2, 0])
    assert row["text"]["tokens"].tolist() == [[4, 5], [0, 1]]
    assert row["size"].tolist() == [3.0, 1.0]
    found = given.subset([1, 2]).align(given.manifest(), absent=[0])
    assert found.condition["text"]["tokens"].tolist() == [[0, 0], [2, 3], [4, 5]]
    other = given.with_condition({**tree, "size": tree["size"] + 1})
    assert not set(other.manifest().sha256) & set(given.manifest().sha256)
    assert set(other.manifest().contents) == set(given.manifest().contents)
    assert "size (one number) and text/tokens (2 numbers)" in repr(given)


def test_an_absent_item_has_no_condition():
    given = conditional([9, 8, 7], [0, 3, 4])
    found = given.subset([0, 2]).align(given.manifest(), absent=[1])
    assert found.condition.tolist() == [0, 5, 4]
    assert found.condition_spec.captions(found.condition) == ["0", "none", "4"]
    assert found.digest() == given.digest()


def test_another_condition_makes_another_item():
    """Copies with other conditions are told apart, and an item whose condition changed is missing."""
    given = conditional([7, 7, 7], [0, 1, 2], ["a", "b", "c"])
    assert given.subset([2, 0, 1]).align(given.manifest()).labels is None
    turned = given.subset([2, 0, 1])
    assert turned.places(given.manifest()).tolist() == [1, 2, 0]
    message = r"1 of 3 training items .* item 1 of unit 1 \(1 of them are there, but with another condition\)"
    with pytest.raises(ValueError, match=message):
        conditional([7, 7, 7], [0, 4, 2], ["a", "b", "c"]).align(given.manifest())


def test_other_kinds_of_data_are_named():
    pixels = data.arrays(np.zeros((2, 2, 2), np.uint8))
    classes = pixels.with_condition([0, 1])
    latents = data.arrays(np.zeros((2, 2, 2, 1), np.float16), space=Latents())
    for ours, theirs, message in (
        (pixels, classes, "the data have no condition, but the run was trained with one: .*with_condition"),
        (classes, pixels, "the data have a condition, but the run was trained without one"),
        (pixels.with_condition([0, 1], classes=3), classes, "another kind of condition"),
        (pixels.with_condition(["x", "y"]), classes, "another kind of condition"),
        (latents, pixels, "the data are float16 latents, the run's are pixels of 8 bits"),
        (pixels, latents, "the data are pixels of 8 bits, the run's are float16 latents"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.align(theirs.manifest())


def test_a_certificate_finds_copies_with_other_conditions():
    manifest = conditional([7, 7, 5], [0, 1, 1], ["a", "b", "c"]).manifest()
    rows = np.ones((3, 2), np.uint8)
    run = types.SimpleNamespace(manifest=manifest, code=types.SimpleNamespace(rows=lambda units: rows[units]))
    facts = types.SimpleNamespace(run=run, units=(0,), survivors=[1], items=lambda: np.array([0]))
    assert copies(facts) == [{"item": 1, "unit": 1, "of_unit": 0}]


@pytest.mark.parametrize(("condition", "options", "message"), [
    ([0, 1], {}, r"shape \(2,\): expected \(3, ...\), one row per item"),
    ([0, 1, 7], {"classes": 5}, "has the class 7: expected 0 .. 4, counted from 0"),
    ([0, -1, 1], {}, "has the class -1"),
    (["cat", "", "dog"], {}, "1 of 3 images have no condition"),
    (["cat", "dog", "elk"], {"names": ["cat", "dog"]}, "'elk' is no class: expected some of cat, dog"),
    ([[0.5], [float("nan")], [1.0]], {}, "holds NaN, infinity"),
    (np.array([1, 2, 3], object), {}, "array of objects"),
    ({"a/b": [0, 1, 2]}, {}, "without '/'"),
    (None, {"classes": 3}, "no condition: give"),
])  # fmt: skip
def test_bad_conditions(condition, options, message):
    with pytest.raises(ValueError, match=message):
        data.arrays(np.zeros((3, 2, 2), np.uint8)).with_condition(condition, **options)


def test_labels_as_condition():
    named = data.arrays(np.zeros((4, 2, 2), np.uint8), labels=["dog", "cat", "dog", "elk"])
    given = named.with_condition(named.labels)
    assert given.condition.tolist() == [1, 0, 1, 2]
    assert given.condition_spec == ConditionSpec.of(np.zeros(4, int), names=("cat", "dog", "elk"))
    assert named.with_condition(named.labels, names=["elk", "dog", "cat"]).condition.tolist() == [1, 2, 1, 0]
    assert named.with_condition([True, False, True, True]).condition_spec.leaves[0].names == ("False", "True")
    with pytest.raises(ValueError, match="use data.with_condition"):
        dataclasses.replace(named, condition=np.zeros(4, np.int32))


def test_latents_are_kept_as_they_are(rng):
    values = rng.normal(0, 9, (3, 2, 2, 5))
    for dtype, kept in ((np.float64, np.float32), (np.float32, np.float32), (np.float16, np.float16)):
        given = data.arrays(values.astype(dtype), space=Latents(scale=(0.5,)))
        assert given.images.dtype == kept
        np.testing.assert_array_equal(given.images, values.astype(dtype).astype(kept))
    part = given.subset([2, 0])
    assert part.space == Latents(scale=(0.5,))
    assert repr(part) == "Dataset(arrays: 2 latents of 2x2x5 in 2 units)"
    found = part.align(given.manifest(), absent=[1])
    assert found.space == given.space
    assert not found.images[1].any()


@pytest.mark.parametrize(("latents", "space", "message"), [
    (np.zeros((3, 2, 2, 4), np.uint8), Latents(), "the latents have dtype uint8"),
    (np.zeros((3, 2, 2, 4)), Latents(mean=(0.0, 0.0)), "one for each of the 4 channels"),
    (np.full((3, 2, 2, 4), 1e39), Latents(), "latent 0 holds NaN or numbers beyond float32"),
    (np.zeros((3, 2, 2, 4)), None, "have 4 channels: expected 1 or 3, channels last; give space="),
])  # fmt: skip
def test_bad_latents(latents, space, message):
    with pytest.raises(ValueError, match=message):
        data.arrays(latents, space=space)
    with pytest.raises(ValueError, match="expected uint8 for Pixels"):
        data.Dataset(np.zeros((2, 1, 1, 1), np.float16), np.arange(2), ["a", "b"])


def test_memory_maps_are_read_in_parts(tmp_path, monkeypatch):
    """A file that is larger than memory is never read as a whole, neither by checks nor by hashes."""
    path = tmp_path / "latents.npy"
    values = np.arange(40 * 8, dtype=np.float16).reshape(40, 2, 2, 2)
    np.save(path, values)
    largest = []

    class Watched(np.memmap):
        def astype(self, *args, **kwargs):
            largest.append(self.nbytes)
            return super().astype(*args, **kwargs)

    monkeypatch.setattr(checked, "CHECKED_BYTES", 5 * values[0].nbytes)
    mapped = np.load(path, mmap_mode="r").view(Watched)
    given = data.arrays(mapped, space=Latents())
    assert isinstance(given.images, np.memmap)
    assert np.shares_memory(given.images, mapped)
    assert max(largest) == 5 * values[0].nbytes
    assert len(largest) == 8
    assert np.shares_memory(given.subset(range(10, 30)).images, mapped)
    assert given.digest() == data.arrays(values, space=Latents()).digest()
    assert given.align(given.manifest()).images is given.images
    values[33, 1, 1, 1] = np.inf
    with pytest.raises(ValueError, match="latent 33 holds NaN or numbers beyond float16"):
        data.arrays(values, space=Latents())


def test_npz_of_latents_and_conditions(tmp_path, rng):
    path = tmp_path / "z.npz"
    latents = rng.normal(size=(3, 2, 2, 4)).astype(np.float16)
    more = {"mean": [0.0, 1, 2, 3], "scale": 0.5, "encoder": "vae", "class_names": ["cat", "dog"]}
    np.savez(path, latents=latents, condition=[1, 0, 1], who=["a", "b", "a"], **more)
    given = data.npz(path, groups="who")
    np.testing.assert_array_equal(given.images, latents)
    assert given.space == Latents((0.0, 1.0, 2.0, 3.0), (0.5,), "vae")
    assert given.condition_spec.captions(given.condition) == ["dog", "cat", "dog"]
    assert given.units == 2
    np.savez(path, z=latents, **{"c/a": [0, 1, 2], "c/b/x": np.ones((3, 2))})
    tree = data.npz(path, latents="z", condition="c").condition
    assert tree["a"].tolist() == [0, 1, 2]
    assert tree["b"]["x"].shape == (3, 2)
    with pytest.raises(ValueError, match="no array 'd'"):
        data.npz(path, latents="z", condition="d")
    with pytest.raises(ValueError, match="expected one of them"):
        data.npz(path, "z", latents="z")
    np.savez(path, latents=latents, scale=["a"])
    with pytest.raises(ValueError, match="scale has dtype <U1"):
        data.npz(path)
    np.savez(path, images=np.zeros((3, 2, 2), np.uint8), latents=latents)
    assert data.npz(path).images.dtype == np.uint8
