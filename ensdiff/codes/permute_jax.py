"""The keyed permutation of `ensdiff.codes.permute` in JAX, equal to it in every value, for sizes below 2^31.

JAX has no 64-bit integers by default, so a 64-bit number is a pair of uint32 words, the type `Wide`. Sums and products
are modulo 2^64, as in NumPy.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt32

from ensdiff.codes.permute import GOLDEN, ROUNDS
from ensdiff.typing import Array, ArrayLike

LIMIT = 2**31
"""Sizes are below this number."""
START = 0x243F6A8885A308D3
"""The key of no parts, as in `ensdiff.codes.permute.derive_key`."""


Word: TypeAlias = Any
"""uint32: a JAX array, or for constants a NumPy scalar."""


class Wide(NamedTuple):
    """64-bit unsigned integers, as two words of 32 bits of the same shape."""

    high: Word
    low: Word


def wide(value: int) -> Wide:
    """Return an integer, modulo 2^64, as two words of 32 bits.

    >>> wide(-1)
    Wide(high=np.uint32(4294967295), low=np.uint32(4294967295))
    """
    return Wide(np.uint32(value >> 32 & 0xFFFFFFFF), np.uint32(value & 0xFFFFFFFF))


def widen(word: Word) -> Wide:
    """Return words of 32 bits as 64-bit integers."""
    return Wide(jnp.zeros_like(word), word)


def add(x: Wide, y: Wide) -> Wide:
    """Return x + y."""
    low = x.low + y.low
    return Wide(x.high + y.high + (low < x.low).astype(jnp.uint32), low)


def product(x: Word, y: Word) -> Wide:
    """Return the 64-bit product of two words of 32 bits."""
    x0, x1, y0, y1 = x & 0xFFFF, x >> 16, y & 0xFFFF, y >> 16
    low, middle, other = x0 * y0, x1 * y0, x0 * y1
    carry = ((low >> 16) + (middle & 0xFFFF) + (other & 0xFFFF)) >> 16
    return Wide(x1 * y1 + (middle >> 16) + (other >> 16) + carry, x * y)


def _times(x: Wide, y: Wide) -> Wide:
    found = product(x.low, y.low)
    return Wide(found.high + x.low * y.high + x.high * y.low, found.low)


def _xor(x: Wide, y: Wide) -> Wide:
    return Wide(x.high ^ y.high, x.low ^ y.low)


def _shift_right(x: Wide, bits: int) -> Wide:
    return Wide(x.high >> bits, (x.low >> bits) | (x.high << (32 - bits)))


def _mix(x: Wide) -> Wide:
    x = _times(_xor(x, _shift_right(x, 30)), wide(0xBF58476D1CE4E5B9))
    x = _times(_xor(x, _shift_right(x, 27)), wide(0x94D049BB133111EB))
    return _xor(x, _shift_right(x, 31))


def derive_key(*parts: Wide) -> Wide:
    """Return what `ensdiff.codes.permute.derive_key` returns for these integers."""
    key, golden = wide(START), wide(GOLDEN)
    with np.errstate(over="ignore"):  # of parts that are constants
        for part in parts:
            key = _mix(add(_mix(add(_times(key, golden), part)), golden))
    return key


def divide(x: Wide, divisor: Array) -> tuple[Wide, Array]:
    """Return quotient and remainder of a division by numbers in [1, 2^31)."""

    def bit(_, carry):  # from the highest bit of x to the lowest, which quotient bits replace
        x, rest = carry
        rest = (rest << 1) | (x.high >> 31)
        x = Wide((x.high << 1) | (x.low >> 31), x.low << 1)
        fits = (rest >= divisor).astype(jnp.uint32)
        return Wide(x.high, x.low | fits), rest - fits * divisor

    zero = jnp.zeros_like(divisor)
    x = Wide(x.high + zero, x.low + zero)
    return jax.lax.fori_loop(0, 64, bit, (x, zero + 0 * x.low))


def _remainder(x: Wide, divisor: Array) -> Array:
    """Return the remainder of a division by numbers below 2^16, digit by digit."""
    rest = jnp.zeros_like(x.low)
    for digit in (x.high >> 16, x.high & 0xFFFF, x.low >> 16, x.low & 0xFFFF):
        rest = ((rest << 16) | digit) % divisor
    return rest


def _sides(size: Array) -> tuple[Array, Array]:
    """Return the sides a and b, as `ensdiff.codes.permute.feistel_sides` does: a is the smallest with a^2 >= size."""
    a = jnp.sqrt(size.astype(jnp.float32)).astype(jnp.uint32) + 2  # 1 to 3 above the root's integer part
    for _ in range(3):
        a = jnp.where((a - 1) * (a - 1) >= size, a - 1, a)
    return a, (size + a - 1) // a


def permute(index: UInt32[ArrayLike, "..."], size: UInt32[ArrayLike, "..."], key: Wide) -> UInt32[Array, "..."]:
    """Return the image of each index under the permutation of [0, size) with the given key.

    Args:
        index: uint32 in [0, size), which is not checked. Indices, sizes and keys broadcast.
        size: uint32 in [1, 2^31).
        key: from `derive_key`.
    """
    index, size, high, low = jnp.broadcast_arrays(index, size, key.high, key.low)
    a, b = _sides(size)
    key = Wide(high, low)

    def hashed(half: Array, salt: Wide) -> Wide:
        return _mix(_xor(_mix(add(widen(half), add(key, salt))), key))

    def two_rounds(_, carry):
        left, right, salt = carry
        left = (left + _remainder(hashed(right, salt), a)) % a
        salt = add(salt, wide(GOLDEN))
        right = (right + _remainder(hashed(left, salt), b)) % b
        return left, right, add(salt, wide(GOLDEN))

    def rounds(x: Array) -> Array:
        first = Wide(*map(jnp.asarray, wide(GOLDEN)))
        left, right, _ = jax.lax.fori_loop(0, ROUNDS // 2, two_rounds, (x // b, x % b, first))
        return left * b + right

    def walk(x: Array) -> Array:
        return jnp.where(x >= size, rounds(x), x)

    return jax.lax.while_loop(lambda x: jnp.any(x >= size), walk, rounds(index))
