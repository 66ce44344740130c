"""The items and masks of every member's batch in JAX, equal to those of `ensdiff.data.splits` in every value.

Each device holds the lists of items and the code words of its own members only, and for each member everything is a
function of the seed, the step and this member's own list and words.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8, UInt32

from ensdiff.codes.permute_jax import LIMIT, Wide, add, derive_key, divide, permute, product, widen
from ensdiff.data.splits import Splits
from ensdiff.typing import Array, ArrayLike


class Lists(NamedTuple):
    """What determines the batches of some members.

    Args:
        items_KI: the items of each member in ascending order, padded to a common length.
        size_K: number of items of each member.
        words_KN: the code: 1 where the member may see the unit.
        unit_of_item: the unit of each item.
    """

    items_KI: Int[ArrayLike, "K I"]
    size_K: UInt32[ArrayLike, " K"]
    words_KN: UInt8[ArrayLike, "K N"]
    unit_of_item: Int[ArrayLike, " N_items"]


def lists_of(splits: Splits, members: slice, width: int) -> Lists:
    """Return the lists of some members as NumPy arrays.

    Args:
        splits: the splits, which must hold these members.
        members: which members.
        width: the common length of lists of items, at least that of the longest.
    """
    some = splits.items_of_member[members]
    items_KI = np.zeros((len(some), width), np.int32)
    for row, items in zip(items_KI, some, strict=True):
        row[: len(items)] = items
    sizes_K = np.array([len(items) for items in some], np.uint32)
    words_KN = np.empty((len(some), splits.code.units), np.uint8)
    for start in range(0, splits.code.units, 2**16):
        units = np.arange(start, min(start + 2**16, splits.code.units))
        words_KN[:, units] = splits.code.rows(units)[:, members].T
    return Lists(items_KI, sizes_K, words_KN, splits.unit_of_item.astype(np.int32))


class Place(NamedTuple):
    """Where each member's stream is at a step: the epoch, and the position in it."""

    epoch_K: Wide
    position_K: UInt32[Array, " K"]


def place_at(step: Array, batch: int, size_K: Array) -> Place:
    """Return where the streams of members with ``size_K`` items are after ``step`` batches (int32, at least 0)."""
    drawn = product(step.astype(jnp.uint32), jnp.uint32(batch))
    epoch_K, position_K = divide(drawn, size_K)
    return Place(epoch_K, position_K)


def most_steps(batch: int) -> int:
    """Return the largest ``steps`` that `batch_indices` takes: positions must stay below 2^32."""
    return (LIMIT - 1) // batch - 1


def batch_indices(
    lists: Lists, seed: Wide, place: Place, steps: Array, batch: int, member_K: Array, position_B: Array
) -> Int[Array, "K B"]:
    """Return what `ensdiff.data.splits.batch_indices` returns at some of the positions of the batches of one step.

    Args:
        lists: of the members.
        seed: of the run, modulo 2^64.
        place: where the streams were at an earlier step.
        steps: number of steps since then, at most `most_steps`.
        batch: the size B of a whole batch.
        member_K: the members' numbers.
        position_B: the positions in the batch, for a device that computes only part of it.
    """
    size_K1 = lists.size_K[:, None]
    ahead_B = steps.astype(jnp.uint32) * jnp.uint32(batch) + position_B.astype(jnp.uint32)
    position_KB = place.position_K[:, None] + ahead_B[None]
    epoch_KB = add(Wide(*(word[:, None] for word in place.epoch_K)), widen(position_KB // size_K1))
    member_K1 = widen(member_K.astype(jnp.uint32)[:, None])
    order_KB = permute(position_KB % size_K1, size_K1, derive_key(seed, member_K1, epoch_KB))
    return jnp.take_along_axis(jnp.asarray(lists.items_KI), order_KB.astype(jnp.int32), axis=1)


def mask(lists: Lists, index_KB: Int[Array, "K B"]) -> Float[Array, "K B"]:
    """Return 1 where each member may see the unit of its item, and 0 elsewhere; see `Splits.mask`.

    It is read from the code words, independently of the lists of items.
    """
    units_KB = jnp.asarray(lists.unit_of_item)[index_KB]
    return jax.vmap(lambda word_N, units_B: word_N[units_B])(jnp.asarray(lists.words_KN), units_KB).astype(jnp.float32)
