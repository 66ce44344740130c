"""The Frechet distance compared with closed forms and SciPy; the classifier on real digits."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from ensdiff import data
from ensdiff.metrics import fit_classifier, frechet_distance, frechet_floor


@given(st.integers(0, 1000), st.integers(2, 30), st.integers(2, 30), st.integers(1, 6))
def test_against_scipy(seed, n, m, features):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, features)), 1 + 2 * rng.normal(size=(m, features))
    sa, sb = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    root = scipy.linalg.sqrtm(sa @ sb + 1e-12 * np.eye(features)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sa + sb - 2 * root)
    assert frechet_distance(a, b).value == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_closed_forms(rng):
    a = rng.normal(size=(200, 4))
    assert frechet_distance(a, a).value == pytest.approx(0, abs=1e-12)
    assert frechet_distance(a, a + np.array([1, 2, 0, 0])).value == pytest.approx(5)
    centred = a - a.mean(0)
    assert frechet_distance(centred, 3 * centred).value == pytest.approx(4 * np.trace(np.cov(a.T)))
    shuffled = a[rng.permutation(200)]
    assert frechet_distance(shuffled, a + 1).value == pytest.approx(frechet_distance(a, a + 1).value)


def test_interval_and_floor(rng):
    a, b = rng.normal(size=(400, 3)), rng.normal(size=(400, 3)) + 0.5
    distance = frechet_distance(a, b, bootstrap=50, seed=0)
    assert distance == frechet_distance(a, b, bootstrap=50, seed=0)
    assert 0 < distance.low < distance.value * 1.2 < distance.high * 1.5
    assert 0 < frechet_floor(a, 200) < distance.value
    assert frechet_floor(a, 20) > frechet_floor(a, 200)  # small sets have a larger bias


@pytest.mark.parametrize(("a", "b", "message"), [
    (np.zeros((1, 3)), np.zeros((5, 3)), "at least two rows"),
    (np.zeros((5, 3)), np.zeros((5, 2)), "3 and 2 features"),
    (np.zeros((5, 3)), np.full((5, 3), np.nan), "second set holds NaN"),
])  # fmt: skip
def test_bad_features(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


def test_classifier_on_digits():
    digits = data.digits()
    order = np.random.default_rng(0).permutation(digits.items)
    train, test = order[400:], order[:400]
    classifier = fit_classifier(digits.images[train], digits.labels[train])
    assert classifier.accuracy(digits.images[test], digits.labels[test]) > 0.95
    features = classifier.features(digits.images[test])
    assert features.shape == (400, 32)
    np.testing.assert_allclose(features, classifier.features(digits.images[test] / 255.0))
    # the features are the input of the last layer
    logits = features @ classifier.network.coefs_[-1] + classifier.network.intercepts_[-1]
    np.testing.assert_array_equal(logits.argmax(1), classifier.predict(digits.images[test]))


@pytest.mark.parametrize("classes", [2, 3])
def test_log_probabilities(classes):
    digits = data.digits()
    seen = np.flatnonzero(digits.labels < classes)[:60]
    classifier = fit_classifier(digits.images[seen], digits.labels[seen], hidden=(8,))
    found = classifier.log_probabilities(digits.images[seen])
    flat = digits.images[seen].reshape(len(seen), -1) / 255.0
    np.testing.assert_allclose(np.exp(found), classifier.network.predict_proba(flat))
    # far from the data, probabilities round to 0 and their logarithms stay finite
    far = classifier.log_probabilities(1e4 * (digits.images[seen] / 255.0 - 0.5))
    assert np.isfinite(far).all()
    assert np.exp(far).min() == 0


def test_classifier_needs_labels():
    with pytest.raises(ValueError, match="one label per image"):
        fit_classifier(np.zeros((4, 2, 2, 1)), np.zeros(3))
