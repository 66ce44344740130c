"""Decoding of one picture: which formats are read, and how their pixels become 8 bits in RGB or grey."""

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

Mode = Literal["RGB", "L"]

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "QOI")
"""Formats that are decoded, whatever a file is called: those that Pillow decodes itself and recognises by their first
bytes. With all formats, Pillow would start Ghostscript for PostScript files and take almost any bytes for Targa."""
FEATURES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
"""Formats that only some builds of Pillow decode, and Pillow's names of these features."""
MAX_PIXELS = 2**26
"""Pixels of the largest picture that `folder` decodes. Pillow's own limit is higher, and it only warns of it."""
BITS, PHOTOMETRIC, SAMPLE_FORMAT, WHITE_IS_ZERO = 258, 262, 339, 0
"""TIFF tags, and a value of `PHOTOMETRIC`."""


class Readable(NamedTuple):
    """The ``formats`` (among `FORMATS`) that this build of Pillow decodes, and the ``suffixes`` of their files."""

    formats: tuple[str, ...]
    suffixes: tuple[str, ...]


@functools.cache
def readable() -> Readable:
    """Return the formats that Pillow can decode here; they are determined once."""
    from PIL import Image, features

    Image.init()
    formats = tuple(
        name for name in FORMATS if name in Image.OPEN and (name not in FEATURES or features.check(FEATURES[name]))
    )
    known = {*formats, "MPO"}  # Pillow's name for a JPEG that contains further pictures
    return Readable(formats, tuple(suffix for suffix, name in sorted(Image.EXTENSION.items()) if name in known))


class Decoded(NamedTuple):
    """The pixels of a picture, and whether its file holds further ones, such as the frames of an animation."""

    pixels: UInt8[np.ndarray, "H W C"]
    is_several: bool


def decode_picture(stream: BinaryIO, size: int | None = None, mode: str = "RGB") -> Decoded:
    """Decode a picture as `folder` does.

    Raises:
        ValueError: the picture is damaged, in another format, or larger than `MAX_PIXELS`.
    """
    with _opened(stream) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{picture.width}x{picture.height} pixels is more than {MAX_PIXELS}: resize it")
        pixels = _decode(picture, stream, size, mode)
        is_several = picture.format not in ("JPEG", "MPO") and getattr(picture, "is_animated", False)
    return Decoded(pixels[..., None] if pixels.ndim == 2 else pixels, is_several)


@contextlib.contextmanager
def _opened(stream: BinaryIO) -> Iterator[Any]:
    """Open a picture in one of the supported formats.

    Raises:
        ValueError: the picture is damaged or in another format.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = Image.open(stream, formats=readable().formats)
        except Image.UnidentifiedImageError:
            raise ValueError(f"it is damaged, or not one of {', '.join(readable().formats)}") from None
        with picture:
            yield picture


def _decode(picture: Any, stream: BinaryIO, size: int | None, mode: str) -> np.ndarray:
    from PIL import Image, ImageOps

    tags = picture.tag_v2 if picture.format == "TIFF" else {}
    negative = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    white = 4095 if tags.get(BITS) == (12,) else 65535
    sixteen = picture.mode.startswith("I;16") or (picture.format == "PPM" and picture.mode == "I")
    if picture.format == "PNG":
        picture = _with_transparency(picture, stream)
    picture = ImageOps.exif_transpose(picture)
    if sixteen:
        picture = _eight_bits(picture, white, negative)
    elif picture.mode in ("I", "F"):  # convert() would silently clip at 255
        raise ValueError(f"pixels of 32 bits (mode {picture.mode}): expected 8 or 16 bits per channel")
    elif 2 in tags.get(SAMPLE_FORMAT, ()):  # signed 8 bits: Pillow would read -1 as 255
        raise ValueError("pixels with a sign: expected unsigned values")
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white_picture = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white_picture, picture)
    picture = picture.convert(mode)
    if size is not None:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _with_transparency(picture: Any, stream: BinaryIO) -> Any:
    """Return a PNG whose transparent colour is on the same scale as its decoded pixels.

    Pillow scales grey of 2 and 4 bits to 8 and keeps the upper of two bytes of a colour, but it leaves the transparent
    colour as stored in the file.
    """
    from PIL import Image

    colour, tile = picture.info.get("transparency"), picture.tile[0]
    if colour is None or tile[3] not in ("L;2", "L;4", "RGB;16B"):
        return picture
    if tile[3] != "RGB;16B":
        top = 3 if tile[3] == "L;2" else 15
        picture.info["transparency"] = (colour & top) * (255 // top)
        return picture
    upper = np.asarray(picture)
    stream.seek(0)
    with _opened(stream) as again:
        again.tile = [(*tile[:3], "RGB;16L")]  # with the opposite byte order, Pillow keeps the lower bytes
        lower = np.asarray(again)
    clear = (upper.astype(np.uint16) * 256 + lower == colour).all(-1)
    whole = Image.fromarray(np.dstack([upper, np.where(clear, 0, 255).astype(np.uint8)]))
    whole.info = {name: value for name, value in picture.info.items() if name != "transparency"}
    return whole


def _eight_bits(picture: Any, white: int, negative: bool) -> Any:
    """Scale a grey picture of up to 16 bits to 8. Pillow's ``convert`` would clip at 255 instead."""
    from PIL import Image

    values = np.asarray(picture).astype(np.float32)
    pixels = np.round(values * (255 / white)).astype(np.uint8)
    if negative:
        pixels = 255 - pixels
    if "transparency" in picture.info:  # the grey value of transparent pixels
        pixels[values == picture.info["transparency"]] = 255
    return Image.fromarray(pixels)
