"""Small pictures: check them, convert them to 8 bits, join them in a grid, and encode them as PNG."""

import io
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ensdiff.typing import unmasked


def to_uint8(image: Any) -> UInt8[np.ndarray, "..."]:
    """Return images as uint8: floats in [0, 1] are clipped and rounded, and uint8 is returned unchanged."""
    image = np.asarray(image)
    return image if image.dtype == np.uint8 else np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def check_images(images: Any, image_shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return images unchanged if they are uint8; clip floats that exceed [0, 1] by rounding only.

    Args:
        images: (B, H, W, C), uint8 or floats in [0, 1].
        image_shape: the (H, W, C) that they must have; None allows any.

    Raises:
        ValueError: the shape or dtype is wrong, or a value is further outside of [0, 1] than rounding explains. The
            message names the image.
    """
    array = np.asarray(unmasked(images, "the images"))
    sizes = "H, W, C" if image_shape is None else ", ".join(map(str, image_shape))
    if array.ndim != 4 or not len(array) or image_shape not in (None, array.shape[1:]):
        raise ValueError(f"the images have shape {array.shape}: expected (B, {sizes}), channels last")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise ValueError(f"the images have dtype {array.dtype}: expected uint8, or floats in [0, 1]")
    rounding = 1e-6 + 2 * float(np.finfo(array.dtype).eps)
    if not (array.min() >= -rounding and array.max() <= 1 + rounding):  # also true of NaN
        within = (array >= -rounding) & (array <= 1 + rounding)
        wrong = np.flatnonzero(~within.reshape(len(array), -1).all(1))[0]
        low, high = float(array[wrong].min()), float(array[wrong].max())
        raise ValueError(
            f"image {wrong} holds {'NaN' if np.isnan(low) else f'values outside of [0, 1], {low:.9g} to {high:.9g}'}: "
            "expected floats in [0, 1]; for [-1, 1] give (x + 1) / 2, for 0 .. 255 give uint8"
        )
    return np.clip(array, 0, 1)


def grid(images_BHWC: Any, columns: int | None = None, pad: int = 1) -> UInt8[np.ndarray, "H W C"]:
    """Join images in a grid, row by row, with a grey line of ``pad`` pixels between them.

    >>> grid(np.zeros((5, 8, 8, 1)), columns=3).shape
    (17, 26, 1)
    """
    images = to_uint8(images_BHWC)
    B, H, W, C = images.shape
    columns = int(np.ceil(np.sqrt(B))) if columns is None else columns
    rows = -(-B // columns)
    sheet = np.full((rows * (H + pad) - pad, columns * (W + pad) - pad, C), 128, np.uint8)
    for b, image in enumerate(images):
        top, left = b // columns * (H + pad), b % columns * (W + pad)
        sheet[top : top + H, left : left + W] = image
    return sheet


def to_png(image_HWC: Any, scale: int = 1, most: int | None = None) -> bytes:
    """Return a PNG of one image (grey or RGB).

    Every pixel is enlarged to ``scale`` x ``scale``. An image with a side of more than ``most`` pixels is scaled down.
    """
    from PIL import Image

    pixels = to_uint8(image_HWC)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    pixels = np.repeat(np.repeat(pixels, scale, axis=0), scale, axis=1)
    picture, stream = Image.fromarray(pixels), io.BytesIO()
    if most is not None:
        picture.thumbnail((most, most))
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
