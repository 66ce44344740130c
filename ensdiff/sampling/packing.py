"""Which states each member is applied to in a sampling step, packed into batches of equal size."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Batches(NamedTuple):
    """The work of one sampling step: a list of batches, each of states that one member is applied to.

    D data shards, M member shards, N batches of P places on each. ``member_DMN`` counts within a member shard,
    ``index_DMNP`` within a data shard; padded places have weight 0.
    """

    member_DMN: Int[np.ndarray, "D M N"]
    index_DMNP: Int[np.ndarray, "D M N P"]
    weight_DMNP: Float[np.ndarray, "D M N P"]


def kept_counts(weights_RK: Float[np.ndarray, "R K"], shards: int) -> Int[np.ndarray, "D K"]:
    """How many states of each data shard keep each member."""
    return np.count_nonzero(weights_RK.reshape(shards, -1, weights_RK.shape[-1]), axis=1)


def batch_numbers(counts_CDK: Int[np.ndarray, "C D K"], places: int, member_shards: int) -> int:
    """N: batches of ``places`` places that the device with the most work needs, the most of C chunks."""
    numbers_K = -(-counts_CDK // places)
    return max(1, int(numbers_K.reshape(*numbers_K.shape[:-1], member_shards, -1).sum(-1).max()))


def round_up(count: int, least: int) -> int:
    """The smallest power of two that is neither below ``count`` nor below ``least``, itself a power of two.

    >>> round_up(3, 16), round_up(17, 16)
    (16, 32)
    """
    return max(least, 1 << (count - 1).bit_length())


def choose_places(counts_CDK: Int[np.ndarray, "C D K"], member_shards: int, limit: int, overhead: float) -> int:
    """P: the cheapest size of a batch among those that pad little.

    The work is at most a tenth more than with batches of single states, which is the least; of the sizes that keep to
    that, the one for which ``N (P + overhead)`` is least. Sizes have three significant bits (1 .. 8, 10, 12, 14, 16,
    20, ..), so that few programs serve all.

    Args:
        counts_CDK: states that keep each member, by chunk and data shard.
        member_shards: M.
        limit: the most places.
        overhead: what a batch costs beside its images, in images.
    """
    most = max(1, min(limit, int(counts_CDK.max())))
    sizes = [places for places in range(1, most + 1) if places % (1 << max(0, places.bit_length() - 3)) == 0]
    numbers = {places: batch_numbers(counts_CDK, places, member_shards) for places in sizes}
    return min(
        (places for places in sizes if places * numbers[places] <= 1.1 * numbers[1]),
        key=lambda places: numbers[places] * (places + overhead),
    )


def gather_batches(
    weights_RK: Float[np.ndarray, "R K"], shards: int, member_shards: int, places: int, number: int
) -> Batches:
    """Batches of the states that keep each member, from the non-zeros of the weights; each as full as it can be.

    Args:
        weights_RK: weights of each state; R is a multiple of ``shards``.
        shards: D, equal runs of states.
        member_shards: M, equal runs of members.
        places: P.
        number: N, at least `batch_numbers`.
    """
    K = weights_RK.shape[-1]
    shape = shards, member_shards, number
    member, index = np.zeros(shape, np.int32), np.zeros((*shape, places), np.int32)
    weight = np.zeros((*shape, places), np.float32)
    local = K // member_shards
    for d, weights_QK in enumerate(weights_RK.reshape(shards, -1, K)):
        for m in range(member_shards):
            n = 0
            for k in range(local):
                column = weights_QK[:, m * local + k]
                kept = np.flatnonzero(column)
                for start in range(0, len(kept), places):
                    part = kept[start : start + places]
                    member[d, m, n], index[d, m, n, : len(part)] = k, part
                    weight[d, m, n, : len(part)] = column[part]
                    n += 1
    return Batches(member, index, weight)
