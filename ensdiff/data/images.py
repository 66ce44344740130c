"""Small pictures: to 8 bits, side by side, and as PNG bytes."""

import io
from typing import Any

import numpy as np
from jaxtyping import UInt8


def to_uint8(image: Any) -> UInt8[np.ndarray, "..."]:
    """Images as uint8: floats in [0, 1] are clipped and rounded, uint8 is returned as it is."""
    image = np.asarray(image)
    return image if image.dtype == np.uint8 else np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def grid(images_BHWC: Any, columns: int | None = None, pad: int = 1) -> UInt8[np.ndarray, "H W C"]:
    """Images side by side, row by row, with a grey line of ``pad`` pixels between them.

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


def to_png(image_HWC: Any, scale: int = 1) -> bytes:
    """A PNG of one image (grey or RGB), every pixel enlarged to ``scale`` x ``scale``."""
    from PIL import Image

    pixels = to_uint8(image_HWC)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    pixels = np.repeat(np.repeat(pixels, scale, axis=0), scale, axis=1)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return stream.getvalue()
