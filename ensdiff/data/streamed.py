"""Pictures that are decoded one by one into a memory-mapped file, so that they need not fit into memory.

What was decoded is kept in a folder of the cache, under a digest of the source's files (their names, sizes and times of
modification) and of the reader's options. The next call with the same files and options maps the same file.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ensdiff import hosts
from ensdiff.data.checked import from_images
from ensdiff.data.dataset import Dataset
from ensdiff.data.decoding import decode_picture
from ensdiff.data.warned import DataWarning
from ensdiff.files.checksums import read_sealed, write_sealed
from ensdiff.files.npy import growing_npy, map_npy
from ensdiff.files.reading import printable

FORMAT = 1
"""Changes when the same files and options are decoded to something else, so that the cache is not used."""
IMAGES, CONDITION, COLUMNS = "images.npy", "condition.npy", "columns.json"


class Row(NamedTuple):
    """One item of a source.

    Args:
        name: what messages call it.
        image: the content of a picture's file, or an array of uint8 pixels, (H, W, C) or (H, W).
        label: its class.
        group: its group.
        caption: its caption.
        condition: its condition: a number, an array or text; None for data without a condition.
    """

    name: str
    image: Any
    label: Any = None
    group: Any = None
    caption: str | None = None
    condition: Any = None


class Wanted(NamedTuple):
    """What a reader was asked for; None for what it was not asked for."""

    image: str
    label: str | None = None
    caption: str | None = None
    group: str | None = None
    condition: str | None = None

    def columns(self) -> dict[str, str]:
        """Return the columns by what they are for.

        Raises:
            ValueError: both captions and groups are wanted: captions are the names of units of one item each.
        """
        if self.caption is not None and self.group is not None:
            raise ValueError(
                f"caption={self.caption!r} and group={self.group!r}: captions are the names of items that are units of "
                "their own; give one of them"
            )
        return {use: column for use, column in self._asdict().items() if column is not None}


def from_rows(
    rows: Callable[[], Iterable[Row]],
    wanted: Mapping[str, str],
    source: Mapping[str, Any],
    title: str,
    *,
    size: int | None,
    mode: str,
    cache: str | os.PathLike | None,
    total: int | None = None,
    class_names: Iterable[str] | None = None,
    keep_names: bool = False,
) -> Dataset:
    """Return the data set of the rows of a source, with images in a memory map in the cache.

    Args:
        rows: returns the rows. It is only called if the cache does not hold them.
        wanted: the columns that were asked for, by what they are for.
        source: JSON-able values that, with these columns, determine the rows.
        title: name of the data set.
        size: crop to the centre square and resize to this side; None keeps the pictures, which must have the same size.
        mode: ``"RGB"`` or ``"L"``.
        cache: the folder of the cache; None for `default_cache`.
        total: number of rows, for the progress bar; None if unknown.
        class_names: names of the classes of the conditions.
        keep_names: whether the names of rows are the names of items, also without captions.

    Raises:
        ValueError: there are no rows, a picture cannot be decoded, or pictures or conditions differ in size. The
            message names the first such item.

    Warns:
        DataWarning: a file holds several pictures, of which only the first is used.
    """
    if size is not None and size < 1:
        raise ValueError(f"size={size}: expected at least 1 pixel, or None for the pictures as they are")
    key = hashlib.sha256(json.dumps([FORMAT, size, mode, dict(wanted), source], sort_keys=True).encode()).hexdigest()[
        :16
    ]
    root = default_cache() if cache is None else pathlib.Path(cache)
    place = root / f"{title}-{key}"
    if not (place / COLUMNS).exists():
        root.mkdir(parents=True, exist_ok=True)
        with _completed(place) as folder:
            _write(folder, rows(), title, size, mode, total)
    columns = read_sealed(place / COLUMNS)
    condition = map_npy(place / CONDITION) if (place / CONDITION).exists() else columns["condition"]
    named = "group" not in wanted and (keep_names or "caption" in wanted)
    return from_images(
        map_npy(place / IMAGES),
        columns["group"] if "group" in wanted else None,
        name=title,
        labels=columns["label"] if "label" in wanted else None,
        names=columns["name"] if named else None,
        condition=condition if "condition" in wanted else None,
        class_names=None if class_names is None else list(class_names),
    )


def default_cache() -> pathlib.Path:
    """Return the folder ``ensdiff`` in ``$XDG_CACHE_HOME``, which is ``~/.cache`` by default.

    >>> default_cache().name
    'ensdiff'
    """
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ensdiff"


def stamps(root: pathlib.Path, files: Iterable[pathlib.Path]) -> list[Any]:
    """Return the names relative to a folder, sizes and times of modification of files, sorted."""
    found = sorted(files)
    return [[os.path.relpath(file, root), (info := file.stat()).st_size, info.st_mtime_ns] for file in found]


@contextlib.contextmanager
def _completed(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a new folder that gets its name once it is complete. If another process was faster, its folder is kept."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        yield folder
        with contextlib.suppress(OSError):
            folder.rename(place)
        if not (place / COLUMNS).exists():
            raise OSError(f"{place} exists, but is incomplete: delete it")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(
    folder: pathlib.Path, rows: Iterable[Row], title: str, size: int | None, mode: str, total: int | None
) -> None:
    """Decode the rows into the files of a folder."""
    columns: dict[str, list[Any]] = {"name": [], "label": [], "group": [], "condition": []}
    several = []
    with contextlib.ExitStack() as stack:
        images = stack.enter_context(growing_npy(folder / IMAGES))
        numbers = None
        bar = stack.enter_context(hosts.progress_bar(total, f"decoding {printable(title)}", "picture", shown=True))
        for number, row in enumerate(rows):
            pixels, is_several = _pixels(row, size, mode)
            if is_several:
                several.append(row.name)
            if images.row is not None and images.row[0] != pixels.shape:
                H, W, C = images.row[0]
                raise ValueError(
                    f"pictures of {title} differ in size: the first is {W}x{H} with {C} channels, {row.name} is "
                    f"{pixels.shape[1]}x{pixels.shape[0]} with {pixels.shape[2]}; give size= to crop and resize them"
                )
            images.append(pixels)
            try:
                value = _number(row.condition)
                if number == 0 and value is not None:
                    numbers = stack.enter_context(growing_npy(folder / CONDITION))
                if (value is None) != (numbers is None):
                    raise ValueError("some are numbers, and others text or missing")
                if numbers is not None and value is not None:
                    numbers.append(value)
            except ValueError as error:
                raise ValueError(f"the condition of {row.name}, {str(row.condition)[:40]!r}: {error}") from error
            columns["condition"] += [] if value is not None else [row.condition]
            columns["name"].append(row.name if row.caption is None else f"{row.name}: {row.caption}")
            for use in ("label", "group"):
                columns[use].append(_plain(getattr(row, use)))
            bar.update()
        if images.row is None:
            raise ValueError(f"{title} holds no pictures")
    if several:
        hosts.warn(
            printable(
                f"{title}: took only the first picture of {len(several)} that hold several, such as {several[0]}"
            ),
            DataWarning,
            stacklevel=4,
        )
    write_sealed(folder / COLUMNS, columns)


def _pixels(row: Row, size: int | None, mode: str) -> tuple[np.ndarray, bool]:
    """Return the decoded picture of a row, (H, W, C) uint8, and whether its file holds further pictures."""
    try:
        if isinstance(row.image, bytes):
            return decode_picture(io.BytesIO(row.image), size, mode)
        array = np.asarray(row.image)
        if array.dtype.kind not in "iu" or array.ndim not in (2, 3) or array.min() < 0 or array.max() > 255:
            raise ValueError(f"an array of dtype {array.dtype} and shape {array.shape}: expected pixels, 0 .. 255")
        from PIL import Image

        stream = io.BytesIO()
        array = array.astype(np.uint8)
        Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array).save(stream, "PNG")
        return decode_picture(stream, size, mode)
    except Exception as error:
        raise ValueError(f"{row.name} cannot be read as a picture: {error}") from error


def _number(value: Any) -> np.ndarray | None:
    """Return a condition of numbers as an array of int32 or float32, and None for no condition and for text."""
    if value is None or isinstance(value, str):
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"a condition of dtype {array.dtype}: expected numbers of one shape, or text")
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.size and not np.iinfo(np.int32).min <= array.min() <= array.max() <= np.iinfo(np.int32).max:
        raise ValueError("integers of more than 32 bits")
    return array.astype(np.int32)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
