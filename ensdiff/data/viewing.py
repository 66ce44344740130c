"""Pictures of what members generate: pixels as they are, latents by a decoder or by a rough view of their channels."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from ensdiff.data.images import check_images
from ensdiff.models.space import Pixels, Space
from ensdiff.typing import ArrayLike

Decode = Callable[[np.ndarray], Any]
"""A function from latents (n, H, W, C), float32, as the training data store them, to pictures (n, h, w, c) in [0, 1] or
uint8, such as ``ensdiff.interop.vae(folder).decode`` and ``ensdiff.data.pca.load(file).decode``."""


def viewer(
    space: Space, decode: Decode | None = None, like: ArrayLike | None = None
) -> Callable[[ArrayLike], np.ndarray]:
    """Return the function that turns images of a space, (..., H, W, C), into pictures, (..., h, w, 1 or 3).

    Pixels stay as they are. Latents are decoded, or without a decoder shown as `rough_view` if ``like`` is given.

    Args:
        space: the space of the images, such as ``params.space``.
        decode: the decoder of latents; None for pixels.
        like: latents (n, H, W, C) whose range is that of a rough view.

    Raises:
        ValueError: a decoder for pixels; neither a decoder nor ``like`` for latents. The returned function raises it if
            the decoder returns something other than pictures.

    >>> viewer(Pixels())(np.zeros((2, 8, 8, 1))).shape
    (2, 8, 8, 1)
    """
    if isinstance(space, Pixels):
        if decode is not None:
            raise ValueError("decode is for latents, but these images are pixels: leave it out")
        return np.asarray
    if decode is not None:
        return _by_rows(lambda latents: _decoded(decode, latents))
    if like is not None:
        low_C, high_C = _range(like)
        return _by_rows(lambda latents: rough_view(latents, low_C, high_C))
    raise ValueError(
        "the members generate latents, which are no pictures: pass decode=, such as ensdiff.interop.vae(folder).decode "
        "or ensdiff.data.pca.load(file).decode"
    )


def rough_view(
    latents: ArrayLike, low_C: ArrayLike | None = None, high_C: ArrayLike | None = None
) -> Float[np.ndarray, "n H W c"]:
    """Return the first three channels of latents (or the first, if there are fewer) as pictures in [0, 1].

    Args:
        latents: (n, H, W, C).
        low_C: the value of each channel that is black; by default the smallest.
        high_C: the value of each channel that is full; by default the largest.

    >>> rough_view(np.arange(8.0).reshape(2, 1, 1, 4)).tolist()
    [[[[0.0, 0.0, 0.0]]], [[[1.0, 1.0, 1.0]]]]
    """
    x = np.asarray(latents, np.float32)
    own_low_C, own_high_C = _range(x)
    low_C, high_C = (own_low_C if low_C is None else low_C), (own_high_C if high_C is None else high_C)
    c = 3 if x.shape[-1] >= 3 else 1
    low_c, high_c = np.asarray(low_C, np.float32)[:c], np.asarray(high_C, np.float32)[:c]
    return np.clip((x[..., :c] - low_c) / np.maximum(high_c - low_c, np.float32(1e-12)), 0, 1)


def _range(latents: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(latents, np.float32)
    return x.min((0, 1, 2)), x.max((0, 1, 2))


def _by_rows(view: Callable[[np.ndarray], np.ndarray]) -> Callable[[ArrayLike], np.ndarray]:
    def call(images: ArrayLike) -> np.ndarray:
        x = np.asarray(images, np.float32)
        pictures = view(x.reshape(-1, *x.shape[-3:])) if x.size else np.zeros((0, *x.shape[-3:-1], 1), np.float32)
        return pictures.reshape(*x.shape[:-3], *pictures.shape[1:])

    return call


def _decoded(decode: Decode, latents: np.ndarray) -> np.ndarray:
    try:
        pictures = check_images(decode(latents))
    except ValueError as error:
        raise ValueError(f"decode must return pictures (n, h, w, c) in [0, 1] or uint8: {error}") from error
    if len(pictures) != len(latents) or pictures.shape[-1] not in (1, 3):
        raise ValueError(
            f"decode made {pictures.shape} of {len(latents)} latents: expected as many pictures, with 1 or 3 channels"
        )
    return pictures.astype(np.float32) / np.float32(255) if pictures.dtype == np.uint8 else pictures
