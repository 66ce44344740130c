"""The readings of exact ablation on pictures of two pixels, by hand, and together on digits against loops."""

import numpy as np
import pytest

import ensdiff
from ensdiff.metrics import fit_classifier
from experiments.studies.readings import away_from_groups, exact_readings, fall_of_own_class, group_means


def pictures(*rows):
    """Return pictures of 1x2 pixels."""
    return np.array(rows, float).reshape(len(rows), 1, 2, 1)


def test_away_from_groups():
    images = pictures([0.0, 0.0], [0.3, 0.4])
    means = pictures([0.6, 0.8], [0.3, 0.4])
    without = np.stack(
        [
            pictures([0.3, 0.4], [0.0, 0.0]),  # toward group 0 by half of the way, and straight away from it
            pictures([0.4, -0.3], [0.9, 0.9]),  # across the way to group 1; the second sample is its mean picture
        ]
    )
    np.testing.assert_allclose(away_from_groups(images, without, means), [[-0.5, 0.0], [0.5, 0.0]], atol=1e-12)


def test_fall_of_own_class():
    logs_BC = np.log([[0.8, 0.2], [0.25, 0.75]])
    logs_GBC = np.log([[[0.4, 0.6], [0.5, 0.5]], [[0.8, 0.2], [0.1, 0.9]]])
    expected = np.log([[2.0, 1.0], [1.5, 0.75 / 0.9]])  # of class 0 for the first sample, class 1 for the second
    np.testing.assert_allclose(fall_of_own_class(logs_BC, logs_GBC), expected, atol=1e-12)


def test_group_means():
    data = ensdiff.data.from_images(np.array([0, 255, 51], np.uint8).reshape(3, 1, 1, 1), [0, 0, 1])
    assert group_means(data).ravel().tolist() == pytest.approx([0.5, 0.2])


def test_all_readings_against_loops(rng):
    digits = ensdiff.data.digits().subset(range(90))
    data = digits.regroup(digits.labels % 3)
    classifier = fit_classifier(digits.images, digits.labels, hidden=(8,))
    images = (digits.images[:4] / 255.0).astype(np.float32)
    without = np.clip(images + 0.3 * rng.normal(size=(3, *images.shape)), 0, 1).astype(np.float32)
    found = exact_readings(images, without, data, classifier)
    assert list(found) == ["exact", "exact, features", "exact, own class", "exact, away from the group"]
    for b, x in enumerate(images):
        for g in range(3):
            y, mean = without[g, b], (digits.images[digits.labels % 3 == g] / 255.0).mean(0)
            f, own = classifier.features, classifier.predict(x[None])[0]
            p_x, p_y = (classifier.network.predict_proba(z.reshape(1, -1).astype(float))[0, own] for z in (x, y))
            expected = (
                np.linalg.norm(y - x),
                np.linalg.norm(f(y[None]) - f(x[None])),
                np.log(p_x / p_y),
                np.sum((x - y) * (mean - x)) / np.linalg.norm(mean - x),
            )
            np.testing.assert_allclose([one[b, g] for one in found.values()], expected, rtol=1e-5, atol=1e-7)
