"""Exact influence traces a caller's features and distance once for each shape, and again in another call."""

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


def test_other_chunks_trace_nothing(tiny, samples):
    """With five pairs in chunks of two, the last chunk has one pair and is padded to the shape of the other chunks."""
    traced = []
    whole = exact_influence(tiny, samples, WEIGHTS, SAMPLES, *counted([]))
    parts = exact_influence(tiny, samples, WEIGHTS, SAMPLES, *counted(traced), chunk=2)
    assert traced.count(("distance", 2)) == 1
    assert set(traced) == {("features", 2), ("distance", 2)}
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_verification_and_audit_share_what_is_traced(tiny, samples):
    traced = []
    features, distance = counted(traced)
    options = dict(top=1, verify=2, audit=2)
    ensdiff.attribute(tiny, samples, "screen", features=features, distance=distance, chunk=2, **options)
    assert traced.count(("distance", 2)) == 1
    assert {shape for what, shape in traced if what == "distance"} == {2}


def test_features_that_change_between_calls(tiny, samples):
    """Features may be a network that is trained further, and a closure over a variable that is assigned again."""

    class Scaled:
        factor = 1.0

        def __call__(self, images):
            return self.factor * images

    features = Scaled()
    one = ensdiff.attribute(tiny, samples, "exact", top=3, features=features)
    features.factor = 3.0
    three = ensdiff.attribute(tiny, samples, "exact", top=3, features=features)
    np.testing.assert_allclose(three.influence, 3 * one.influence, rtol=1e-6)
