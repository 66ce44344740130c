"""Checksums that tell whether two inputs are the same: SHA-256 of arrays and settings, and sums of stacked arrays.

`digest` reads every byte on the host. `stacked_sums` is for parameters that may fill several accelerators. A sum of
32-bit integers modulo 2^32 has the same bits in any order, so every device sums the part that it holds, and only the
sums leave the device. These sums detect accidental differences, not deliberate ones: someone who can choose the
parameters can construct two arrays with the same sum.
"""

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt32

from ensdiff import hosts


def digest(*trees: Any) -> str:
    """Return the SHA-256 of pytrees as hexadecimal digits. It covers the structure, static fields and array bytes.

    >>> digest({"a": np.arange(3)}) == digest({"a": np.arange(3)})
    True
    >>> digest({"a": np.arange(3)}) == digest({"a": np.arange(3.0)})
    False
    """
    state = hashlib.sha256()
    for leaf in jax.tree.leaves(trees):
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.ascontiguousarray(hosts.fetch(leaf))
        kind = array.dtype.name if array.dtype.kind == "V" else array.dtype.str  # bfloat16 is no dtype of NumPy's own
        state.update(f"{array.shape} {kind} ".encode())
        state.update(array.tobytes() if array.dtype.kind in "OUS" else array.reshape(-1).view(np.uint8).data)
    # without the addresses of functions, which are those of a network of one's own
    state.update(re.sub(r" at 0x[0-9a-f]+", "", repr(jax.tree.structure(trees))).encode())
    return state.hexdigest()


_LANES = np.array([0x9E3779B9, 0x7F4A7C15], np.uint32)
"""Two independent sums of 32 bits each."""
_BLOCK = 2**16
"""Number of words that the host mixes at a time, small enough for the cache of a core."""


def stacked_sums(leaves: list[Any]) -> UInt32[np.ndarray, "K leaves 2"]:
    """Return a checksum of the bits of each leaf, for every entry k of the leading axis that all leaves share.

    With ``v_i`` the 32-bit words of ``leaf[k]`` (narrower numbers are widened, wider ones split), the checksum is
    ``sum_i mix(v_i ^ mix(i + lane)) mod 2^32``, in two lanes. It does not depend on devices, sharding or the number of
    processes.

    Args:
        leaves: arrays on the host or on devices. If they are global arrays, every process must call this function.

    >>> one = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    >>> stacked_sums([one]).shape, bool((stacked_sums([one]) == stacked_sums([jnp.asarray(one)])).all())
    ((2, 1, 2), True)
    """
    if all(map(_near, leaves)):
        return np.stack([_sums_on_host(leaf) for leaf in leaves], axis=1)
    return hosts.fetch(_stack([_sums_on_devices(leaf) for leaf in leaves]))  # few shapes, so few programs to compile


def _near(leaf: Any) -> bool:
    """Return whether the array is in host memory, so that the host reads it without a transfer."""
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and all(map(_is_cpu, leaf.sharding.device_set))


def _is_cpu(device: Any) -> bool:
    return device.platform == "cpu"


def _mix(x: Any) -> Any:
    """Apply MurmurHash3's finalizer, a bijection of 32-bit integers that flips half of the bits when one changes."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def _sums_on_host(leaf: Any) -> UInt32[np.ndarray, "K 2"]:
    """Sum a sharded array block by block, so that the host holds no second copy of it."""
    blocks = hosts.member_blocks(leaf)
    if sum(map(len, blocks.values())) != len(leaf) or any(b.shape[1:] != leaf.shape[1:] for b in blocks.values()):
        blocks = {0: np.asarray(leaf)}  # divided along other axes
    return np.concatenate([_sums_of_block(blocks[first]) for first in sorted(blocks)])


def _sums_of_block(leaf: np.ndarray) -> UInt32[np.ndarray, "K 2"]:
    flat = np.ascontiguousarray(leaf).reshape(len(leaf), -1)
    words = flat.view(f"u{min(4, leaf.itemsize)}")
    out = np.zeros((len(leaf), len(_LANES)), np.uint32)
    size = max(1, _BLOCK // len(leaf))
    for start in range(0, words.shape[1], size):
        block = words[:, start : start + size].astype(np.uint32)
        place = np.arange(start, start + block.shape[1], dtype=np.uint32)
        for j, lane in enumerate(_LANES):
            out[:, j] += _mix(block ^ _mix(place + lane)).sum(1, dtype=np.uint32)
    return out


@jax.jit
def _sums_on_devices(leaf: jax.Array) -> UInt32[jax.Array, "K 2"]:
    bits = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    bits = jax.lax.bitcast_convert_type(bits, f"uint{8 * min(4, leaf.dtype.itemsize)}")
    words = bits.reshape(len(leaf), -1).astype(jnp.uint32)
    place = jnp.arange(words.shape[1], dtype=jnp.uint32)
    return jnp.stack([_mix(words ^ _mix(place + lane)[None]).sum(1, dtype=jnp.uint32) for lane in _LANES], axis=-1)


@jax.jit
def _stack(parts: list[jax.Array]) -> UInt32[jax.Array, "K leaves 2"]:
    return jnp.stack(parts, axis=1)
