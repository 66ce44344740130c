"""The keyed permutation in JAX equals that of NumPy in every value."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ensdiff.codes import permute as plain
from ensdiff.codes.permute_jax import Wide, derive_key, divide, permute, wide

COUNT = 64
"""Values per example, so that each program is compiled once."""
permute_jit = jax.jit(permute)
words = st.integers(0, 2**64 - 1)
seeds = st.one_of(st.integers(-5, 5), st.integers(-(2**70), 2**70))


def split(values):
    """Return an array of uint64 as words of 32 bits."""
    values = np.asarray(values, np.uint64)
    return Wide((values >> np.uint64(32)).astype(np.uint32), values.astype(np.uint32))


def joined(values):
    return np.asarray(values.high, np.uint64) << np.uint64(32) | np.asarray(values.low, np.uint64)


@given(
    st.lists(st.one_of(st.integers(1, 10**6), st.integers(1, 40), st.integers(10**6, 2**31 - 1)), min_size=1,
             max_size=COUNT),
    words, st.integers(0, 2**32),
)  # fmt: skip
def test_images_are_those_of_numpy(sizes, key, seed):
    """Of random indices in ranges of any size, including ranges that end just after or before a square."""
    size = np.resize(np.array(sizes, np.uint32), COUNT)
    root = np.round(np.sqrt(size[::4])).astype(np.int64) ** 2
    size[::4] = np.clip(root + np.arange(-1, COUNT // 4 - 1) % 3 - 1, 1, 2**31 - 1)
    index = np.random.default_rng(seed).integers(0, size, dtype=np.uint32)
    keys = plain.derive_key(key % 2**63, np.arange(COUNT))
    np.testing.assert_array_equal(permute_jit(index, size, split(keys)), plain.permute(index, size, keys))


def test_every_small_size_and_the_largest():
    """Each permutation of up to 20 values is a bijection, and the largest size is that of NumPy."""
    size = np.repeat(np.arange(1, 21, dtype=np.uint32), 20)
    index = np.tile(np.arange(20, dtype=np.uint32), 20) % size
    keys = plain.derive_key(size.astype(np.int64))
    np.testing.assert_array_equal(permute_jit(index, size, split(keys)), plain.permute(index, size, keys))
    most = np.full(400, 2**31 - 1, np.uint32)
    index = np.random.default_rng(0).integers(0, 2**31 - 1, 400, dtype=np.uint32)
    np.testing.assert_array_equal(permute_jit(index, most, split(keys)), plain.permute(index, most, keys))


@given(seeds, st.integers(0, 2**31 - 1), words)
def test_keys_are_those_of_numpy(seed, member, epoch):
    found = jax.jit(derive_key)(wide(seed), wide(member), wide(epoch))
    assert joined(found) == plain.derive_key(seed, np.array(member), np.array(epoch, np.uint64))
    assert joined(derive_key(wide(seed))) == plain.derive_key(seed)


@given(words, st.integers(1, 2**31 - 1))
def test_division(x, divisor):
    quotient, rest = jax.jit(divide)(wide(x), np.uint32(divisor))
    assert (int(joined(quotient)), int(rest)) == divmod(x, divisor)
