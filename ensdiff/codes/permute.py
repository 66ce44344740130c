"""A keyed pseudo-random permutation of [0, n), evaluated only at the requested indices.

It is a Feistel network over Z_a x Z_b with a and b about sqrt(n) and a b >= n (Black & Rogaway 2002, "Ciphers with
arbitrary finite domains"): ``x = l b + r``, and each round adds a keyed hash of one half to the other. Values outside
[0, n) are permuted again until they fall inside (cycle walking); this is rare because a b - n < 2 sqrt(n) + 1.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

ROUNDS = 8
GOLDEN = 0x9E3779B97F4A7C15
_LIMIT = 2**62
"""For this size or more, indices need Python's integers."""


def mix(x: Any) -> Any:
    """Apply the finaliser of splitmix64 (Steele et al. 2014), a bijection of 64-bit integers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derive_key(*parts: np.ndarray | int) -> np.ndarray | np.uint64:
    """Hash integers, or broadcastable arrays of integers, to 64-bit keys. The order of the parts matters.

    Raises:
        ValueError: a part has a non-integer dtype.

    >>> derive_key(1, 2) == derive_key(2, 1)
    np.False_
    >>> derive_key(0, np.arange(3)).shape
    (3,)
    """
    key: Any = np.uint64(0x243F6A8885A308D3)
    with np.errstate(over="ignore"):
        for part in parts:
            word = np.uint64(part % 2**64) if isinstance(part, int) else _integers(part, "part").astype(np.uint64)
            key = mix(mix(key * np.uint64(GOLDEN) + word) + np.uint64(GOLDEN))
    return key


def permute(
    index: np.ndarray | int,
    size: np.ndarray | int,
    key: np.ndarray | np.uint64 | int,
) -> np.ndarray:
    """Return the image of each index under the permutation of [0, size) with the given key.

    Args:
        index: integers in [0, size), of any shape.
        size: n >= 1, broadcast against ``index``; a size of 2^62 or more must be one Python integer.
        key: 64-bit keys, also broadcast; see `derive_key`. A Python integer is taken modulo 2^64.

    Returns:
        uint64 of the broadcast shape; for a size of 2^62 or more, Python integers in an object array.

    Raises:
        ValueError: an index is outside [0, size); a size is below 1; an array of sizes holds 2^62 or more; or an
            argument has a non-integer dtype.

    >>> sorted(permute(np.arange(5), 5, 7).tolist())
    [0, 1, 2, 3, 4]
    """
    if isinstance(key, int):
        key = np.uint64(key % 2**64)
    if isinstance(size, int | np.integer) and size >= _LIMIT:
        return _permute_large(index, int(size), key)
    index, size, key = _integers(index, "index"), _integers(size, "size"), _integers(key, "key")
    if size.size and not 1 <= size.min() <= size.max() < _LIMIT:
        raise ValueError(
            f"sizes {size.min()} .. {size.max()}: expected 1 .. 2**62 - 1, or one Python integer for a larger size"
        )
    index, size, key = np.broadcast_arrays(index.astype(np.int64), size.astype(np.int64), key.astype(np.uint64))
    if index.size and ((index < 0) | (index >= size)).any():
        bad = np.argwhere((index < 0) | (index >= size))[0]
        raise ValueError(f"index {index[tuple(bad)]} is outside of [0, {size[tuple(bad)]})")
    shape = index.shape
    x, n, key = index.reshape(-1).astype(np.uint64), size.reshape(-1).astype(np.uint64), key.reshape(-1)
    a = np.ceil(np.sqrt(n.astype(np.float64))).astype(np.uint64)
    b = (n + a - np.uint64(1)) // a
    x = rounds(x, a, b, key)
    outside = np.flatnonzero(x >= n)
    while len(outside):
        x[outside] = rounds(x[outside], a[outside], b[outside], key[outside])
        outside = outside[x[outside] >= n[outside]]
    return x.reshape(shape)


def feistel_sides(size: int) -> tuple[int, int]:
    """Return the sides a and b that `permute` chooses for one size below 2^62."""
    a = int(np.ceil(np.sqrt(np.float64(size))))
    return a, (size + a - 1) // a


def _integers(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {array.dtype}: expected integers of at most 64 bits")
    return array


def feistel(x: Any, a: Any, b: Any, hashed: Callable[[Any, int], Any]) -> Any:
    """Apply all rounds to ``x = l b + r``; ``hashed(half, i)`` is the keyed hash of a half in round i."""
    left, right = x // b, x % b
    for i in range(ROUNDS):
        if i % 2 == 0:
            left = (left + hashed(right, i) % a) % a
        else:
            right = (right + hashed(left, i) % b) % b
    return left * b + right


def rounds(x: Any, a: Any, b: Any, key: Any) -> Any:
    """Apply `feistel` to 64-bit integers in NumPy or JAX arrays."""

    def hashed(half: Any, i: int) -> Any:
        salt = key + np.uint64(GOLDEN * (i + 1) % 2**64)
        return mix(mix(half + salt) ^ key)

    with np.errstate(over="ignore"):
        return feistel(x, a, b, hashed)


def _permute_large(index: Any, size: int, key: Any) -> np.ndarray:
    """Compute `permute` for one key and one size of any length, on Python integers and with a longer hash."""
    numbers = np.asarray(index, dtype=object)
    out = np.empty(numbers.shape, dtype=object)
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    words = -(-a.bit_length() // 64) + 1

    def hashed(half: int, i: int) -> int:
        return _long_hash(half, int(key), i, words)

    for place, x in np.ndenumerate(numbers):
        if not 0 <= x < size:
            raise ValueError(f"index {x} is outside of [0, {size})")
        image = feistel(int(x), a, b, hashed)
        while image >= size:
            image = feistel(image, a, b, hashed)
        out[place] = image
    return out


def _long_hash(x: int, key: int, salt: int, words: int) -> int:
    """Hash an integer of any length to an integer of ``words`` 64-bit words."""
    data = x.to_bytes(8 * words, "little") + key.to_bytes(8, "little") + bytes([salt])
    if words <= 8:
        return int.from_bytes(hashlib.blake2b(data, digest_size=8 * words).digest(), "little")
    return int.from_bytes(hashlib.shake_256(data).digest(8 * words), "little")  # blake2b gives at most 64 bytes
