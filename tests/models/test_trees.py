"""Condition trees: nested dicts, lists and tuples of arrays, by their paths and back."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ensdiff import data
from ensdiff.data.manifest import Manifest
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.trees import flatten, unflatten

N = 3
TREE = "8d064514dfc1a67cd162292e68d79810528fcc14d5ddf496e33148afd90c0dbc"
CLASSES = "086142f6a14210e0781a6c69ad2e98dd80ce3574faae1291869567ce38b8056d"
NAMED = "a4e04d666a04de4c9f866ec8321eac87ae2f2f636de158d0f04691a9e32b8a36"
LEAVES = st.sampled_from([
    np.array([2, 0, 1]), np.array([0.5, -1.0, 3.0]), np.arange(12).reshape(N, 4), np.arange(6.0).reshape(N, 2, 1) / 4,
])  # fmt: skip
KEYS = st.text("a0é", min_size=1, max_size=3).filter(lambda key: key != "0")
TREES = st.recursive(
    LEAVES,
    lambda inside: st.one_of(
        st.dictionaries(KEYS, inside, min_size=1, max_size=3),
        st.lists(inside, min_size=1, max_size=12).map(tuple),
        st.lists(inside, min_size=1, max_size=2),  # three equal arrays of three rows may be one array
    ),
    max_leaves=14,
)


def tuples(tree):
    """Return the same tree with tuples for lists, written out independently."""
    if isinstance(tree, dict):
        return {key: tuples(part) for key, part in tree.items()}
    return tuple(map(tuples, tree)) if isinstance(tree, list | tuple) else tree


def same(one, other):
    """Return whether two trees have the same dicts, tuples and values."""
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@given(TREES)
@example(tuple(np.full(N, place / 2) for place in range(12)))  # "10" sorts before "2"
def test_any_tree_comes_back_everywhere(tree):
    """From its paths, data sets, their parts, manifests and descriptions, checks and null rows."""
    assert same(unflatten(flatten(tree)), tuples(tree))
    named = {
        "/".join(str(getattr(key, "key", getattr(key, "idx", None))) for key in path): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    assert set(flatten(tree)) == set(named)
    assert all(flatten(tree)[path] is leaf for path, leaf in named.items())

    items = data.arrays(np.arange(N, dtype=np.uint8).reshape(N, 1, 1), condition=tree)
    spec = items.condition_spec
    assert same(items.condition, tuples(tree))
    assert spec == ConditionSpec.of(tree) == ConditionSpec.from_dict(spec.to_dict())
    assert same(items.subset([2, 0]).condition, jax.tree.map(lambda rows: rows[[2, 0]], tuples(tree)))
    assert same(items.with_condition(items.condition).condition, items.condition)
    assert items.with_condition(tuples(tree)).digest() == items.digest()
    assert Manifest.from_bytes(items.manifest().to_bytes()).to_bytes() == items.manifest().to_bytes()
    back = items.subset([1, 2, 0]).align(items.manifest())
    assert same(back.condition, items.condition)
    lost = items.subset([1, 2]).align(items.manifest(), absent=[0]).condition
    assert same(jax.tree.map(lambda rows: rows[:1], lost), spec.null(1))

    assert same(spec.check(tree, N), items.condition)
    plain = jax.tree.map(lambda rows: rows[1].tolist(), tree)  # lists of numbers: the specification tells them apart
    one = spec.check(plain, 2)
    assert same(one, jax.tree.map(lambda rows: np.stack([rows[1], rows[1]]), items.condition))
    assert jax.tree.structure(spec.null(2)) == jax.tree.structure(items.condition)


@given(TREES, st.data())
def test_another_value_anywhere_is_another_item(tree, choose):
    items = data.arrays(np.zeros((N, 1, 1), np.uint8), condition=tree)
    leaves, structure = jax.tree.flatten(items.condition)
    place, row = choose.draw(st.integers(0, len(leaves) - 1)), choose.draw(st.integers(0, N - 1))
    changed = [leaf.copy() for leaf in leaves]
    changed[place].reshape(N, -1)[row, -1] = 1 - changed[place].reshape(N, -1)[row, -1].clip(0, 1)
    other = items.with_condition(structure.unflatten(changed))
    moved = np.flatnonzero(items.manifest().sha256 != other.manifest().sha256)
    expected = [row] if not np.array_equal(changed[place][row], leaves[place][row]) else []
    assert set(expected) <= set(moved.tolist())
    if other.condition_spec == items.condition_spec:
        assert moved.tolist() == expected


def test_dicts_and_single_arrays_keep_their_digests():
    """As computed before lists and tuples were allowed."""
    images = np.arange(N, dtype=np.uint8).reshape(N, 1, 1)
    tree = {"text": {"tokens": np.arange(6).reshape(N, 2)}, "size": np.array([1.0, 2.0, 3.0])}
    for condition, digest in ((tree, TREE), ([2, 0, 1], CLASSES), (["b", "a", "b"], NAMED)):
        assert data.arrays(images, condition=condition).digest() == digest


class Text(NamedTuple):
    tokens: np.ndarray
    mask: np.ndarray


@pytest.mark.parametrize(("tree", "message"), [
    (Text(np.zeros((N, 2)), np.zeros((N, 2))), r"the condition has the named tuple Text: .* use _asdict\(\)"),
    ({"text": [Text(np.zeros((N, 2)), np.zeros(N))]}, "condition 'text/0' has the named tuple Text"),
    ({"0": np.zeros(N), "1": np.zeros(N)}, "the condition has the keys 0, 1, like a list: give a list"),
    ([{"a/b": np.zeros(N)}], "condition '0' has the key 'a/b': expected text without '/'"),
    ([np.zeros(N)] * N, r"is a list of 3 arrays with 3 rows each: give a tuple .* or np.stack"),
    ([np.zeros(2)] * N, r"condition '0' has shape \(2,\): .* np.stack makes one array of a list of rows"),
    ((np.zeros(N), np.zeros(2)), r"condition '1' has shape \(2,\): expected \(3, ...\)"),
    ((), "the condition has shape"),
    ({"a": np.zeros(N), "b": [np.zeros(N), None]}, "condition 'b/1' has shape"),
])  # fmt: skip
def test_what_is_no_tree(tree, message):
    with pytest.raises(ValueError, match=message):
        data.arrays(np.zeros((N, 1, 1), np.uint8), condition=tree)


def test_lists_that_were_arrays_still_are():
    """Numbers, text, and in `check`, where the specification decides, also rows of arrays."""
    pixels = data.arrays(np.zeros((2, 1, 1), np.uint8))
    assert pixels.with_condition([[1, 2], [3, 4]]).condition.tolist() == [[1, 2], [3, 4]]
    assert pixels.with_condition([np.int64(1), np.int64(0)]).condition.tolist() == [1, 0]
    assert pixels.with_condition(("cat", "dog")).condition.tolist() == [0, 1]
    rows = ConditionSpec.of(np.zeros((5, 2)))
    assert rows.check([np.ones(2), np.zeros(2)], 2).tolist() == [[1.0, 1.0], [0.0, 0.0]]
    inside = ConditionSpec.of({"a": np.zeros((5, 2)), "b": (np.zeros(5),)})
    assert inside.check({"a": [np.ones(2), np.zeros(2)], "b": [[4, 5]]}, 2)["b"][0].tolist() == [4.0, 5.0]
    with pytest.raises(ValueError, match="has the arrays '': expected 'a', 'b/0'"):
        inside.check((np.zeros(2), np.zeros(2)), 2)
