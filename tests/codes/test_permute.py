"""The keyed permutation: it is a bijection for every size and key, and looks random."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ensdiff.codes.permute import _permute_large, derive_key, permute

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


@pytest.mark.parametrize("size", [1, 2, 3, 2**62 - 1, 2**62, 2**62 + 1])
def test_sizes_at_the_edges(size):
    out = permute(np.arange(min(size, 3)), size, 9).tolist()
    assert len(set(out)) == len(out)
    assert all(0 <= x < size for x in out)


@pytest.mark.parametrize("bits", [70, 500, 1200])
def test_images_of_large_sizes_fill_the_range(bits):
    """The top four bits of the images are uniform; a hash shorter than half of the bits would leave them at zero."""
    out = permute(np.arange(2000), 2**bits, 9)
    cells = np.bincount([int(x >> (bits - 4)) for x in out], minlength=16)
    assert stats.chisquare(cells).pvalue > 1e-4


@pytest.mark.parametrize(("size", "expected"), [
    (1000, [454, 672, 24, 766]),
    (2**40, [12510824992, 332415002092, 130061056360]),
    (2**70, [654251339867193282534, 384470122314294093398, 160462042043626693830]),
])  # fmt: skip
def test_the_permutation_of_a_key_never_changes(size, expected):
    """Run directories store only the key of a code, so every version must give the values of the first one."""
    assert permute(np.arange(len(expected)), size, 7).tolist() == expected
    assert int(derive_key(1, 2, 3)) == 936911921778447701


def test_all_permutations_of_four_are_equally_likely():
    out = permute(np.arange(4), 4, derive_key(1, np.arange(24_000))[:, None])
    _, counts = np.unique(out, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-4


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
    """Over random keys, index 0 goes to each of 20 places equally often (chi-square)."""
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


@pytest.mark.parametrize(("arguments", "message"), [
    ((0, 0, 1), "sizes 0 .. 0: expected 1"),
    ((0, np.array([5, -3]), 1), "sizes -3 .. 5"),
    ((0, np.array([5, 2**62]), 1), "one Python integer for a larger size"),
    ((1.5, 5, 1), "index has dtype float64"),
    ((1, 5.0, 1), "size has dtype float64"),
    ((2**70, 2**70, 1), r"outside of \[0, "),
])  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        permute(*arguments)


@pytest.mark.parametrize("size", [1000, 2**70])
def test_keys_count_modulo_two_to_the_64(size):
    assert permute(3, size, -1) == permute(3, size, 2**64 - 1) == permute(3, size, np.uint64(2**64 - 1))


def test_numpy_integers_are_sizes_too():
    assert permute(3, np.uint64(2**63), 1) == permute(3, 2**63, 1)


def test_parts_of_a_key():
    assert derive_key(-1, 2) == derive_key(np.int64(-1), np.array(2))
    np.testing.assert_array_equal(derive_key(4, [1, 2]), [derive_key(4, 1), derive_key(4, 2)])
    with pytest.raises(ValueError, match="float64"):
        derive_key(np.array([1.5]))
