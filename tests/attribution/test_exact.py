"""Exact influence traces a caller's features and distance once for each shape."""

import jax.numpy as jnp
import numpy as np
import pytest

import ensdiff
from ensdiff.attribution import exact_influence
from tests.helpers import CODE

WEIGHTS = np.concatenate([CODE.ablate([unit]) for unit in (0, 1, 2, 3, 4)])
SAMPLES = np.array([0, 1, 0, 1, 0])


@pytest.fixture
def samples(tiny):
    return ensdiff.sample(tiny, 0, 2, steps=2)


def counted(traced):
    """Return features and a distance that record the shapes for which they are traced."""

    def features(images):
        traced.append(("features", images.shape[0]))
        return images.mean((1, 2))

    def distance(one, other):
        traced.append(("distance", one.shape[0]))
        return jnp.abs(one - other).sum(-1)

    return features, distance


def test_other_chunks_and_other_calls_trace_nothing(tiny, samples):
    """With five pairs in chunks of two, the last chunk has one pair and is padded to the shape of the other chunks."""
    traced = []
    features, distance = counted(traced)
    whole = exact_influence(tiny, samples, WEIGHTS, SAMPLES, *counted([]))
    first = exact_influence(tiny, samples, WEIGHTS, SAMPLES, features, distance, chunk=2)
    assert traced.count(("distance", 2)) == 1
    assert set(traced) == {("features", 2), ("distance", 2)}
    found = len(traced)
    again = exact_influence(tiny, samples, WEIGHTS[:3], SAMPLES[:3], features, distance, chunk=2)
    assert len(traced) == found
    np.testing.assert_array_equal(again, first[:3])
    np.testing.assert_allclose(first, whole, rtol=1e-5)


def test_each_features_get_their_own_program(tiny, samples):
    def of(features):
        return exact_influence(tiny, samples, WEIGHTS, SAMPLES, features)

    bright, dark = of(lambda images: images), of(lambda images: 2 * images)
    np.testing.assert_allclose(dark, 2 * bright, rtol=1e-6)


def test_features_without_a_hash(tiny, samples):
    class Scaled:
        __hash__ = None

        def __init__(self, factor):
            self.factor = factor

        def __call__(self, images):
            return self.factor * images

    one, three = (exact_influence(tiny, samples, WEIGHTS, SAMPLES, Scaled(factor)) for factor in (1, 3))
    np.testing.assert_allclose(three, 3 * one, rtol=1e-6)
