"""The checks of images and latents that every reader ends with."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ensdiff.codes.names import check_distinct
from ensdiff.data.categories import categories
from ensdiff.data.conditions import conditions
from ensdiff.data.dataset import Dataset, Items
from ensdiff.data.images import check_images, to_uint8
from ensdiff.data.units import units_of
from ensdiff.models.space import Latents, Pixels, Space
from ensdiff.typing import unmasked

CHECKED_BYTES = 2**26
"""Latents are read and checked in parts of at most this size, because they may not fit into memory."""


def from_images(
    images: Any,
    groups: Any = None,
    *,
    name: str = "arrays",
    labels: Any = None,
    names: Sequence[str] | None = None,
    condition: Any = None,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
    null: Any = None,
    condition_encoder: str | None = None,
    space: Space | None = None,
) -> Dataset:
    """Check images or latents and return them as a `Dataset`. Every reader ends with this function.

    Args:
        images: (N, H, W, C) or (N, H, W). Pixels have 1 or 3 channels and are uint8, floats in [0, 1], or booleans,
            which become 0 and 255. Floats that leave [0, 1] by no more than rounding are clipped; others are an error.
            Latents are finite floats of any range, with any number of channels. They are never clipped, and stay
            float16 or float32; float64 becomes float32. Memory maps of uint8 pixels, and of latents that keep their
            dtype, stay memory maps. Latents are read once, in parts, to check them.
        groups: None for one unit per item, or one value per item: all strings, all integers or all booleans, in a list,
            an array (bytes are decoded as UTF-8) or a pandas column. Units are the distinct values, in sorted order.
        name: name of the data set.
        labels: one class per item, of the same types as ``groups``.
        names: names of the units when each item is a unit; all must be different.
        condition: what a model is told about each item, as in `Dataset.with_condition`; None for no condition.
        classes: number of classes of a condition.
        class_names: names of the classes of a condition.
        null: the row that stands for "no condition" among vectors or tokens, such as the embedding of the empty prompt,
            as in `Dataset.with_condition`; by default zeros. Classes need none.
        condition_encoder: what made the rows of a condition, such as a text encoder.
        space: None or `Pixels` for pixels; `Latents`, with their mean and scale, for latents.

    Raises:
        ValueError: an argument has the wrong shape, type or range, or the group, label or name of an image is missing.
            These count as missing: None, NaN, NaT, pandas' NA, a masked entry, blank text, and the texts ``nan``,
            ``NaN``, ``NaT``, ``None`` and ``<NA>``, which missing values become when a column is turned into text. The
            message names the first such image.

    >>> images = np.zeros((4, 8, 8), np.uint8)
    >>> from_images(images, groups=["ada", "ada", "bob", "eve"], name="sketches").unit_names
    ['ada', 'bob', 'eve']
    >>> from_images(np.full((4, 2, 2, 4), 7.5), space=Latents(scale=(0.18215,)), condition=[0, 1, 1, 0])
    Dataset(arrays: 4 latents of 2x2x4 in 4 units, conditioned on 2 classes)
    """
    space = Pixels() if space is None else space
    unmasked(images, "images")
    try:
        images = np.asanyarray(np.ma.getdata(images))
    except ValueError as error:
        raise ValueError(f"the images are not one array, perhaps because their sizes differ: {error}") from error
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images have shape {images.shape}: expected (N, H, W, C) or (N, H, W), none of them 0")
    if len(images) < 2:
        raise ValueError("one image: an ensemble needs at least two, to train members on different ones")
    images = _pixels(images) if isinstance(space, Pixels) else check_latents(images, space)
    unit_of_item, unit_names = units_of(len(images), groups)
    if names is not None:
        if groups is not None or len(names) != len(images):
            raise ValueError(f"{len(names)} names for {len(images)} images: expected one per image, and no groups")
        if isinstance(names, Set | Mapping):
            raise ValueError(f"the names are a {type(names).__name__}, without an order: give a list")
        unit_names = [str(name) for name in categories(names, len(images), "name").tolist()]
        check_distinct(unit_names, "units")
    if labels is not None:
        labels = categories(labels, len(images), "label")
    tree, spec = conditions(condition, len(images), classes, class_names, null, condition_encoder)
    return Dataset(images, unit_of_item, unit_names, name, labels, tree, spec, space)


def _pixels(images: np.ndarray) -> UInt8[np.ndarray, "N H W C"]:
    if images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images have {images.shape[-1]} channels: expected 1 or 3, channels last; give space= for latents"
        )
    if images.dtype == np.bool_:
        images = images.astype(np.uint8) * 255
    return to_uint8(check_images(images))


def check_latents(latents: np.ndarray, space: Latents) -> Items:
    """Return latents, (N, H, W, C), as float16 or float32 in the byte order of this machine.

    Raises:
        ValueError: the dtype is wrong, a number is not finite (the message names the item), or the space has another
            number of channels.
    """
    if latents.dtype.kind != "f":
        raise ValueError(f"the latents have dtype {latents.dtype}: expected float16 or float32; space= is for latents")
    space.check_channels(latents.shape[-1])
    kept = np.dtype(np.float16 if latents.dtype.itemsize == 2 else np.float32)
    rows = max(1, CHECKED_BYTES // max(1, latents[0].nbytes))
    for start in range(0, len(latents), rows):
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused
            part = latents[start : start + rows].astype(kept)
        wrong = np.flatnonzero(~np.isfinite(part).reshape(len(part), -1).all(1))
        if len(wrong):
            raise ValueError(f"latent {start + wrong[0]} holds NaN or numbers beyond {kept}: expected finite numbers")
    return latents if latents.dtype == kept else latents.astype(kept)
