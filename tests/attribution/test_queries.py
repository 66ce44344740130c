"""Marks of images: alike for one image however it is stored, apart for different images."""

import json
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ensdiff.attribution.queries import query_marks, same_queries
from tests.helpers import blobs


def test_marks_are_sums_over_pixels():
    images = blobs(2)
    values = images[1].reshape(-1) / 255.0
    expected = [
        math.sqrt(2 / values.size) * sum(x * math.cos(math.sqrt(j) * p * p) for p, x in enumerate(values))
        for j in (2, 3, 5, 7)
    ]
    np.testing.assert_allclose(query_marks(images)[1], expected, atol=1e-6)


@given(st.integers(0, 1000))
def test_one_image_in_any_form_and_only_this(seed):
    images = blobs(3, seed=seed)
    marks = json.loads(json.dumps(query_marks(images)))
    noise = np.random.default_rng(seed).uniform(-1e-4, 1e-4, images.shape)
    assert same_queries(marks, images / np.float32(255))
    assert same_queries(marks, images / 255 + noise)
    assert not same_queries(marks, images[[1, 0, 2]])
    assert not same_queries(marks, images[:2])
    assert not same_queries(marks, blobs(3, seed=seed + 1))


def test_anything_else_is_not_the_same():
    images = blobs(1)
    for marks in (None, [], "x", [["x"] * 4], [[1.0], [1.0, 2.0]], [[math.nan] * 4], {}):
        assert not same_queries(marks, images)
