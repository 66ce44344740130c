"""Null rows that are not zeros: equal by content, kept by descriptions, and absent from old ones."""

import dataclasses
import json

import numpy as np
import pytest

import ensdiff
from ensdiff.data.manifest import spec_digest
from ensdiff.models.condition import ConditionSpec, Leaf
from ensdiff.runs.description import describe, from_description
from tests.helpers import random_ensemble

TOKENS = ConditionSpec.of({"kind": np.array([0, 2]), "text": np.zeros((2, 3, 2), np.float32)})
ROW = np.arange(6, dtype=np.float32).reshape(3, 2) / 8
TOLD = TOKENS.with_null({"text": ROW}, encoder="a text encoder")


def test_null_rows_are_the_given_ones():
    rows = TOLD.null(4)
    np.testing.assert_array_equal(rows["text"], np.stack([ROW] * 4))
    assert rows["text"].dtype == np.float32
    assert rows["kind"].tolist() == [3] * 4
    assert TOKENS.null(1)["text"].any() == np.False_
    assert TOLD.captions(TOLD.null(1)) == ["kind none, text none"]
    assert TOLD.captions(TOLD.check({"kind": 1, "text": 0 * ROW}, 1)) == ["kind 1, text 3x2 numbers"]
    integers = ConditionSpec.of(np.zeros((2, 4), int)).with_null([7, 0, 0, 1])
    assert integers.null(1).tolist() == [[7, 0, 0, 1]]
    assert integers.null(1).dtype == np.int32


def test_specifications_are_equal_by_content():
    again = TOKENS.with_null({"text": np.array(ROW)[None].astype(np.float64)}, encoder="a text encoder")
    assert again == TOLD
    assert hash(again) == hash(TOLD)
    assert len({TOKENS, TOLD, TOKENS.with_null({"text": ROW}), TOKENS.with_null({"text": ROW + 1})}) == 4
    assert TOKENS.with_null({"text": -0.0 * ROW}) == TOKENS  # zeros are the default, whatever their sign
    assert TOKENS.with_null({"text": ROW * [[1, -0.0]]}) == TOKENS.with_null({"text": ROW * [[1, 0.0]]})
    assert len(repr(TOLD)) < 500  # and yet different, because kept pieces of computations are told apart by it
    assert len({repr(spec) for spec in (TOKENS, TOLD, TOKENS.with_null({"text": ROW + 1}, "a text encoder"))}) == 3
    assert repr(Leaf(classes=2)) == "Leaf(path='', shape=(), dtype='int32', classes=2, names=None)"


def test_descriptions_keep_them_and_old_ones_do_not_change():
    text = json.loads(json.dumps(TOLD.to_dict()))
    assert ConditionSpec.from_dict(text) == TOLD
    assert TOKENS.to_dict() == [
        {"path": "kind", "shape": (), "dtype": "int32", "classes": 3, "names": None},
        {"path": "text", "shape": (3, 2), "dtype": "float32", "classes": None, "names": None},
    ]
    for wrong, message in (
        ("AAAA", "a null row of 3 bytes: expected float32 of shape"), ("&", "expected text in base64"), (7, "base64"),
        ("AADAfwAAAAAAAAAAAAAAAAAAAAAAAAAA", "a null row with NaN"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ConditionSpec.from_dict([text[0], {**text[1], "null": wrong}])


def test_runs_and_fingerprints_tell_them_apart():
    """The null row changes what guidance computes, so ensembles with another one are others."""
    vectors = ConditionSpec((Leaf(shape=(2,), dtype="float32"),))
    model = ensdiff.UNetConfig(channels=4, norm_groups=2, multipliers=(1,), condition_width=2)
    plain = random_ensemble(model=model, condition=vectors)
    told = dataclasses.replace(plain, condition=vectors.with_null([0.5, 0.0]))
    assert told.fingerprint != plain.fingerprint
    back = from_description(json.loads(json.dumps(describe(told))), told.params)
    assert back.condition == told.condition
    assert back.fingerprint == told.fingerprint
    zeros = dataclasses.replace(plain, condition=vectors.with_null([0.0, 0.0]))
    assert zeros.fingerprint == plain.fingerprint
    np.testing.assert_array_equal(told.conditions(None, 2), [[0.5, 0.0]] * 2)


@pytest.mark.parametrize(("tree", "message"), [
    ({"kind": 3}, "a null row for the condition 'kind': expected some of the arrays 'text'"),
    ({"other": ROW}, "a null row for the condition 'other'"),
    ({"text": ROW[:2]}, r"has shape \(2, 2\)"),
    ({"text": ROW * np.nan}, "holds NaN"),
    ({"text": np.stack([ROW] * 2)}, r"has shape \(2, 3, 2\)"),
    (ROW, "a null row for the condition ''"),
])  # fmt: skip
def test_null_rows_that_do_not_fit(tree, message):
    with pytest.raises(ValueError, match=message):
        TOKENS.with_null(tree)


def test_classes_have_their_own():
    with pytest.raises(ValueError, match="a null row for classes, whose null row is their number"):
        Leaf(classes=2, null_bytes=b"\x01\0\0\0")
    with pytest.raises(ValueError, match="null_bytes='x': expected bytes or None"):
        Leaf(shape=(1,), dtype="float32", null_bytes="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give what its encoder makes of the text"):
        TOLD.check({"kind": 1, "text": "a cat"}, 1)


def test_data_sets_carry_them(tmp_path, rng):
    images, text = np.zeros((4, 2, 2), np.uint8), rng.normal(size=(4, 3, 2)).astype(np.float16)
    plain = ensdiff.data.arrays(images, condition=text)
    told = plain.with_condition(text, null=ROW, encoder="clip")
    assert told.subset([2, 0]).condition_spec.leaves[0].encoder == "clip"
    assert told.digest() != plain.digest()
    assert plain.with_condition(text, null=0 * ROW).digest() == plain.digest()
    assert ensdiff.data.arrays(images, condition=text, null=ROW).digest() not in (plain.digest(), told.digest())
    assert spec_digest(told.condition_spec) == told.manifest().condition
    found = told.subset([0, 2, 3]).align(told.manifest(), absent=[1])
    np.testing.assert_array_equal(found.condition[1], ROW)
    with pytest.raises(ValueError, match="null rows and encoder"):
        plain.align(told.manifest())
    with pytest.raises(ValueError, match="encoder='clip' without null="):
        plain.with_condition(text, encoder="clip")
    with pytest.raises(ValueError, match="but no condition"):
        plain.with_condition(None, null=ROW)


@pytest.mark.parametrize("read", [ensdiff.data.latents, ensdiff.data.npz])
def test_files_of_latents_hold_them(tmp_path, rng, read):
    z, text = rng.normal(size=(4, 2, 2, 3)).astype(np.float16), rng.normal(size=(2, 3, 2)).astype(np.float16)
    rows, about = np.array([1, 0, 1, 1]), {"condition_encoder": "clip"}
    np.savez(tmp_path / "z.npz", latents=z, condition=text, condition_rows=rows, condition_null=ROW, **about)
    found = read(tmp_path / "z.npz")
    np.testing.assert_array_equal(found.condition, text[rows].astype(np.float32))
    assert found.condition_spec == ConditionSpec.of(text.astype(np.float32)).with_null(ROW, "clip")
    np.savez(tmp_path / "tree.npz", latents=z, **{"c/a": text[rows], "c/b": [0, 1, 0, 1], "c_null/a": ROW})
    tree = read(tmp_path / "tree.npz", condition="c").condition_spec
    np.testing.assert_array_equal(tree.null(1)["a"], ROW[None])
    np.savez(tmp_path / "z.npz", latents=z, condition=text, condition_rows=rows + 1)
    with pytest.raises(ValueError, match="condition_rows has dtype int64 and shape"):
        read(tmp_path / "z.npz")
