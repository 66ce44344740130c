"""Pictures of pixels and of latents."""

import numpy as np
import pytest

from ensdiff.data.viewing import rough_view, viewer
from ensdiff.models.space import PIXELS, Latents

SPACE = Latents(scale=(0.5,))


def grey(latents):
    assert latents.dtype == np.float32
    return np.clip(latents[..., :1], 0, 1)


def test_pixels_stay_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), dtype=np.uint8)
    assert viewer(PIXELS)(images) is images
    with pytest.raises(ValueError, match="decode is for latents, but these images are pixels: leave it out"):
        viewer(PIXELS, grey)


def test_latents_are_decoded_with_any_leading_axes():
    latents = np.random.default_rng(0).random((2, 3, 4, 4, 5)).astype(np.float16)
    shown = viewer(SPACE, grey)(latents)
    np.testing.assert_array_equal(shown, latents[..., :1].astype(np.float32))
    assert viewer(SPACE, grey)(latents[0, :0]).shape == (0, 4, 4, 1)
    bits = viewer(SPACE, lambda x: np.full((len(x), 8, 8, 3), 51, np.uint8))(latents)
    assert bits.shape == (2, 3, 8, 8, 3)
    np.testing.assert_allclose(bits, 0.2, rtol=1e-6)  # floats, so that differences of pictures have a sign


@pytest.mark.parametrize(("decode", "message"), [
    (None, "the members generate latents, which are no pictures: pass decode="),
    (lambda x: x[:1, ..., :1], r"decode made \(1, 4, 4, 1\) of 2 latents: expected as many pictures"),
    (lambda x: x, r"decode made \(2, 4, 4, 4\) of 2 latents: expected as many pictures, with 1 or 3 channels"),
    (lambda x: x[..., :1] + 7, "decode must return pictures .* image 0 holds values outside of"),
    (lambda x: x[0], "decode must return pictures"),
])  # fmt: skip
def test_what_is_no_picture_is_refused(decode, message):
    with pytest.raises(ValueError, match=message):
        viewer(SPACE, decode)(np.zeros((2, 4, 4, 4)))


def test_a_rough_view_has_the_range_of_what_it_is_like():
    """A twin of three lines: the first channels, from their smallest to their largest value in ``like``."""
    rng = np.random.default_rng(0)
    like, others = rng.normal(size=(3, 2, 2, 4)), 2 * rng.normal(size=(5, 2, 2, 4))
    shown = viewer(SPACE, like=like)(others)
    for c in range(3):
        low, high = like[..., c].min(), like[..., c].max()
        np.testing.assert_allclose(shown[..., c], np.clip((others[..., c] - low) / (high - low), 0, 1), atol=1e-6)
    own = rough_view(others[..., :2])
    assert own.shape == (5, 2, 2, 1)
    assert (own.min(), own.max()) == (0, 1)
