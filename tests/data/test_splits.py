"""Index streams: pure functions per member that visit each item once per epoch; masks equal the code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensdiff.codes import Code
from ensdiff.codes.permute_jax import wide
from ensdiff.data import Splits, arrays, batch_indices, splits_jax


def build(items=30, groups=None, members=6, seed=0, weight=3):
    dataset = arrays(np.zeros((items, 2, 2), np.uint8), groups)
    return Splits.build(dataset, Code.balanced(members, dataset.units, weight, seed=seed))


def test_members_see_exactly_their_units():
    groups = np.arange(60) % 12
    splits = build(60, groups)
    matrix = splits.code.matrix()
    for k, items in enumerate(splits.items_of_member):
        assert items.tolist() == [i for i in range(60) if matrix[groups[i], k]]


@given(st.integers(8, 40), st.integers(1, 7), st.integers(0, 5))
def test_each_item_once_per_epoch(items, batch, seed):
    splits = build(min(items, 20), members=6, seed=seed)
    steps = 60
    stream = np.concatenate([batch_indices(splits, seed, s, batch) for s in range(steps)], axis=1)
    for k, own in enumerate(splits.items_of_member):
        whole = stream.shape[1] // len(own)
        epochs = stream[k, : whole * len(own)].reshape(whole, -1)
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(own, (whole, 1)))


def test_streams_are_pure_and_differ_by_member_epoch_and_seed():
    splits = build(20, members=6)
    a = batch_indices(splits, 0, 17, 5)
    np.testing.assert_array_equal(a, batch_indices(splits, 0, 17, 5))
    np.testing.assert_array_equal(a[2:4], batch_indices(splits, 0, 17, 5, slice(2, 4)))
    assert (a != batch_indices(splits, 1, 17, 5)).any()
    n = len(splits.items_of_member[0])
    first, second = (batch_indices(splits, 0, epoch, n, slice(0, 1))[0] for epoch in (0, 1))
    assert first.tolist() != second.tolist()


def test_a_member_does_not_notice_units_it_never_saw():
    """If a unit is dropped from the data, members that never saw it draw the same images at every step."""
    images = np.arange(15, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    matrix = Code.balanced(6, 15, 3, seed=0).matrix()
    with_all = Splits.build(arrays(images), Code.from_matrix(matrix))
    left = np.delete(np.arange(15), 4)
    without = Splits.build(arrays(images[left]), Code.from_matrix(matrix[left]))
    for step in range(20):
        before = images[batch_indices(with_all, 0, step, 3), 0, 0]
        after = images[left][batch_indices(without, 0, step, 3), 0, 0]
        blind = matrix[4] == 0
        np.testing.assert_array_equal(before[blind], after[blind])
    assert not blind.all()


def test_mask_comes_from_the_code():
    splits = build(20)
    own = batch_indices(splits, 0, 3, 8)
    assert (splits.mask(own) == 1).all()
    everything = np.tile(np.arange(20), (6, 1))
    np.testing.assert_array_equal(splits.mask(everything), splits.code.matrix().T)
    np.testing.assert_array_equal(splits.mask(everything[:2], slice(3, 5)), splits.code.matrix().T[3:5])


def test_mask_of_a_code_too_large_to_keep(monkeypatch):
    monkeypatch.setattr("ensdiff.data.splits.KEPT_BYTES", 0)
    test_mask_comes_from_the_code()


def test_code_and_data_must_fit():
    with pytest.raises(ValueError, match="for 7 units, the data set has 5"):
        Splits.build(arrays(np.zeros((5, 2, 2))), Code.balanced(6, 7, 3))
    code = Code.from_matrix([[1, 0], [0, 1]], names=["zed", "ada"])
    people = arrays(np.zeros((3, 2, 2)), groups=["zed", "ada", "ada"])
    with pytest.raises(ValueError, match="unit 0 is 'zed' in the code and 'ada' in the data"):
        Splits.build(people, code)
    assert Splits.build(people, code.reordered(people.unit_names)).items_of_member[0].tolist() == [0]


LISTS = build(40, np.arange(40) % 17, members=6)
"""Groups of different sizes, so that members have different numbers of items."""


@functools.lru_cache
def indices_in_jax(batch, members, positions):
    """Return the twin of `batch_indices`, compiled, as a function of the seed, a step and the number of later steps."""
    lists = splits_jax.lists_of(LISTS, slice(*members), 30)
    member_K, position_B = jnp.arange(*members), jnp.arange(*positions)

    @jax.jit
    def at(seed, first, later):
        place = splits_jax.place_at(first, batch, jnp.asarray(lists.size_K))
        return splits_jax.batch_indices(lists, seed, place, later, batch, member_K, position_B)

    return at


@pytest.mark.parametrize(("batch", "members", "positions"), [
    (1, (0, 6), (0, 1)),
    (5, (2, 4), (1, 3)),
    (1000, (0, 6), (900, 1000)),  # several epochs in one batch
])  # fmt: skip
@given(seed=st.integers(-(2**70), 2**70), first=st.integers(0, 2**31 - 2**11), later=st.integers(0, 1024))
def test_indices_in_jax_are_those_of_numpy(batch, members, positions, seed, first, later):
    """Items of any seed, step and number of steps after it, for some members and positions."""
    assert len({len(items) for items in LISTS.items_of_member}) > 1
    found = indices_in_jax(batch, members, positions)(wide(seed), np.int32(first), np.int32(later))
    expected = batch_indices(LISTS, seed, first + later, batch, slice(*members))[:, slice(*positions)]
    np.testing.assert_array_equal(found, expected)


def test_mask_in_jax_comes_from_the_code():
    """Lists of wrong items do not change it."""
    lists = splits_jax.lists_of(LISTS, slice(1, 4), 40)
    everything = np.tile(np.arange(40), (3, 1))
    expected = LISTS.mask(everything, slice(1, 4))
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(splits_jax.mask(lists, jnp.asarray(everything)), expected)
    wrong = lists._replace(items_KI=np.zeros_like(lists.items_KI))
    np.testing.assert_array_equal(splits_jax.mask(wrong, jnp.asarray(everything)), expected)
