"""Nearest patches: against a loop over patches, and what every share has in common."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensdiff import baselines
from ensdiff.baselines import patches
from ensdiff.data import arrays
from tests.helpers import blobs


def by_loop(x, train, size, sigma, shift):
    """Return the shares (n2) of one query, patch by patch."""
    H, W = x.shape[:2]
    h, w = min(size, H), min(size, W)
    total, places = np.zeros(len(train)), list(itertools.product(range(H - h + 1), range(W - w + 1)))
    for r, c in places:
        weight = np.zeros(len(train))
        for dy, dx in itertools.product(range(-shift, shift + 1), repeat=2):
            top, left = r + dy, c + dx
            if 0 <= top <= H - h and 0 <= left <= W - w:
                difference = x[r : r + h, c : c + w] - train[:, top : top + h, left : left + w]
                weight += np.exp(-np.square(difference).sum((1, 2, 3)) / (2 * sigma**2))
        total += weight / weight.sum()
    return total / len(places)


@given(
    st.integers(0, 1000), st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.integers(0, 7),
    st.sampled_from([8, 2**26]),
)  # fmt: skip
def test_against_a_loop(seed, H, W, size, shift, block):
    rng = np.random.default_rng(seed)
    query, train = rng.uniform(-1, 1, (2, H, W, 2)), rng.uniform(-1, 1, (4, H, W, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "BLOCK_BYTES", block)  # one row of places at a time, or all
        found = patches.patch_scores(query, train, (size, 1), (2.0, 0.5), shift)
    for b in range(2):
        expected = (by_loop(query[b], train, size, 2.0, shift) + by_loop(query[b], train, 1, 0.5, shift)) / 2
        np.testing.assert_allclose(found[b], expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1)


def test_little_noise_finds_copies_and_much_noise_finds_nothing():
    images = 2 * blobs(5) / 255 - 1
    near = patches.patch_scores(images, images, (3, 8), (1e-3, 1e-3), 1)
    np.testing.assert_allclose(near, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(patches.patch_scores(images, images, (3,), (1e6,), 1), np.full((5, 5), 0.2), atol=1e-6)
    moved = np.roll(images, 1, axis=2)  # the middle of each picture is one pixel away
    assert (patches.patch_scores(moved, images, (3,), (1e-2,), 1).argmax(1) == np.arange(5)).all()


def test_units_sum_their_items():
    data = arrays(blobs(6), [0, 0, 1, 1, 1, 2])
    (found,) = baselines.baseline_scores(blobs(3, seed=1), data, ["patches"]).values()
    (items,) = baselines.baseline_scores(blobs(3, seed=1), data.regroup(None), ["patches"]).values()
    np.testing.assert_allclose(found, np.stack([items[:, :2].sum(1), items[:, 2:5].sum(1), items[:, 5]], axis=1))
    config = baselines.BaselineConfig(patch_sizes=(99,), patch_noise=(1.0,), patch_shift=0)  # whole images
    (whole,) = baselines.baseline_scores(data.images[[5]], data, ["patches"], config).values()
    assert whole.argmax() == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(patch_sizes=(3,)), "one noise level for each size"),
        (dict(patch_sizes=(), patch_noise=()), "one noise level for each size"),
        (dict(patch_noise=(0.0, 1.0, 2.0)), "all positive"),
        (dict(patch_shift=-1), "patch_shift=-1"),
    ],
)
def test_bad_settings(given, message):
    with pytest.raises(ValueError, match=message):
        baselines.BaselineConfig(**given)
