"""Captions and other facts about the pictures of a folder, from its file ``metadata.jsonl``.

Each line is a JSON object with ``file_name``, the path of a picture from the folder, and columns such as ``text`` and
``artist``: the layout of image folders with captions that text-to-image programs share.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ensdiff.files.reading import parse_json, read_bytes

NAME, FILE = "metadata.jsonl", "file_name"


def read_metadata(
    folder: str | os.PathLike, pictures: Sequence[str], columns: Mapping[str, type]
) -> dict[str, list[Any]]:
    """Return columns of a folder's ``metadata.jsonl``, with one value for each picture.

    Args:
        folder: the folder.
        pictures: paths of the pictures from the folder, in the wanted order.
        columns: the names of the columns, and the type that their values must have: ``str``, or ``object`` for any.

    Raises:
        FileNotFoundError: the folder has no such file.
        ValueError: a line is not an object with a ``file_name`` and these columns, a picture has no line or several, or
            a line is about another file. The message gives the line or the picture.

    >>> _ = pathlib.Path("metadata.jsonl").write_text('{"file_name": "a.png", "text": "a red cat"}')
    >>> read_metadata(".", ["a.png"], {"text": str})
    {'text': ['a red cat']}
    """
    path = pathlib.Path(folder) / NAME
    try:
        lines = read_bytes(path).splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: expected a line for each picture in it") from None
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            if not isinstance(row, dict) or not isinstance(row.get(FILE), str):
                raise ValueError(f"expected an object with the text {FILE!r}")
            for name, kind in columns.items():
                if name not in row:
                    raise ValueError(f"it has no {name!r}; it has {', '.join(map(repr, row))}")
                if not isinstance(row.get(name), kind) or row.get(name) is None:
                    raise ValueError(f"{name}={row.get(name)!r:.40}: expected {'text' if kind is str else 'a value'}")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        place = pathlib.PurePosixPath(row[FILE]).as_posix()
        if place in rows:
            raise ValueError(f"{path}, line {number}: {place} has an earlier line too: expected one for each picture")
        rows[place] = row
    wanted = [pathlib.PurePath(picture).as_posix() for picture in pictures]
    for place in wanted:
        if place not in rows:
            raise ValueError(f"{path} has no line for the picture {place}: add one")
    for place in sorted(set(rows) - set(wanted)):
        raise ValueError(
            f"{path} has a line for {place}, which is no picture that is read: remove one, or add the other"
        )
    return {name: [rows[place][name] for place in wanted] for name in columns}
