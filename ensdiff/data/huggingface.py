"""A reader of Hugging Face data sets on disk. Nothing is downloaded."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from ensdiff.data.dataset import Dataset
from ensdiff.data.decoding import Mode
from ensdiff.data.streamed import Row, Wanted, from_rows, stamps
from ensdiff.files.reading import installed, read_bytes
from ensdiff.settings import check_value


def huggingface(
    path: str | os.PathLike,
    *,
    image: str = "image",
    label: str | None = None,
    caption: str | None = None,
    group: str | None = None,
    condition: str | None = None,
    split: str | None = None,
    size: int | None = None,
    mode: Mode = "RGB",
    cache: str | os.PathLike | None = None,
) -> Dataset:
    """Read a Hugging Face data set on disk: one saved with ``save_to_disk``, a folder of Parquet files, or an image
    folder with ``metadata.jsonl``.

    Pictures are decoded as by `folder`, one after another, into a memory-mapped file in the cache, so that they need
    not fit into memory. The next call with the same files and options uses this file.

    Args:
        path: the folder.
        image: the column of images.
        label: the column of classes. Numbers of a ``ClassLabel`` become the names of their classes.
        caption: the column of captions, which are added to the names of the items. They are no condition.
        group: the column that defines the units; None for one unit per image.
        condition: the column of what a model is told about each image: classes, vectors or tokens.
        split: such as ``"train"``; needed if there are several.
        size: crop to the centre square and resize to this side; None keeps the pictures, which must have the same size.
        mode: ``"RGB"`` or ``"L"`` (grey).
        cache: the folder for decoded pictures; by default ``ensdiff`` in ``$XDG_CACHE_HOME`` (``~/.cache``).

    Raises:
        FileNotFoundError: the folder does not exist.
        ImportError: the extra ``datasets`` is not installed: ``pip install 'ensdiff[datasets]'``.
        ValueError: a column or split does not exist (the message lists those that do), or a picture cannot be read.

    >>> huggingface("nowhere")
    Traceback (most recent call last):
    FileNotFoundError: nowhere does not exist: expected the folder of a data set, as nothing is downloaded
    """
    check_value("mode", mode, Mode)
    root = pathlib.Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist: expected the folder of a data set, as nothing is downloaded")
    columns = Wanted(image, label, caption, group, condition).columns()
    with installed("reading Hugging Face data sets needs their package", "datasets"):
        import datasets

    table = _table(root, split)
    features: dict[str, Any] = dict(table.features or {})
    for use, column in columns.items():
        if column not in features:
            raise ValueError(f"{root} has no column {column!r} for {use}=; it has {', '.join(features) or 'none'}")
    if isinstance(features[image], datasets.Image):
        table = table.cast_column(image, datasets.Image(decode=False))
    table = table.select_columns(list(dict.fromkeys(columns.values())))
    names = {column: feature.names for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)}

    def rows() -> Iterator[Row]:
        for number, values in enumerate(table):
            found = {use: values[column] for use, column in columns.items()}
            for use in ("label", "group"):
                if columns.get(use) in names:  # -1 stands for no class
                    known, value = names[columns[use]], found[use]
                    found[use] = known[value] if value is not None and value >= 0 else None
            yield Row(f"item {number}", _content(found.pop("image")), **found)

    source = {
        "reader": "huggingface",
        "path": str(root.resolve()),
        "split": split,
        "files": stamps(root, (file for file in root.rglob("*") if file.is_file())),
    }
    return from_rows(
        rows,
        columns,
        source,
        root.resolve().name,
        size=size,
        mode=mode,
        cache=cache,
        total=len(table) if hasattr(table, "__len__") else None,
        class_names=names.get(condition) if condition is not None else None,
    )


def _table(root: pathlib.Path, split: str | None) -> Any:
    """Open the data set in a folder: its rows, in one of its splits."""
    import datasets

    try:
        if (root / "state.json").exists() or (root / "dataset_dict.json").exists():
            found = datasets.load_from_disk(str(root))
        else:
            found = datasets.load_dataset(str(root), streaming=True)
    except Exception as error:  # the package raises its own kinds of errors
        raise ValueError(
            f"{root} cannot be read as a data set: {error}. Expected the folder of save_to_disk, Parquet files, or "
            "pictures with metadata.jsonl"
        ) from error
    if not isinstance(found, dict):
        if split is not None:
            raise ValueError(f"{root} has no splits, but split={split!r} was given: leave it out")
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        raise ValueError(f"split={split!r} of {root}: expected one of {', '.join(map(str, found))}")
    return found[split]


def _content(value: Any) -> Any:
    """Return the content of an image's file, or an array of pixels."""
    if isinstance(value, dict):
        return read_bytes(value["path"]) if value.get("bytes") is None else value["bytes"]
    return value
