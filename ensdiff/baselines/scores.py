"""`baseline_scores`: every baseline by its name, with one signature and one sign.

A larger score means that the unit matters more to the query, and that its presence makes the query more likely.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from ensdiff.baselines.patches import default_sizes, patch_scores
from ensdiff.data import Dataset
from ensdiff.data.images import check_images
from ensdiff.metrics.arrays import table
from ensdiff.settings import check_fields
from ensdiff.typing import ArrayLike

BASELINES = {
    "random": "independent normal numbers",
    "constant": "the same for every unit",
    "pixel": "minus the L2 distance of pixels in [0, 1] to the unit's nearest item",
    "feature": "cosine of features, of the unit's nearest item",
    "patches": "share of the nearest patches of an ideal local denoiser, summed over the unit's items",
}
"""The baselines, and the score that each computes."""

MOVED = ("gradient", "trak", "d-trak")
"""Former baselines that use a model, which are now methods of `ensdiff.attribute`."""


@dataclasses.dataclass(frozen=True)
class BaselineConfig:
    """Settings of the baselines.

    Args:
        seed: seed of the random scores.
        patch_sizes: sides in pixels of the patches that are compared; None is 3 pixels, half of the image and the whole
            image.
        patch_noise: noise level of each patch size: the standard deviation of the noise over the signal, for images in
            [-1, 1]. Smaller levels give more weight to the nearest patches.
        patch_shift: patches are compared with those up to this many pixels away in each direction.

    Raises:
        ValueError: a field of the wrong type, sizes and noise levels that do not match or are not positive, or a
            negative shift.

    >>> BaselineConfig(patch_sizes=(3, 8), patch_noise=(0.1, 1.0)).patch_shift
    1
    """

    seed: int = 0
    patch_sizes: tuple[int, ...] | None = None
    patch_noise: tuple[float, ...] = (0.1, 0.3, 1.0)
    patch_shift: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        sizes = (1, 1, 1) if self.patch_sizes is None else self.patch_sizes
        if not sizes or len(sizes) != len(self.patch_noise) or min(sizes) < 1 or not min(self.patch_noise) > 0:
            raise ValueError(
                f"patch_sizes={self.patch_sizes}, patch_noise={self.patch_noise}: expected one noise level for each "
                "size (three sizes if they are None), all positive"
            )
        if self.patch_shift < 0:
            raise ValueError(f"patch_shift={self.patch_shift}: expected at least 0 pixels")


def baseline_scores(
    images: ArrayLike,
    data: Dataset,
    methods: Sequence[str] | None = None,
    config: BaselineConfig | None = None,
    *,
    features: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, Float[np.ndarray, "B N"]]:
    """Return the scores of every training unit for each image, by each baseline.

    Args:
        images: (B, H, W, C) in [0, 1], or uint8; generated or not.
        data: the training data, whose units are scored.
        methods: names of `BASELINES`; by default all that the arguments allow: ``"feature"`` needs ``features``.
        config: settings of the baselines.
        features: a function from (n, H, W, C) images in [0, 1] to (n, F) features.

    Returns:
        Scores (B, N) by name of the baseline; larger means that the unit matters more.

    Raises:
        ValueError: an unknown baseline, a baseline without an argument that it needs, images of the wrong shape or
            range, features that are not finite, or data with absent items (`Dataset.absent`).

    >>> import ensdiff
    >>> digits = ensdiff.data.digits().subset(range(40))
    >>> scores = baseline_scores(digits.images[:2], digits, methods=["pixel"])["pixel"]
    >>> scores.argmax(1).tolist()
    [0, 1]
    """
    config = BaselineConfig() if config is None else config
    if methods is None:
        methods = [name for name in BASELINES if name != "feature" or features is not None]
    for name in methods:
        if name in MOVED:
            like = "trak" if name == "gradient" else name
            raise ValueError(
                f"baseline {name!r}: gradients are a method of attribution: ensdiff.attribute(..., method={like!r}, "
                "data=...)"
            )
        if name not in BASELINES:
            raise ValueError(f"baseline {name!r}: expected some of {', '.join(BASELINES)}")
        if name == "feature" and features is None:
            raise ValueError(
                "the baseline 'feature' needs a feature function (features): give it, or leave the baseline out"
            )
    data.check_present("a baseline", "give data with these items, or a data.subset of the other items")
    query, train = _pixels(images), _pixels(data.images)
    if query.shape[1:] != train.shape[1:]:
        raise ValueError(
            f"the images are {query.shape[1:]}, the training data {train.shape[1:]}: give images of the same shape"
        )
    B, N = len(query), data.units

    def score(name: str) -> np.ndarray:
        if name == "random":
            return np.random.default_rng(config.seed).normal(size=(B, N))
        if name == "constant":
            return np.ones((B, N))
        if name == "pixel":
            return _over_items(-_distances(query, train), data, np.maximum)
        if name == "patches":
            sizes = default_sizes(*query.shape[1:3]) if config.patch_sizes is None else config.patch_sizes
            shares = patch_scores(2 * query - 1, 2 * train - 1, sizes, config.patch_noise, config.patch_shift)
            return _over_items(shares, data, np.add)
        assert features is not None
        rows = [
            table(features(x), f"features of the {what}", "NF")
            for x, what in ((query, "images"), (train, "training data"))
        ]
        return _over_items(_cosines(*rows), data, np.maximum)

    return {name: score(name) for name in methods}


def _pixels(images: ArrayLike) -> Float[np.ndarray, "B H W C"]:
    array = check_images(images)
    return array / 255.0 if array.dtype == np.uint8 else array.astype(np.float64)


def _distances(query: np.ndarray, train: np.ndarray) -> Float[np.ndarray, "B n"]:
    from scipy.spatial.distance import cdist

    return cdist(query.reshape(len(query), -1), train.reshape(len(train), -1))


def _cosines(query_BF: np.ndarray, train_nF: np.ndarray) -> Float[np.ndarray, "B n"]:
    """Return the cosines of features; 0 for features of zeros."""
    query, train = (_unit(np.asarray(a, np.float64)) for a in (query_BF, train_nF))
    return query @ train.T


def _unit(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def _over_items(scores_Bn: np.ndarray, data: Dataset, combine: np.ufunc) -> Float[np.ndarray, "B N"]:
    """Return the scores of units, combined from the scores of their items."""
    return np.stack([combine.reduce(scores_Bn[:, data.items_of(unit)], axis=1) for unit in range(data.units)], axis=1)
