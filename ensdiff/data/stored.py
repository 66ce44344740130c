"""The names of arrays in files of latents and conditions, and what they mean."""

from collections.abc import Collection, Mapping

import numpy as np

from ensdiff.models.space import Latents


def condition_arrays(names: Collection[str], condition: str | None = None) -> dict[str, str]:
    """Return the names of the arrays of a condition tree in a file, with their paths in the tree.

    Args:
        names: names of all arrays in the file.
        condition: the name of the array, or of the arrays ``name/path``. None for ``"condition"``, which may be
            missing.

    Raises:
        ValueError: both an array ``name`` and an array ``name/path`` exist.

    >>> condition_arrays(["latents", "condition/text", "condition/mask"])
    {'condition/text': 'text', 'condition/mask': 'mask'}
    """
    stem = "condition" if condition is None else condition
    inside = {name: name.removeprefix(f"{stem}/") for name in names if name.startswith(f"{stem}/")}
    if stem in names and inside:
        raise ValueError(f"the file has the arrays {stem!r} and {next(iter(inside))!r}: expected one array or a tree")
    return inside or ({stem: ""} if stem in names or condition is not None else {})


def latents_space(file: Mapping[str, np.ndarray]) -> Latents:
    """Return the space of the latents in a file, from its arrays ``mean``, ``scale`` and ``encoder``.

    Raises:
        ValueError: an array holds something other than numbers, or text for the encoder; or a scale is not positive.

    >>> latents_space({"scale": np.array(0.5)})
    Latents(mean=(0.0,), scale=(0.5,), encoder=None)
    """
    numbers = {}
    for name, default in (("mean", 0.0), ("scale", 1.0)):
        array = np.asarray(file.get(name, default))
        if array.dtype.kind not in "iuf" or array.ndim > 1 or not np.isfinite(array).all():
            raise ValueError(f"{name} has dtype {array.dtype} and shape {array.shape}: expected one number per channel")
        numbers[name] = tuple(float(number) for number in array.reshape(-1))
    encoder = file.get("encoder")
    if encoder is not None and (encoder.dtype.kind != "U" or encoder.shape != ()):
        raise ValueError(f"encoder has dtype {encoder.dtype} and shape {encoder.shape}: expected a text")
    return Latents(numbers["mean"], numbers["scale"], None if encoder is None else str(encoder))
