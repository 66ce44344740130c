"""The checks of images in memory that every reader ends with."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from ensdiff.codes.names import check_distinct
from ensdiff.data.categories import categories
from ensdiff.data.dataset import Dataset
from ensdiff.data.images import check_images, to_uint8
from ensdiff.data.units import units_of
from ensdiff.typing import unmasked


def from_images(
    images: Any,
    groups: Any = None,
    *,
    name: str = "arrays",
    labels: Any = None,
    names: Sequence[str] | None = None,
) -> Dataset:
    """Check images and return them as a `Dataset`. Every reader ends with this function.

    Args:
        images: (N, H, W, C) or (N, H, W); uint8, or floats in [0, 1]. Floats outside by rounding errors are clipped.
        groups: None for one unit per item, or one value per item: all strings, all integers or all booleans, in a list,
            an array (bytes are decoded as UTF-8) or a pandas column. Units are the distinct values, in sorted order.
        name: name of the data set.
        labels: one class per item, of the same types as ``groups``.
        names: names of the units when each item is a unit; all must be different.

    Raises:
        ValueError: an argument has the wrong shape, type or range, or an image has no group or label (None, NaN,
            pandas' NA, a masked entry, empty text, or ``nan``, ``NaN``, ``NaT``, ``None`` or ``<NA>``, the text that a
            missing value becomes). Missing values do not form a group; the message names the image.

    >>> images = np.zeros((4, 8, 8), np.uint8)
    >>> from_images(images, groups=["ada", "ada", "bob", "eve"], name="sketches").unit_names
    ['ada', 'bob', 'eve']
    """
    unmasked(images, "images")
    try:
        images = np.asanyarray(np.ma.getdata(images))
    except ValueError as error:
        raise ValueError(f"the images are not one array, perhaps because their sizes differ: {error}") from error
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images have shape {images.shape}: expected (N, H, W, C) or (N, H, W), none of them 0")
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"images have {images.shape[-1]} channels: expected 1 or 3, channels last")
    if len(images) < 2:
        raise ValueError("one image: an ensemble needs at least two, to train members on different ones")
    if images.dtype == np.bool_:
        images = images.astype(np.uint8) * 255
    images = to_uint8(check_images(images))
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
    return Dataset(images, unit_of_item, unit_names, name, labels)
