"""`baseline_scores`: every baseline by its name, with one signature and one sign.

A larger score means that the unit matters more to the query, and that its presence makes the query more likely.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ensdiff.baselines.gradients import projected_gradients
from ensdiff.baselines.trak import cosine_scores, trak_scores
from ensdiff.data import Dataset
from ensdiff.data.images import check_images
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.metrics.arrays import table
from ensdiff.runs.identity import check_data
from ensdiff.settings import check_fields
from ensdiff.typing import ArrayLike

BASELINES = {
    "random": "independent normal numbers",
    "constant": "the same for every unit",
    "pixel": "minus the L2 distance of pixels in [0, 1] to the unit's nearest item",
    "feature": "cosine of features, of the unit's nearest item",
    "gradient": "cosine of gradients of the loss, summed over the unit's items",
    "trak": "TRAK: gradients of the loss, ridge regression, summed over the unit's items",
    "d-trak": "D-TRAK: gradients of the squared prediction, ridge regression, summed over the unit's items",
}
"""The baselines, and the score that each computes."""

GRADIENTS = ("gradient", "trak", "d-trak")


@dataclasses.dataclass(frozen=True)
class BaselineConfig:
    """Settings of the baselines that use gradients.

    Args:
        draws: draws of (t, eps) per image.
        dimension: dimension of the random projection.
        ridge: ridge of TRAK, as a share of the mean eigenvalue.
        square_ridge: ridge of D-TRAK, as a share of the mean eigenvalue.
        seed: seed of the draws, the projection and the random scores.

    >>> BaselineConfig(dimension=512).ridge
    0.1
    """

    draws: int = 16
    dimension: int = 1024
    ridge: float = 0.1
    square_ridge: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.draws < 1 or self.dimension < 1 or self.ridge < 0 or self.square_ridge < 0:
            raise ValueError(f"{self}: expected draws and dimension of at least 1, and no negative ridge")


def baseline_scores(
    images: ArrayLike,
    data: Dataset,
    params: Ensemble | None = None,
    methods: Sequence[str] | None = None,
    config: BaselineConfig | None = None,
    *,
    features: Callable[[np.ndarray], np.ndarray] | None = None,
    members: Sequence[int] | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
) -> dict[str, Float[np.ndarray, "B N"]]:
    """Return the scores of every training unit for each image, by each baseline.

    Args:
        images: (B, H, W, C) in [0, 1], or uint8; generated or not.
        data: the training data, whose units are scored.
        params: the ensemble, for the baselines that use gradients. If the data have as many units as the ensemble, they
            must be its training data (`ensdiff.check_data`); data with another number of units are not checked, so that
            items can be grouped differently.
        methods: names of `BASELINES`; by default all that the arguments allow: ``"gradient"``, ``"trak"`` and
            ``"d-trak"`` need ``params``, ``"feature"`` needs ``features``.
        config: settings of the baselines that use gradients.
        features: a function from (n, H, W, C) images in [0, 1] to (n, F) features.
        members: the members whose gradients are averaged; by default all members.
        memory_budget: bytes of gradients that a device may hold.
        progress: show progress bars.

    Returns:
        Scores (B, N) by name of the baseline; larger means that the unit matters more.

    Raises:
        ValueError: an unknown baseline, a baseline without an argument that it needs, images of the wrong shape or
            range, features that are not finite, data on which the ensemble was not trained, or data with absent items
            (`Dataset.absent`).

    >>> import ensdiff
    >>> digits = ensdiff.data.digits().subset(range(40))
    >>> scores = baseline_scores(digits.images[:2], digits, methods=["pixel"])["pixel"]
    >>> scores.argmax(1).tolist()
    [0, 1]
    """
    config = BaselineConfig() if config is None else config
    if methods is None:
        methods = [name for name in BASELINES if _missing(name, params, features) is None]
    for name in methods:
        if name not in BASELINES:
            raise ValueError(f"baseline {name!r}: expected some of {', '.join(BASELINES)}")
        missing = _missing(name, params, features)
        if missing is not None:
            raise ValueError(f"the baseline {name!r} needs {missing}: give it, or leave the baseline out")
    if params is not None and data.units == params.code.units:
        check_data(params, data)
    data.check_present("a baseline", "give data with these items, or a data.subset of the other items")
    query, train = _pixels(images), _pixels(data.images)
    if query.shape[1:] != train.shape[1:]:
        raise ValueError(
            f"the images are {query.shape[1:]}, the training data {train.shape[1:]}: give images of the same shape"
        )
    B, N = len(query), data.units
    options: dict[str, Any] = dict(
        draws=config.draws, dimension=config.dimension, members=members, memory_budget=memory_budget, progress=progress
    )
    gradients: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def of(output: Any) -> tuple[np.ndarray, np.ndarray]:
        if output not in gradients:
            assert params is not None
            both = np.concatenate([query, train]).astype(np.float32)
            phi = projected_gradients(params, both, output, config.seed, **options)
            gradients[output] = phi[:, :B], phi[:, B:]
        return gradients[output]

    def score(name: str) -> np.ndarray:
        if name == "random":
            return np.random.default_rng(config.seed).normal(size=(B, N))
        if name == "constant":
            return np.ones((B, N))
        if name == "pixel":
            return _over_items(-_distances(query, train), data, np.maximum)
        if name == "feature":
            assert features is not None
            rows = [
                table(features(x), f"features of the {what}", "NF")[None]
                for x, what in ((query, "images"), (train, "training data"))
            ]
            return _over_items(cosine_scores(*rows), data, np.maximum)
        if name == "gradient":
            return _over_items(cosine_scores(*of("loss")), data, np.add)
        ridge = config.ridge if name == "trak" else config.square_ridge
        return _over_items(trak_scores(*of("loss" if name == "trak" else "square"), ridge), data, np.add)

    return {name: score(name) for name in methods}


def _missing(name: str, params: Any, features: Any) -> str | None:
    """Return the argument that a baseline needs and that is missing; None if it has all."""
    if name in GRADIENTS and params is None:
        return "the ensemble (params)"
    return "a feature function (features)" if name == "feature" and features is None else None


def _pixels(images: ArrayLike) -> Float[np.ndarray, "B H W C"]:
    array = check_images(images)
    return array / 255.0 if array.dtype == np.uint8 else array.astype(np.float64)


def _distances(query: np.ndarray, train: np.ndarray) -> Float[np.ndarray, "B n"]:
    from scipy.spatial.distance import cdist

    return cdist(query.reshape(len(query), -1), train.reshape(len(train), -1))


def _over_items(scores_Bn: np.ndarray, data: Dataset, combine: np.ufunc) -> Float[np.ndarray, "B N"]:
    """Return the scores of units, combined from the scores of their items."""
    return np.stack([combine.reduce(scores_Bn[:, data.items_of(unit)], axis=1) for unit in range(data.units)], axis=1)
