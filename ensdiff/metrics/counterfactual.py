"""Metrics of counterfactuals: radius, removal of the top units, unattributable samples, false attribution.

(c1) The counterfactual radius of a sample x is ``max_i |x - x_-i|`` (Dai & Gifford 2024, arXiv 2406.07908). Here x_-i
     is the counterfactual of x without unit i. The published radii are for images that were enlarged to 256x256x3 by
     repeating pixels. This multiplies an L2 distance by ``sqrt(256 * 256 * 3 / (H W C))`` (`published_scale`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ensdiff.metrics.arrays import at_most, distances, table
from ensdiff.metrics.bootstrap import RESAMPLES, Estimate, bootstrap_counts, mean, proportion
from ensdiff.typing import unmasked


class Radius(NamedTuple):
    """The mean counterfactual radius over samples with its interval, and the radius of each sample.

    >>> radius([[1.0, 3.0], [2.0, 0.0]]).radius_B.tolist()
    [3.0, 2.0]
    """

    value: float
    low: float
    high: float
    radius_B: Float[np.ndarray, " B"]


class RemovalEffect(NamedTuple):
    """The effect of removing a method's top k units, compared with removing k random units; means over samples.

    Args:
        l2: L2 distance between a sample and its counterfactual without the top k units.
        l2_random: the same without k random units.
        l2_gain: ``l2 - l2_random``, paired by sample; positive if the top units matter more than random ones.
        cosine: cosine similarity between the features (by default the pixels) of a sample and of its counterfactual
            without the top k units.
        cosine_random: the same without k random units.
        cosine_gain: ``cosine_random - cosine``, paired by sample; positive if the top units matter more than random
            ones.

    >>> removal([[1.0, 0.0]], [[0.0, 1.0]], [[[1.0, 0.0]]]).cosine_gain.value
    1.0
    """

    l2: Estimate
    l2_random: Estimate
    l2_gain: Estimate
    cosine: Estimate
    cosine_random: Estimate
    cosine_gain: Estimate


class PowerLaw(NamedTuple):
    """A power law ``value ~ scale * size ** slope``, fitted by least squares on logarithms.

    Args:
        slope: the exponent.
        scale: the value at size 1.

    >>> power_law([1, 4], [[6.0], [3.0]]).scale.__round__(6)
    6.0
    """

    slope: Estimate
    scale: float


def published_scale(shape: Sequence[int]) -> float:
    """Return the factor by which an L2 distance grows when (H, W, C) images are enlarged to 256x256x3 (c1).

    Raises:
        ValueError: the shape is not (H, W, C).

    >>> published_scale((256, 256, 3))
    1.0
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape={tuple(shape)}: expected (H, W, C)")
    return float(np.sqrt(256 * 256 * 3 / np.prod(shape)))


def radius(distances_BN: ArrayLike, scale: float = 1.0, *, resamples: int = RESAMPLES, seed: int = 0) -> Radius:
    """Return the counterfactual radius (c1).

    Args:
        distances_BN: (B, N) distance of each sample to its counterfactual without each unit, such as the influences of
            ``attribute(..., method="exact", top=N)``.
        scale: factor of the distances; pass `published_scale` to compare with published radii.
        resamples: number of resamples (of the samples) for the interval; 0 gives no interval.
        seed: seed of the resampling.

    Raises:
        ValueError: a distance is negative.

    >>> radius([[1.0, 3.0], [2.0, 0.0]], resamples=0).value
    2.5
    """
    table_BN = table(distances_BN, "distances_BN", "BN")
    if table_BN.min() < 0:
        raise ValueError(f"distances_BN holds {table_BN.min():g}: expected distances, at least 0")
    radius_B = scale * table_BN.max(1)
    return Radius(*mean(radius_B, resamples, seed), radius_B)


def power_law(sizes_G: ArrayLike, values_GB: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> PowerLaw:
    """Fit a power law to the mean of B values at each size, such as radii against the number of units.

    Args:
        sizes_G: (G,) positive sizes, at least two different ones.
        values_GB: (G, B) positive values of B samples at each size.
        resamples: number of resamples (of the B samples, independently at each size) for the interval; 0 gives no
            interval.
        seed: seed of the resampling.

    Returns:
        `PowerLaw`, whose slope has an interval.

    Raises:
        ValueError: the shapes do not match, a size or value is not positive, or all sizes are equal.

    >>> power_law([1, 10, 100], 5 * np.array([[1.0], [0.1], [0.01]])).slope.value.__round__(6)
    -1.0
    """
    sizes, values = table(sizes_G, "sizes_G", "G"), table(values_GB, "values_GB", "GB")
    if len(sizes) != len(values) or len(np.unique(sizes)) < 2:
        raise ValueError(
            f"{len(sizes)} sizes and values of shape {values.shape}: expected (G,) sizes, at least two of them "
            "different, and (G, B) values"
        )
    if sizes.min() <= 0 or values.min() <= 0:
        raise ValueError(
            f"the smallest size is {sizes.min():g} and the smallest value {values.min():g}: expected positive numbers, "
            "which have logarithms"
        )
    G, B = values.shape

    def fit(*counts_RB: np.ndarray) -> np.ndarray:
        means_GR = [counts @ row / B for counts, row in zip(counts_RB, values, strict=True)]
        return np.polyfit(np.log(sizes), np.log(means_GR), 1)

    slope = bootstrap_counts(lambda *counts: fit(*counts)[0], *[B] * G, resamples=resamples, seed=seed)
    return PowerLaw(slope, float(np.exp(fit(*[np.ones((1, B))] * G)[1, 0])))


def removal(
    images_BF: ArrayLike,
    without_top_BF: ArrayLike,
    without_random_RBF: ArrayLike,
    features: Sequence[ArrayLike] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> RemovalEffect:
    """Compare the removal of a method's top k units with the removal of k random units.

    Args:
        images_BF: (B, ...) samples.
        without_top_BF: (B, ...) their counterfactuals without the k units that a method ranks first.
        without_random_RBF: (R, B, ...) their counterfactuals without R random choices of k units.
        features: features of these three arrays, of shapes (B, F), (B, F) and (R, B, F), for the cosine similarity; by
            default the pixels.
        resamples: number of resamples (of the samples) for the intervals; 0 gives no intervals.
        seed: seed of the resampling.

    Raises:
        ValueError: the shapes do not match, or a value is not finite.

    >>> x = np.ones((4, 9))
    >>> removal(x, 0 * x, x[None] - 0.1).l2_gain.value.__round__(6)
    2.7
    """
    image, top, random = _triple((images_BF, without_top_BF, without_random_RBF), "images")
    given = (image, top, random) if features is None else _triple(tuple(features), "features")
    l2_B, l2_RB = distances(image, top, 1), distances(image, random, 1)
    cosine_B, cosine_RB = _cosine(given[0], given[1]), _cosine(given[0], given[2])
    if len(cosine_B) != len(l2_B):
        raise ValueError(f"features of {len(cosine_B)} samples, images of {len(l2_B)}: expected the same number")
    parts = (
        l2_B, l2_RB.mean(0), l2_B - l2_RB.mean(0),
        cosine_B, cosine_RB.mean(0), cosine_RB.mean(0) - cosine_B,
    )  # fmt: skip
    return RemovalEffect(*(mean(part, resamples, seed) for part in parts))


def unattributable(q_BT: ArrayLike, level: float = 0.1) -> Estimate:
    """Return the share of samples whose units all have q-values above ``level``, with its exact binomial interval.

    A q-value that exceeds the level only by rounding counts as equal to it.

    Args:
        q_BT: (B, T) q-values, such as ``Attribution.q_value``; only the smallest of each sample matters.
        level: level between 0 and 1.

    Raises:
        ValueError: a q-value is outside [0, 1], or the level is outside (0, 1).

    >>> unattributable([[0.01, 0.5], [0.2, 0.3]]).value
    0.5
    """
    q = table(q_BT, "q_BT", "BT")
    if q.min() < 0 or q.max() > 1 or not 0 < level < 1:
        raise ValueError(
            f"q-values {q.min():g} .. {q.max():g}, level={level}: expected q-values in [0, 1] and a level in (0, 1)"
        )
    return proportion(int((~at_most(np.min(q_BT, axis=1), level)).sum()), len(q))


def false_attribution(
    unchanged_B: ArrayLike, unchanged_BR: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Return ``P(unchanged | attributed unit removed) / P(unchanged | another unit removed)``.

    A ratio of 0 means that removing the attributed unit always changes the sample. A ratio of 1 means that the
    attributed unit matters no more than any other. Above 1, it matters less than the others.

    Args:
        unchanged_B: (B,) whether the sample stays the same when the attributed unit is removed.
        unchanged_BR: (B, R) the same when each of R other units is removed.
        resamples: number of resamples (of the samples) for the interval; 0 gives no interval.
        seed: seed of the resampling.

    Returns:
        `Estimate`; its value is NaN if every removal of another unit changes the sample.

    Raises:
        ValueError: the shapes do not match, or there are values other than 0 and 1.

    >>> false_attribution([1, 0, 0, 0], np.ones((4, 3)), resamples=0).value
    0.25
    """
    own, others = table(unchanged_B, "unchanged_B", "B"), table(unchanged_BR, "unchanged_BR", "BR")
    if len(own) != len(others) or not (np.isin(own, (0, 1)).all() and np.isin(others, (0, 1)).all()):
        raise ValueError(f"shapes {own.shape} and {others.shape}: expected (B,) and (B, R), with values True or False")

    def ratio(counts_RB: np.ndarray) -> np.ndarray:
        of_own, of_others = counts_RB @ own, counts_RB @ others.mean(1)
        return np.divide(of_own, of_others, out=np.full(len(counts_RB), np.nan), where=of_others > 0)

    return bootstrap_counts(ratio, len(own), resamples=resamples, seed=seed)


def _triple(arrays: tuple, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if len(arrays) != 3:
        raise ValueError(
            f"{len(arrays)} arrays of {name}: expected 3, for the samples, their counterfactuals without the top units "
            "and those without random units"
        )
    image, top, random = (np.asarray(unmasked(array, name), np.float64) for array in arrays)
    if image.ndim < 2 or top.shape != image.shape or random.shape[1:] != image.shape or not random.size:
        raise ValueError(
            f"{name} of shapes {image.shape}, {top.shape}, {random.shape}: expected (B, ...), (B, ...), (R, B, ...)"
        )
    for array in (image, top, random):
        if not np.isfinite(array).all():
            raise ValueError(f"{name} hold NaN or infinity")
    B = len(image)
    return image.reshape(B, -1), top.reshape(B, -1), random.reshape(len(random), B, -1)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine similarity over the last axis; 0 where either array is all zeros."""
    scale = distances(a, 0.0, 1) * distances(b, 0.0, 1)
    return np.divide((a * b).sum(-1), scale, out=np.zeros(scale.shape), where=scale > 0)
