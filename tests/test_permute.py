"""The keyed permutation: a bijection for every size and key, and one that looks random."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ensdiff.permute import _permute_large, derive_key, permute

keys = st.integers(0, 2**64 - 1)


@given(st.integers(1, 3000), keys)
def test_bijection(size, key):
    assert sorted(permute(np.arange(size), size, np.uint64(key)).tolist()) == list(range(size))


@given(st.integers(1, 200), keys)
def test_bijection_of_large_integers(size, key):
    assert sorted(_permute_large(np.arange(size), size, key).tolist()) == list(range(size))


@given(st.integers(2**62, 2**260), keys)
def test_huge_sizes_stay_inside_and_distinct(size, key):
    out = permute(np.arange(50), size, key)
    assert len(set(out.tolist())) == 50
    assert all(0 <= x < size for x in out)


@given(st.integers(2**40, 2**62 - 1), keys)
def test_large_sizes_stay_inside_and_distinct(size, key):
    index = np.random.default_rng(0).integers(0, size, 1000)
    out = permute(index, size, np.uint64(key))
    assert len(np.unique(out)) == len(np.unique(index))
    assert (out < size).all()


def test_broadcasting_equals_one_at_a_time():
    sizes, keys = np.array([[5], [9]]), derive_key(3, np.arange(2)[:, None], np.arange(4)[None, :])
    index = np.array([[0, 1, 2, 3]])
    out = permute(index, sizes, keys)
    for k in range(2):
        for b in range(4):
            assert out[k, b] == permute(int(index[0, b]), int(sizes[k, 0]), keys[k, b])


def test_keys_give_different_permutations():
    assert (permute(np.arange(1000), 1000, 1) == permute(np.arange(1000), 1000, 2)).mean() < 0.02


def test_images_are_uniform():
    """Where index 0 goes, over keys: chi-square over 20 cells."""
    out = permute(0, 20, derive_key(0, np.arange(20_000)))
    assert stats.chisquare(np.bincount(out.astype(int), minlength=20)).pvalue > 1e-4


def test_neighbours_are_independent():
    out = permute(np.arange(100_000), 2**31 - 1, 5).astype(float)
    assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 0.02


def test_derived_keys_depend_on_order_and_every_part():
    assert len({int(derive_key(a, b)) for a in range(30) for b in range(30)}) == 900
    assert derive_key(-1) != derive_key(1)


@pytest.mark.parametrize("index", [-1, 5])
def test_outside_is_an_error(index):
    with pytest.raises(ValueError, match=r"outside of \[0, 5\)"):
        permute(np.array([index]), 5, 0)
