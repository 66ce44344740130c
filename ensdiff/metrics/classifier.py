"""A small classifier whose hidden layer is a feature space for small images, to which no published network applies."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A fitted multilayer perceptron on [0, 1] pixels, built by `fit_classifier`.

    >>> digits = ensdiff.data.digits()
    >>> fit_classifier(digits.images[:200], digits.labels[:200]).features(digits.images[:3]).shape
    (3, 32)
    """

    network: Any

    def features(self, images: np.ndarray) -> Float[np.ndarray, "N F"]:
        """Return the activations of the last hidden layer for (N, H, W, C) images, uint8 or in [0, 1]."""
        hidden = _flat(images)
        for weight, bias in zip(self.network.coefs_[:-1], self.network.intercepts_[:-1], strict=True):
            hidden = np.maximum(hidden @ weight + bias, 0.0)
        return hidden

    def predict(self, images: np.ndarray) -> Int[np.ndarray, " N"]:
        """Return the most likely class of each image."""
        return self.network.predict(_flat(images))

    def log_probabilities(self, images: np.ndarray) -> Float[np.ndarray, "N C"]:
        """Return the logarithm of the probability of each class, in ascending order of the classes.

        It stays finite where the probability itself rounds to 0.

        >>> digits = ensdiff.data.digits()
        >>> found = fit_classifier(digits.images[:200], digits.labels[:200]).log_probabilities(digits.images[:3])
        >>> found.shape, np.exp(found).sum(1).round(6).tolist()
        ((3, 10), [1.0, 1.0, 1.0])
        """
        logits = self.features(images) @ self.network.coefs_[-1] + self.network.intercepts_[-1]
        if logits.shape[1] == 1:  # of two classes, the network has only the second
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        logits = logits - logits.max(1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Return the share of images whose class is predicted correctly."""
        return float(np.mean(self.predict(images) == labels))


def fit_classifier(
    images: np.ndarray, labels: np.ndarray, *, hidden: tuple[int, ...] = (128, 32), seed: int = 0
) -> Classifier:
    """Fit a classifier to labelled images.

    Args:
        images: (N, H, W, C), uint8 or in [0, 1].
        labels: (N,) classes.
        hidden: widths of the hidden layers; the last one is the feature space.
        seed: seed of the initial weights and the batches.

    Raises:
        ValueError: there is not one label per image, or there are fewer than two classes.

    >>> digits = ensdiff.data.digits()
    >>> classifier = fit_classifier(digits.images[:200], digits.labels[:200], hidden=(16,))
    >>> classifier.accuracy(digits.images[:200], digits.labels[:200]) > 0.9
    True
    """
    from sklearn.neural_network import MLPClassifier

    images = np.asarray(images)
    if len(images) != len(labels) or len(np.unique(labels)) < 2:
        raise ValueError(
            f"{len(images)} images and {len(labels)} labels of {len(np.unique(labels))} classes: expected one label "
            "per image and at least two classes"
        )
    network = MLPClassifier(hidden, alpha=1e-3, max_iter=500, tol=1e-3, random_state=seed)
    return Classifier(network.fit(_flat(images), np.asarray(labels)))


def _flat(images: np.ndarray) -> Float[np.ndarray, "N P"]:
    images = np.asarray(images)
    flat = images.reshape(len(images), -1).astype(np.float64)
    return flat / 255.0 if images.dtype == np.uint8 else flat
