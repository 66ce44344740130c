"""A reader of data sets that TensorFlow Datasets prepared on disk. It needs neither TensorFlow nor a network."""

import os
import pathlib
import shlex
from typing import Any

import numpy as np

from ensdiff.data.checked import from_images
from ensdiff.data.dataset import Dataset
from ensdiff.files.reading import installed


def tfds(
    name: str,
    *,
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    image_key: str = "image",
    label_key: str | None = None,
    groups: str | None = None,
) -> Dataset:
    """Read a TensorFlow Datasets data set that was prepared as array_record files. Nothing is downloaded.

    Args:
        name: name of the data set, such as ``"cifar10"``, ``"cifar10:3.0.2"`` or ``"name/config"``. Without a version,
            the newest prepared one is read.
        split: the split, such as ``"train"``, ``"train[:1000]"`` or ``"train+test"``.
        data_dir: the folder in which it was prepared; by default TensorFlow Datasets' own folder.
        image_key: the feature that contains the image; all images must have the same size.
        label_key: the feature that contains the class.
        groups: the feature that defines the units; None for one unit per image. The class -1 means a missing class.

    Raises:
        ImportError: the extra ``tfds`` is not installed: ``pip install 'ensdiff[tfds]'``.
        FileNotFoundError: it has not been prepared as array_record; the message gives the command that prepares it.
        ValueError: the split or a feature does not exist, several configs are prepared, or images differ in size.

    >>> tfds("cifar10", data_dir="nowhere")
    Traceback (most recent call last):
    FileNotFoundError: no prepared array_record data of 'cifar10' below nowhere. Prepare it once, ...
    """
    root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    folder = _prepared(name, root)
    with installed("reading TensorFlow Datasets needs", "tfds"):
        import array_record  # noqa: F401 (imported by tensorflow_datasets at the first read)
        import tensorflow_datasets

    builder = tensorflow_datasets.builder_from_directory(folder)
    splits = list(builder.info.splits)
    for part in split.split("+"):
        if part.partition("[")[0].strip() not in splits:
            raise ValueError(f"{name} has no split {part!r}; it has {', '.join(splits)}")
    try:
        source = builder.as_data_source(split=split)
        first = source[0] if len(source) else None
    except (RuntimeError, OSError) as error:
        raise ValueError(f"split {split!r} in {folder} cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"split={split!r} of {name}: {error}") from error
    if first is None:
        raise ValueError(f"split {split!r} of {name} is empty")
    for key in (image_key, label_key, groups):
        if key is not None and key not in first:
            raise ValueError(f"{name} has no feature {key!r}; it has {', '.join(first)}")
    classes = bool(groups) and isinstance(builder.info.features[groups], tensorflow_datasets.features.ClassLabel)
    images, labels, group_values = [], [], []
    for example in source:
        images.append(np.asarray(example[image_key]))
        labels.append(example[label_key] if label_key else 0)
        value = example[groups] if groups else None
        group_values.append(None if classes and value == -1 else value)  # tfds writes -1 for no class
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ValueError(f"{name} has images of several sizes, such as {sorted(shapes)[:2]}; resize them first")
    return from_images(
        np.stack(images),
        group_values if groups else None,
        name=name.partition(":")[0],
        labels=labels if label_key else None,
    )


def _prepared(name: str, root: pathlib.Path) -> pathlib.Path:
    """Find the folder of the version to read by its files alone: tfds itself would try the network for minutes."""
    base, _, version = name.partition(":")
    place = root / base
    infos = place.glob(f"**/{version or '*'}/dataset_info.json") if place.is_dir() else ()
    found = [info.parent for info in infos if _version(info.parent) is not None]  # not 1.0.0.incomplete...
    ready = [folder for folder in found if any(folder.glob("*.array_record*"))]
    if not ready:
        if found:
            raise FileNotFoundError(
                f"{found[-1]} contains {name!r} in a file format other than array_record. Convert it once, on a "
                "machine with TensorFlow: tfds convert_format --out_file_format=array_record "
                f"--dataset_version_dir={shlex.quote(str(found[-1]))}"
            )
        others = sorted({str(info.parent.relative_to(place)) for info in place.glob("**/dataset_info.json")})
        raise FileNotFoundError(
            f"no prepared array_record data of {name!r} below {root}"
            + (f" (found only {', '.join(others)})" if others else "")
            + ". Prepare it once, on a machine with TensorFlow and a network: "
            f"tfds build {name} --file_format=array_record --data_dir={shlex.quote(str(root))}"
        )
    configs = sorted({str(folder.parent.relative_to(root)) for folder in ready})
    if len(configs) > 1:
        raise ValueError(f"{name!r} is prepared in several configs: expected one of {', '.join(configs)}")
    return max(ready, key=lambda folder: _version(folder) or ())


def _version(folder: pathlib.Path) -> tuple[int, ...] | None:
    """Return (3, 0, 2) for a folder ``3.0.2``, and None for a folder with any other kind of name."""
    parts: Any = folder.name.split(".")
    return (
        tuple(map(int, parts)) if len(parts) == 3 and all(part.isascii() and part.isdigit() for part in parts) else None
    )
