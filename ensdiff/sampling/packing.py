"""The states that each member is applied to in a sampling step, packed into batches of equal size.

A batch belongs to a group of G neighbouring members, which are computed together: each is applied to P states of its
own. G is 1 where members are computed one by one.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Batches(NamedTuple):
    """The work of one sampling step: a list of batches, each with the states that a group of members is applied to.

    There are D data shards and M member shards, with N batches of G members and P places each. ``group_DMN`` is the
    number of a group of G neighbouring members within a member shard, and ``index_DMNGP`` an index within a data shard;
    padded places have weight 0.
    """

    group_DMN: Int[np.ndarray, "D M N"]
    index_DMNGP: Int[np.ndarray, "D M N G P"]
    weight_DMNGP: Float[np.ndarray, "D M N G P"]


def kept_counts(weights_RK: Float[np.ndarray, "R K"], shards: int) -> Int[np.ndarray, "D K"]:
    """Return, for each data shard and member, how many states give the member a weight other than 0."""
    return np.count_nonzero(weights_RK.reshape(shards, -1, weights_RK.shape[-1]), axis=1)


def batch_numbers(counts_CDK: Int[np.ndarray, "C D K"], places: int, member_shards: int, together: int = 1) -> int:
    """Return N, the largest number of batches that any device needs in any of C chunks.

    A batch has ``places`` places. A group of ``together`` members needs as many batches as its busiest member.
    """
    numbers_K = -(-counts_CDK // places)
    numbers_DMG = numbers_K.reshape(*numbers_K.shape[:-1], member_shards, -1, together).max(-1)
    return max(1, int(numbers_DMG.sum(-1).max()))


def round_up(count: int, least: int) -> int:
    """Return the smallest power of two that is at least ``count`` and at least ``least``, itself a power of two.

    >>> round_up(3, 16), round_up(17, 16)
    (16, 32)
    """
    return max(least, 1 << (count - 1).bit_length())


def choose_places(
    counts_CDK: Int[np.ndarray, "C D K"], member_shards: int, limit: int, overhead: float, together: int = 1
) -> int:
    """Return P, the cheapest batch size among those that need little padding.

    Batches of one state need no padding within a member. The work may be at most a tenth more than with these. Among
    the sizes that satisfy this, the one with the least ``N (G P + overhead)`` is chosen. Sizes have three significant
    bits (1 .. 8, 10, 12, 14, 16, 20, ..), so that few compiled programs serve all calls.

    Args:
        counts_CDK: number of states that keep each member, by chunk and data shard.
        member_shards: M.
        limit: the largest batch size.
        overhead: the fixed cost of a batch, in images.
        together: G.
    """
    most = max(1, min(limit, int(counts_CDK.max())))
    sizes = [places for places in range(1, most + 1) if places % (1 << max(0, places.bit_length() - 3)) == 0]
    numbers = {places: batch_numbers(counts_CDK, places, member_shards, together) for places in sizes}
    return min(
        (places for places in sizes if places * numbers[places] <= 1.1 * numbers[1]),
        key=lambda places: numbers[places] * (together * places + overhead),
    )


def gather_batches(
    weights_RK: Float[np.ndarray, "R K"],
    shards: int,
    member_shards: int,
    places: int,
    number: int,
    together: int = 1,
) -> Batches:
    """Pack the states that keep each member (the non-zeros of the weights) into batches as full as possible.

    Args:
        weights_RK: weights of each state; R is a multiple of ``shards``.
        shards: D; each shard has equally many consecutive states.
        member_shards: M; each shard has equally many consecutive members.
        places: P.
        number: N, at least `batch_numbers`.
        together: G, a divisor of the number of members of a shard.
    """
    K = weights_RK.shape[-1]
    shape = shards, member_shards, number
    group = np.zeros(shape, np.int32)
    index, weight = np.zeros((*shape, together, places), np.int32), np.zeros((*shape, together, places), np.float32)
    local = K // member_shards
    for d, weights_QK in enumerate(weights_RK.reshape(shards, -1, K)):
        for m in range(member_shards):
            first = 0  # batch of the group
            for g in range(local // together):
                last = first
                for i in range(together):
                    column = weights_QK[:, m * local + g * together + i]
                    kept = np.flatnonzero(column)
                    for n, start in enumerate(range(0, len(kept), places), first):
                        part = kept[start : start + places]
                        index[d, m, n, i, : len(part)] = part
                        weight[d, m, n, i, : len(part)] = column[part]
                        last = max(last, n + 1)
                group[d, m, first:last] = g
                first = last
    return Batches(group, index, weight)
