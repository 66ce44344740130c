"""A reader of WebDataset shards: tar files whose members ``key.jpg``, ``key.cls``, ``key.json`` belong together.

Nothing is extracted to the disk, so the names of members are only names. The shards' headers are read first, so that
samples are in the sorted order of their keys, and incomplete or repeated ones are found before anything is decoded.
"""

import glob
import os
import pathlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ensdiff import hosts
from ensdiff.data.dataset import Dataset
from ensdiff.data.decoding import Mode
from ensdiff.data.streamed import Row, Wanted, from_rows, stamps
from ensdiff.data.warned import DataWarning
from ensdiff.files.npy import parse_npy
from ensdiff.files.reading import open_regular, parse_json, printable, whole_number
from ensdiff.settings import check_value

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS = 10**6


class Part(NamedTuple):
    """Where a member of a tar file is: the number of its shard, and the offset and size of its content."""

    shard: int
    offset: int
    size: int


def webdataset(
    pattern: str | os.PathLike,
    *,
    image: str = "jpg;jpeg;png;webp",
    label: str | None = None,
    caption: str | None = None,
    group: str | None = None,
    condition: str | None = None,
    size: int | None = None,
    mode: Mode = "RGB",
    cache: str | os.PathLike | None = None,
) -> Dataset:
    """Read WebDataset shards, in the sorted order of their samples' keys.

    Members are named by extensions: what follows the first dot of the file name, such as ``"cls"``. ``"json:artist"``
    is the field ``artist`` of the member ``json``. Members that end with ``.npy`` (or are called ``npy``) are arrays,
    those that consist of digits are integers, and all others are text.

    Pictures are decoded as by `folder`, one after another, into a memory-mapped file in the cache, so that they need
    not fit into memory. The next call with the same files and options uses this file.

    Args:
        pattern: the shards, uncompressed tar files: ``"shards/{000..015}.tar"``, ``"shards/*.tar"``, or their folder.
        image: the member with the picture: the first of several extensions that a sample has.
        label: the member with the class.
        caption: the member with the caption, which is added to the name of the item, its key. It is no condition.
        group: the member that defines the units; None for one unit per image.
        condition: the member with what a model is told about each image: a class, a vector or tokens.
        size: crop to the centre square and resize to this side; None keeps the pictures, which must have the same size.
        mode: ``"RGB"`` or ``"L"`` (grey).
        cache: the folder for decoded pictures; by default ``ensdiff`` in ``$XDG_CACHE_HOME`` (``~/.cache``).

    Raises:
        FileNotFoundError: no shard exists, or one of a range is missing.
        ValueError: a shard is damaged or compressed, two samples have the same key, a sample with a picture lacks
            another member, or a picture cannot be read. The message names the sample.

    Warns:
        DataWarning: samples without a picture, or members that are no regular files, were left out.

    >>> import io, tarfile
    >>> from PIL import Image
    >>> with tarfile.open("cats.tar", "w") as shard:
    ...     for i in range(3):
    ...         stream = io.BytesIO()
    ...         Image.new("RGB", (8, 8), (50 * i, 0, 0)).save(stream, "PNG")
    ...         for name, content in ((f"{i}.png", stream.getvalue()), (f"{i}.cls", str(i % 2).encode())):
    ...             member = tarfile.TarInfo(name)
    ...             member.size = len(content)
    ...             shard.addfile(member, io.BytesIO(content))
    >>> webdataset("cats.tar", condition="cls", cache=".")
    Dataset(cats: 3 images of 8x8x3 in 3 units, conditioned on 2 classes)
    """
    check_value("mode", mode, Mode)
    columns = Wanted(image, label, caption, group, condition).columns()
    shards = find_shards(pattern)
    samples = _complete(_index(shards), columns)

    def rows() -> Iterator[Row]:
        streams: dict[int, Any] = {}
        try:
            for key in sorted(samples):
                parts = samples[key]
                found: dict[str, Any] = {}
                for use, column in columns.items():
                    extension = _extension(use, column, parts)
                    part = parts[extension]
                    if part.shard not in streams:
                        for number in [*streams]:  # samples are nearly always sorted, so that one open file suffices
                            streams.pop(number).close()
                        streams[part.shard] = open_regular(shards[part.shard])
                    content = _read(streams[part.shard], part, f"{key}.{extension}")
                    found[use] = content if use == "image" else _value(content, column, f"{key}.{extension}")
                if "caption" in found:
                    found["caption"] = str(found["caption"]).strip()
                yield Row(key, found.pop("image"), **found)
        finally:
            for stream in streams.values():
                stream.close()

    source = {"reader": "webdataset", "files": stamps(pathlib.Path(os.sep), [shard.resolve() for shard in shards])}
    title = shards[0].stem if len(shards) == 1 else shards[0].resolve().parent.name
    return from_rows(
        rows, columns, source, title, size=size, mode=mode, cache=cache, total=len(samples), keep_names=True
    )


def find_shards(pattern: str | os.PathLike) -> list[pathlib.Path]:
    """Return the tar files that a pattern with ranges and wildcards stands for, or those in a folder, sorted.

    Raises:
        FileNotFoundError: there are none, or one of a range is missing.
        ValueError: a range is empty, or has more than `MOST_SHARDS` numbers.

    >>> find_shards("{008..010}.tar")
    Traceback (most recent call last):
    FileNotFoundError: 008.tar does not exist, the first of 3 shards of {008..010}.tar
    """
    text = str(pattern)
    if os.path.isdir(text):
        text = os.path.join(glob.escape(text), "*.tar")
    found = []
    names = _expanded(text)
    for name in names:
        files = [name] if os.path.exists(name) else sorted(glob.glob(name))
        if not files:
            which = "" if len(names) == 1 else f", the first of {len(names)} shards of {text}"
            raise FileNotFoundError(f"{name} does not exist{which}")
        found += files
    return [pathlib.Path(file) for file in dict.fromkeys(found)]


def _expanded(text: str) -> list[str]:
    """Return the names that a text with ranges such as ``{000..015}`` stands for."""
    names = [""]
    pieces = RANGE.split(text)  # text, first, last, text, first, last, ..., text
    for first, last, rest in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        count = int(last) - int(first) + 1
        if not 0 < count * len(names) <= MOST_SHARDS:
            raise ValueError(f"the range {{{first}..{last}}} of {text}: expected 1 to {MOST_SHARDS} shards")
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        names = [name + number + rest for name in names for number in numbers]
    return [pieces[0] + name for name in names]


def _index(shards: Sequence[pathlib.Path]) -> dict[str, dict[str, Part]]:
    """Return the members of each sample by their extensions, from the headers of the shards."""
    samples: dict[str, dict[str, Part]] = {}
    home: dict[str, int] = {}
    left_out: list[str] = []
    for number, shard in enumerate(shards):
        try:
            with open_regular(shard) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
                previous = None
                for member in archive:
                    if not member.isreg() or member.issparse():
                        left_out += [] if member.isdir() else [member.name]
                        continue
                    folder, _, file = member.name.rpartition("/")
                    stem, dot, extension = file.partition(".")
                    if not dot or not stem:  # also hidden files, such as those of macOS
                        left_out.append(member.name)
                        continue
                    key, extension = f"{folder}/{stem}" if folder else stem, extension.lower()
                    parts = samples.setdefault(key, {})
                    if extension in parts or (parts and (home[key] != number or previous != key)):
                        where = "" if home[key] == number else f", in {shards[home[key]]} and in {shard}"
                        raise _RepeatedError(f"two samples have the key {key!r}{where}: expected different keys")
                    parts[extension] = Part(number, member.offset_data, member.size)
                    home[key] = number
                    previous = key
                stream.seek(archive.offset)
                if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    # tarfile would stop without an error where a file was cut or a header is damaged
                    raise tarfile.ReadError(f"it has no member and no end mark at byte {archive.offset}")
        except _RepeatedError as error:
            raise ValueError(f"{shard}: {error}") from None
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise ValueError(
                f"{shard} cannot be read as an uncompressed tar file: {error}. Unpack it if it is compressed, and "
                "copy it again if it was cut off"
            ) from error
    if left_out:
        hosts.warn(
            printable(f"left out {len(left_out)} members of shards that belong to no sample, such as {left_out[0]}"),
            DataWarning,
            stacklevel=3,
        )
    return samples


class _RepeatedError(Exception):
    """Raised when two samples have the same key."""


def _complete(samples: dict[str, dict[str, Part]], columns: dict[str, str]) -> dict[str, dict[str, Part]]:
    """Return the samples that have a picture, and check that each of them has every other wanted member."""
    kept = {key: parts for key, parts in samples.items() if _extension("image", columns["image"], parts) is not None}
    if not kept:
        known = sorted({extension for parts in samples.values() for extension in parts})
        raise ValueError(f"no sample has a member {columns['image']}; they have {', '.join(known[:20]) or 'none'}")
    if len(kept) < len(samples):
        first = min(set(samples) - set(kept))
        hosts.warn(
            printable(
                f"left out {len(samples) - len(kept)} of {len(samples)} samples without a picture "
                f"({columns['image']}), such as {first}"
            ),
            DataWarning,
            stacklevel=3,
        )
    for use, column in columns.items():
        lacking = sorted(key for key, parts in kept.items() if _extension(use, column, parts) is None)
        if lacking:
            there = ", ".join(sorted(kept[lacking[0]]))
            raise ValueError(
                f"{len(lacking)} of {len(kept)} samples have no member {column.partition(':')[0]!r} for {use}=: the "
                f"first is {lacking[0]}, which has {there}"
            )
    return kept


def _extension(use: str, column: str, parts: dict[str, Part]) -> Any:
    """Return the extension of the member of a sample for a use, or None."""
    names = column.lower().split(";") if use == "image" else [column.partition(":")[0].lower()]
    return next((name for name in names if name in parts), None)


def _read(stream: Any, part: Part, name: str) -> bytes:
    stream.seek(part.offset)
    content = stream.read(part.size)
    if len(content) != part.size:
        raise ValueError(f"{name}: its shard ends after {len(content)} of {part.size} bytes")
    return content


def _value(content: bytes, column: str, name: str) -> Any:
    """Return the value of a member that is no picture."""
    extension, _, field = column.partition(":")
    try:
        if extension.endswith("npy"):
            return parse_npy(content)
        if not field:
            text = content.decode().strip()
            number = whole_number(text)
            return text if number is None else number
        values = parse_json(content)
        if not isinstance(values, dict) or field not in values:
            known = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"it has no field {field!r}; it has {known}")
        return values[field]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
