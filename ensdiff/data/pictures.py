"""A reader of pictures in a folder."""

import collections
import dataclasses
import os
import pathlib
import warnings
from collections.abc import Iterable
from typing import Literal, NamedTuple, NoReturn

import numpy as np
from jaxtyping import UInt8

from ensdiff.data.categories import categories
from ensdiff.data.checked import from_images
from ensdiff.data.dataset import Dataset
from ensdiff.data.decoding import Mode, decode_picture, readable
from ensdiff.data.warned import DataWarning
from ensdiff.files.reading import open_regular, printable
from ensdiff.settings import check_value

LINK = "link"
NAMED = 8
"""How many unreadable pictures a message names; it counts the others."""
NO_DATA, NO_DATA_FOLDERS = ("thumbs.db", "desktop.ini"), ("__macosx", "@eadir")
"""Files and folders that operating systems leave behind. Like hidden ones, they are left out without a warning."""


class Found(NamedTuple):
    """The content of a folder and its subfolders, as sorted paths relative to it.

    ``left_out`` maps each path that is not a picture to its kind, such as ``".heic"``. ``first_level`` lists the
    visible subfolders.
    """

    files: list[pathlib.PurePath]
    left_out: dict[pathlib.PurePath, str]
    first_level: list[str]


def folder(
    path: str | os.PathLike,
    *,
    size: int | None = None,
    groups: Literal["folder"] | None = None,
    mode: Mode = "RGB",
    labels: Literal["folder"] | None = None,
    skip_bad: bool = False,
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
        skip_bad: leave pictures out that cannot be read, with a warning; ``skipped`` of the result lists them. Units
            keep their names and their other pictures; a unit without any is left out, and the warning names it.

    Raises:
        FileNotFoundError: the folder does not exist.
        PermissionError: a subfolder may not be read.
        ValueError: there is no picture, some cannot be read, or sizes differ; with ``groups="folder"`` or
            ``labels="folder"``, also if a picture is in no subfolder or a first-level subfolder has no pictures. The
            message names the file or folder; unreadable pictures are all counted, and the first ones named.

    Warns:
        DataWarning: files, links or unreadable pictures were left out, or a file contains several pictures.

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
    read = _read(root, found, size, mode, skip_bad)
    names = [names[i] for i in read.kept]
    first_level = first_level and [first_level[i] for i in read.kept]
    whose = None if labels is None else first_level
    own = {"names": names} if groups is None else {"groups": first_level}
    return dataclasses.replace(from_images(read.images, **own, name=title, labels=whose), skipped=read.bad)


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
    return _read(pathlib.Path(path), found, size, mode).images, [str(file) for file in found.files]


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


class _Read(NamedTuple):
    """Pictures, their positions in `Found.files`, and why each of the others cannot be read, by path."""

    images: UInt8[np.ndarray, "N H W C"]
    kept: list[int]
    bad: dict[str, str]


def _read(root: pathlib.Path, found: Found, size: int | None, mode: Mode, skip_bad: bool = False) -> _Read:
    images: list[np.ndarray] = []
    kept: list[int] = []
    several: list[pathlib.PurePath] = []
    bad: dict[str, str] = {}
    odd = ""
    for position, name in enumerate(found.files):
        try:
            with open_regular(root / name) as stream:
                pixels, is_several = decode_picture(stream, size, mode)
        except Exception as error:
            # without the folder, whose path is not for those to whom a run is given
            bad[str(name)] = str(error).replace(str(root / name), str(name)) or type(error).__name__
            continue
        if images and pixels.shape != images[0].shape:
            odd = odd or (
                f"pictures differ in size: {found.files[kept[0]]} is {images[0].shape[1]}x{images[0].shape[0]}, {name} "
                f"is {pixels.shape[1]}x{pixels.shape[0]}; give size= to crop and resize them"
            )
            continue
        if is_several:
            several.append(name)
        images.append(pixels)
        kept.append(position)
    if bad and not (skip_bad and images):
        raise ValueError(_unreadable(root, bad, len(found.files)))
    if odd:
        raise ValueError(odd)
    before = {file.parts[0] for file in found.files if len(file.parts) > 1}
    lost = sorted(before - {found.files[position].parts[0] for position in kept})
    _warn(root, found.left_out, several, list(bad), lost)
    return _Read(np.stack(images), kept, bad)


def _unreadable(root: pathlib.Path, bad: dict[str, str], count: int) -> str:
    """Return the message about pictures that cannot be read, of which the first few are named."""
    if len(bad) == 1:
        ((name, why),) = bad.items()
        return f"{root / name} cannot be read as a picture: {why}. Mend or remove it, or leave it out: skip_bad=True"
    named = _some([f"{name}: {why}" for name, why in bad.items()], "; ")
    return (
        f"{len(bad):,} of {count:,} pictures in {root} cannot be read: {named}. Mend or remove them, or leave them out "
        "with skip_bad=True"
    )


def _some(names: list[str], between: str = ", ") -> str:
    """Return the first few of many names, and the number of the others."""
    rest = f"{between}and {len(names) - NAMED:,} others" if len(names) > NAMED else ""
    return between.join(_shown(pathlib.PurePath(name)) for name in names[:NAMED]) + rest


def _warn(
    root: pathlib.Path,
    left_out: dict[pathlib.PurePath, str],
    several: list[pathlib.PurePath],
    bad: list[str],
    lost: list[str],
) -> None:
    """Issue one warning about everything that was left out, attributed to the caller of the reader."""
    parts = []
    if bad:
        parts.append(f"left out {len(bad):,} picture{'s' * (len(bad) > 1)} that cannot be read: {_some(bad)}")
    if lost:
        parts.append(f"no picture is left in {_some(lost)}")
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
