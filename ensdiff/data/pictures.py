"""Pictures in a folder."""

import os
import pathlib
import warnings
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from ensdiff.data.dataset import Dataset, from_images

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
"""What is decoded, whatever a file is called: Pillow would start Ghostscript for one that holds PostScript."""
MAX_PIXELS = 2**26
"""Pixels of the largest picture that `folder` decodes; Pillow's own limit, which it only warns of, is above."""


def folder(
    path: str | os.PathLike,
    *,
    size: int | None = None,
    groups: Literal["folder"] | None = None,
    mode: Literal["RGB", "L"] = "RGB",
) -> Dataset:
    """All pictures below a folder, in sorted order of their paths; links and hidden files are left out.

    Pictures are turned upright by their EXIF orientation, transparency is put on white, and 16 bits are scaled to 8.

    Args:
        path: the folder.
        size: crop to the centre square and resize to this side; None takes the pictures as they are, all of one size.
        groups: None for one unit a picture; ``"folder"`` for one unit a first-level subfolder (a class, an artist).
        mode: ``"RGB"`` or ``"L"`` (grey).

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no picture, one that cannot be read, or pictures of several sizes; names the file.

    >>> from PIL import Image
    >>> for artist in ("ada", "bob"):
    ...     pathlib.Path("my_images", artist).mkdir(parents=True)
    ...     for i in range(3):
    ...         Image.new("RGB", (40, 30), (60 * i, 0, 0)).save(f"my_images/{artist}/{i}.png")
    >>> folder("my_images", size=16, groups="folder")
    Dataset(my_images: 6 images of 16x16x3 in 2 units)
    """
    if groups not in (None, "folder"):
        raise ValueError(f"groups={groups!r}: expected None or 'folder'")
    root = pathlib.Path(path)
    images, names = read_pictures(root, size=size, mode=mode)
    title = root.resolve().name
    if groups is None:
        return from_images(images, names=names, name=title)
    first_level = [pathlib.PurePath(name).parts[0] if pathlib.PurePath(name).parent.name else "" for name in names]
    if "" in first_level:
        stray = root / names[first_level.index("")]
        raise ValueError(f"{stray} is in no subfolder: with groups='folder' every picture belongs to one")
    return from_images(images, first_level, name=title)


def read_pictures(
    path: str | os.PathLike, *, size: int | None = None, mode: Literal["RGB", "L"] = "RGB"
) -> tuple[UInt8[np.ndarray, "N H W C"], list[str]]:
    """The pictures that `folder` takes, with its arguments and errors, and their paths; one picture is enough."""
    from PIL import Image

    root = pathlib.Path(path)
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist")
    if not root.is_dir():
        raise ValueError(f"{root} is a file: expected a folder of pictures")
    if mode not in ("RGB", "L"):
        raise ValueError(f"mode={mode!r}: expected 'RGB' or 'L'")
    if size is not None and size < 1:
        raise ValueError(f"size={size}: expected at least 1 pixel, or None for the pictures as they are")
    files = _files(root)
    if not files:
        raise ValueError(
            f"{root} holds no pictures; looked for {', '.join(SUFFIXES)} in it and its subfolders, links left out"
        )
    names = [str(file.relative_to(root)) for file in files]
    images: list[np.ndarray] = []
    for file, name in zip(files, names, strict=True):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(file, formats=FORMATS) as picture:
                    if picture.width * picture.height > MAX_PIXELS:
                        raise ValueError(f"{picture.width}x{picture.height} pixels is more than {MAX_PIXELS}")
                    pixels = _decode(picture, size, mode)
        except Exception as error:
            raise ValueError(f"{file} cannot be read as a picture: {error}") from error
        if images and pixels.shape != images[0].shape:
            raise ValueError(
                f"pictures differ in size: {names[0]} is {images[0].shape[1]}x{images[0].shape[0]}, {name} "
                f"is {pixels.shape[1]}x{pixels.shape[0]}; give size= to crop and resize them"
            )
        images.append(pixels)
    stacked = np.stack(images)
    return (stacked[..., None] if stacked.ndim == 3 else stacked), names


def _files(root: pathlib.Path) -> list[pathlib.Path]:
    files = []
    for parent, folders, names in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = pathlib.Path(parent, name)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and not file.is_symlink():
                files.append(file)
    return sorted(files, key=lambda file: file.relative_to(root).parts)


def _decode(picture: Any, size: int | None, mode: str) -> np.ndarray:
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        picture = _eight_bits(picture)
    elif picture.mode in ("I", "F"):  # convert() would cut off at 255 in silence
        raise ValueError(f"pixels of 32 bits (mode {picture.mode}): expected 8 or 16 bits a channel")
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    picture = picture.convert(mode)
    if size is not None:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _eight_bits(picture: Any) -> Any:
    """A grey picture of 16 bits scaled to 8, which Pillow's ``convert`` would cut off at 255 instead."""
    from PIL import Image

    values = np.asarray(picture).astype(np.float32)
    pixels = np.round(values / 257).astype(np.uint8)
    if "transparency" in picture.info:  # one grey value that stands for nothing
        pixels[values == picture.info["transparency"]] = 255
    return Image.fromarray(pixels)
