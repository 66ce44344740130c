"""A reader of pictures in a folder."""

import collections
import contextlib
import functools
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn

import numpy as np
from jaxtyping import UInt8

from ensdiff.data.categories import categories
from ensdiff.data.checked import from_images
from ensdiff.data.dataset import Dataset
from ensdiff.data.warned import DataWarning
from ensdiff.files.reading import open_regular, printable
from ensdiff.settings import check_value

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
LINK = "link"
NO_DATA, NO_DATA_FOLDERS = ("thumbs.db", "desktop.ini"), ("__macosx", "@eadir")
"""Files and folders that operating systems leave behind. Like hidden ones, they are left out without a warning."""


class Readable(NamedTuple):
    """The ``formats`` (among `FORMATS`) that this build of Pillow decodes, and the ``suffixes`` of their files."""

    formats: tuple[str, ...]
    suffixes: tuple[str, ...]


class Found(NamedTuple):
    """The content of a folder and its subfolders, as sorted paths relative to it.

    ``left_out`` maps each path that is not a picture to its kind, such as ``".heic"``. ``first_level`` lists the
    visible subfolders.
    """

    files: list[pathlib.PurePath]
    left_out: dict[pathlib.PurePath, str]
    first_level: list[str]


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


def folder(
    path: str | os.PathLike,
    *,
    size: int | None = None,
    groups: Literal["folder"] | None = None,
    mode: Mode = "RGB",
    labels: Literal["folder"] | None = None,
) -> Dataset:
    """Read all pictures in a folder and its subfolders, in sorted order of their paths.

    PNG, JPEG, BMP, GIF, TIFF, WebP, AVIF, JPEG 2000, PPM and QOI files are read, with any suffix that Pillow knows for
    them (AVIF only if Pillow supports it). Other files and links (to files or to folders) are left out, and one
    `DataWarning` reports how many there are of each suffix. Hidden files and folders, and those that operating systems
    leave behind, are left out without a warning. Only the first picture of an animation or a file with several pages is
    used, and the same warning reports it; extra pictures in a JPEG (previews, depth) are ignored.

    Pictures are turned upright according to their EXIF orientation, transparent pixels are blended with white, and 16
    bits are scaled to 8.

    Args:
        path: the folder.
        size: crop to the centre square and resize to this side; None keeps the pictures, which must have the same size.
        groups: None for one unit per picture; ``"folder"`` for one unit per first-level subfolder (a class, an artist).
        mode: ``"RGB"`` or ``"L"`` (grey).
        labels: ``"folder"`` makes the first-level subfolder of each picture its label (`Dataset.labels`), for
            hierarchical codes with pictures as units inside artists, and for models that are conditioned on classes.

    Raises:
        FileNotFoundError: the folder does not exist.
        PermissionError: a subfolder may not be read.
        ValueError: there is no picture, one cannot be read, or sizes differ; with ``groups="folder"`` or
            ``labels="folder"``, also if a picture is in no subfolder or a first-level subfolder has no pictures. The
            message names the file or folder.

    Warns:
        DataWarning: files or links were left out, or a file contains several pictures.

    >>> from PIL import Image
    >>> for artist in ("ada", "bob"):
    ...     pathlib.Path("my_images", artist).mkdir(parents=True)
    ...     for i in range(3):
    ...         Image.new("RGB", (40, 30), (60 * i, 0, 0)).save(f"my_images/{artist}/{i}.png")
    >>> folder("my_images", size=16, groups="folder")
    Dataset(my_images: 6 images of 16x16x3 in 2 units)
    """
    check_value("groups", groups, Literal["folder"] | None)
    check_value("labels", labels, Literal["folder"] | None)
    found = _find(path, size, mode)
    root = pathlib.Path(path)
    title = root.resolve().name
    names = [str(file) for file in found.files]
    by = "groups" if groups is not None else "labels" if labels is not None else None
    first_level = None if by is None else _first_level(root, found, names, by)
    images = _read(root, found, size, mode)
    whose = None if labels is None else first_level
    if groups is None:
        return from_images(images, names=names, name=title, labels=whose)
    return from_images(images, first_level, name=title, labels=whose)


def _first_level(root: pathlib.Path, found: Found, names: list[str], by: str) -> list[str]:
    """Return the first-level subfolder of each picture.

    Raises:
        ValueError: a picture is in no subfolder, or a subfolder has no pictures.
    """
    for file in found.files:
        if len(file.parts) == 1:
            raise ValueError(
                f"{root / file} is in no subfolder: with {by}='folder' every picture must be in one; move it there"
            )
    first_level = categories([file.parts[0] for file in found.files], len(names), by.removesuffix("s"), names).tolist()
    what = "unit" if by == "groups" else "label"
    for name in found.first_level:
        if name not in first_level:
            kinds = [kind for place, kind in found.left_out.items() if place.parts[0] == name]
            inside = f"only {_count(kinds)}" if kinds else "it is empty, or holds hidden files only"
            raise ValueError(
                f"{root / name} has no picture that is read ({inside}): with {by}='folder' each subfolder is a {what}. "
                "Convert its files, replace links by copies, or move the subfolder elsewhere"
            )
    return first_level


def read_pictures(
    path: str | os.PathLike, *, size: int | None = None, mode: Mode = "RGB"
) -> tuple[UInt8[np.ndarray, "N H W C"], list[str]]:
    """Return the pictures that `folder` would read, and their paths. Unlike `folder`, it accepts a single picture."""
    found = _find(path, size, mode)
    return _read(pathlib.Path(path), found, size, mode), [str(file) for file in found.files]


def find_pictures(path: str | os.PathLike) -> list[str]:
    """Return the paths of the pictures that `folder` would read, without reading them."""
    return [str(file) for file in _find(path, None, "RGB").files]


def _find(path: str | os.PathLike, size: int | None, mode: Mode) -> Found:
    """Check the arguments, and find the pictures."""
    root = pathlib.Path(path)
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist")
    if not root.is_dir():
        raise ValueError(f"{root} is a file: expected a folder of pictures")
    check_value("mode", mode, Mode)
    if size is not None and size < 1:
        raise ValueError(f"size={size}: expected at least 1 pixel, or None for the pictures as they are")
    files: list[pathlib.PurePath] = []
    left_out: dict[pathlib.PurePath, str] = {}
    first_level: list[str] = []
    suffixes = readable().suffixes
    for parent, folders, names in os.walk(root, followlinks=False, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".") and name.lower() not in NO_DATA_FOLDERS]
        place = pathlib.PurePath(parent).relative_to(root)
        if not place.parts:
            first_level = sorted(folders)
        left_out |= {place / name: LINK for name in folders if os.path.islink(os.path.join(parent, name))}
        for name in names:
            if name.startswith(".") or name.lower() in NO_DATA:
                continue
            if os.path.islink(os.path.join(parent, name)):
                left_out[place / name] = LINK
            elif name.lower().endswith(suffixes):
                files.append(place / name)
            else:
                left_out[place / name] = pathlib.PurePath(name).suffix.lower() or "without a suffix"
    if not files:
        beside = f", but {_count(left_out.values())}" if left_out else ""
        raise ValueError(
            f"{root} holds no pictures{beside}; looked for {', '.join(suffixes)} in it and its subfolders, with "
            "links left out"
        )
    files, places = (sorted(paths, key=lambda path: path.parts) for paths in (files, left_out))
    return Found(files, {place: left_out[place] for place in places}, first_level)


def _raise(error: OSError) -> NoReturn:
    raise error


def _count(kinds: Iterable[str]) -> str:
    """Return how often each kind occurs, the most frequent first: ``"2 .heic, 1 .txt"``."""
    counted = collections.Counter(kind if kind.isprintable() and len(kind) < 20 else "others" for kind in kinds)
    first = sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{count} {kind}" + ("s" if kind == LINK and count > 1 else "") for kind, count in first[:8]]
    rest = sum(count for _, count in first[8:])
    return ", ".join(shown) + (f" and {rest} others" if rest else "")


def _read(root: pathlib.Path, found: Found, size: int | None, mode: str) -> UInt8[np.ndarray, "N H W C"]:
    images: list[np.ndarray] = []
    several: list[pathlib.PurePath] = []
    for name in found.files:
        try:
            with open_regular(root / name) as stream:
                pixels, is_several = decode_picture(stream, size, mode)
            if is_several:
                several.append(name)
        except Exception as error:
            raise ValueError(f"{root / name} cannot be read as a picture: {error}") from error
        if images and pixels.shape != images[0].shape:
            raise ValueError(
                f"pictures differ in size: {found.files[0]} is {images[0].shape[1]}x{images[0].shape[0]}, {name} "
                f"is {pixels.shape[1]}x{pixels.shape[0]}; give size= to crop and resize them"
            )
        images.append(pixels)
    _warn(root, found.left_out, several)
    return np.stack(images)


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


def _warn(root: pathlib.Path, left_out: dict[pathlib.PurePath, str], several: list[pathlib.PurePath]) -> None:
    """Issue one warning about everything that was left out, attributed to the caller of the reader."""
    parts = []
    if left_out:
        plural = "" if len(left_out) == 1 else "s"
        things = f"file{plural}" + (f" or link{plural}" if LINK in left_out.values() else "")
        parts.append(
            f"left out {len(left_out)} {things}: {_count(left_out.values())} (such as {_shown(next(iter(left_out)))}). "
            f"Only {', '.join(readable().formats)} are read; convert other pictures, and replace links by copies"
        )
    if several:
        kinds = _count(file.suffix.lower() for file in several)
        parts.append(
            f"took only the first picture of files that hold several: {kinds} (such as {_shown(several[0])}). Save "
            "each frame or page as its own file to use all"
        )
    if parts:
        warnings.warn(printable(f"{root}: {'; '.join(parts)}"), DataWarning, stacklevel=4)


def _shown(place: pathlib.PurePath) -> str:
    """Return a path without characters that could control a terminal."""
    return ascii(str(place))[1:-1]


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
