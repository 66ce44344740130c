"""Readings of exact ablation: how much a sample depends on a group, read from its counterfactual without the group.

Let x_b be a sample with pixels in [0, 1], x_bg its counterfactual without group g, f(x) the features of a classifier
and p(c | x) its probabilities:

(e1) ``exact``: ``|x_bg - x_b|``, the distance of pixels.
(e2) ``exact, features``: ``|f(x_bg) - f(x_b)|``.
(e3) ``exact, own class``: ``log p(c_b | x_b) - log p(c_b | x_bg)``, where c_b is the class that the classifier sees in
     x_b. Positive if the counterfactual looks less like this class.
(e4) ``exact, away from the group``: ``-(x_bg - x_b) . (m_g - x_b) / |m_g - x_b|``, where m_g is the mean picture of the
     group. Positive if the picture moves away from the group.
"""

import numpy as np
from jaxtyping import Float

from ensdiff.data import Dataset
from ensdiff.metrics import Classifier
from ensdiff.metrics.arrays import distances


def exact_readings(
    images_BHWC: Float[np.ndarray, "B H W C"],
    without_GBHWC: Float[np.ndarray, "G B H W C"],
    data: Dataset,
    classifier: Classifier,
) -> dict[str, Float[np.ndarray, "B G"]]:
    """Return every reading by its name; larger means that the sample depends more on the group."""
    G, B = without_GBHWC.shape[:2]
    flat = without_GBHWC.reshape(G * B, *images_BHWC.shape[1:])
    features_GBF = classifier.features(flat).reshape(G, B, -1)
    logs_GBC = classifier.log_probabilities(flat).reshape(G, B, -1)
    return {
        "exact": distances(without_GBHWC, images_BHWC).T,
        "exact, features": distances(features_GBF, classifier.features(images_BHWC), axes=1).T,
        "exact, own class": fall_of_own_class(classifier.log_probabilities(images_BHWC), logs_GBC),
        "exact, away from the group": away_from_groups(images_BHWC, without_GBHWC, group_means(data)),
    }


def fall_of_own_class(
    logs_BC: Float[np.ndarray, "B C"], logs_GBC: Float[np.ndarray, "G B C"]
) -> Float[np.ndarray, "B G"]:
    """Return (e3) from the logarithms of the class probabilities of the samples and of their counterfactuals."""
    own_B, rows = logs_BC.argmax(1), np.arange(len(logs_BC))
    return (logs_BC[rows, own_B] - logs_GBC[:, rows, own_B]).T


def away_from_groups(
    images_BHWC: Float[np.ndarray, "B H W C"],
    without_GBHWC: Float[np.ndarray, "G B H W C"],
    means_GHWC: Float[np.ndarray, "G H W C"],
) -> Float[np.ndarray, "B G"]:
    """Return (e4); 0 where the sample equals the mean picture of the group."""
    change_GBHWC = np.asarray(without_GBHWC, np.float64) - images_BHWC
    toward_GBHWC = np.asarray(means_GHWC, np.float64)[:, None] - images_BHWC
    along_GB = np.einsum("gbhwc,gbhwc->gb", change_GBHWC, toward_GBHWC)
    length_GB = distances(toward_GBHWC, 0.0)
    return -np.divide(along_GB, length_GB, out=np.zeros_like(along_GB), where=length_GB > 0).T


def group_means(data: Dataset) -> Float[np.ndarray, "G H W C"]:
    """Return the mean picture of each unit of data of pixels, in [0, 1]."""
    return np.stack([data.images[data.items_of(unit)].mean(0, dtype=np.float64) for unit in range(data.units)]) / 255
