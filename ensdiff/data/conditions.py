"""Conditions of a data set, from the forms in which users have them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ensdiff.data.categories import categories
from ensdiff.models.condition import ConditionSpec, Leaf, flatten, unflatten

CHECKED_BYTES = 2**26
"""Conditions are checked in parts of at most this size, because those in a memory map may not fit into memory."""


class Conditions(NamedTuple):
    """A condition tree with one row per item, and its specification; both are None without a condition."""

    tree: Any
    spec: ConditionSpec | None


def conditions(
    given: Any,
    items: int,
    classes: int | None = None,
    names: Sequence[str] | None = None,
    null: Any = None,
    encoder: str | None = None,
) -> Conditions:
    """Return the conditions of a data set, checked and with the dtypes of their specification.

    Arrays that have these dtypes, such as memory maps of int32 or float32, are not copied.

    Args:
        given: an array with one row per item, or a (nested) dict, list or tuple of such arrays; None for no condition.
            Text and booleans of shape (N,) are the names of classes, whose ids follow their sorted order.
        items: number of items.
        classes: number of classes of arrays of class ids; by default the number of names, or the largest id plus 1.
        names: names of the classes, in the order of their ids.
        null: the null rows of arrays that are not class ids (`ConditionSpec.with_null`); by default zeros.
        encoder: what made the rows and null rows, such as a text encoder and its digest. It needs ``null``.

    Raises:
        ValueError: an array has the wrong number of rows, an id is outside of the classes, a text is missing or no
            name of a class, a number is not finite, or a null row does not fit.

    >>> tree, spec = conditions({"colour": ["red", "blue", "red"], "size": [[1.0], [2.5], [3.0]]}, 3)
    >>> tree["colour"].tolist(), [leaf.names for leaf in spec.leaves]
    ([1, 0, 1], [('blue', 'red'), None])
    """
    if given is None:
        if classes is not None or names is not None or null is not None or encoder is not None:
            raise ValueError("classes or null row of a condition, but no condition: give the condition too")
        return Conditions(None, None)
    if encoder is not None and null is None:
        raise ValueError(f"encoder={encoder!r} without null=: give also the row that it makes of no condition")
    arrays, leaves = {}, []
    for path, array in sorted(flatten(given).items()):
        label = f"condition {path!r}" if path else "the condition"
        if array.shape[:1] != (items,):
            more = "; np.stack makes one array of a list of rows" if isinstance(given, list | tuple) else ""
            raise ValueError(f"{label} has shape {array.shape}: expected ({items}, ...), one row per item{more}")
        own = None if names is None else tuple(map(str, names))
        if array.dtype.kind in "USOb":
            array, found = _class_ids(array, items, own)
            own = found if own is None else own
        spec = ConditionSpec.of(unflatten({path: array}), classes, own)
        rows = max(1, CHECKED_BYTES // max(1, array[0].nbytes))
        for start in range(0, items, rows):
            part = array[start : start + rows]
            spec.check(unflatten({path: part}), len(part), null=False)
        arrays[path] = array.astype(spec.leaves[0].dtype, copy=False)
        leaves.append(spec.leaves[0])
    whole = ConditionSpec(tuple(leaves))
    return Conditions(unflatten(arrays), whole if null is None else whole.with_null(null, encoder))


def _class_ids(array: np.ndarray, items: int, names: tuple[str, ...] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the class id of each item and the names of the classes."""
    values = categories(array, items, "condition")
    if values.dtype.kind in "iu":
        raise ValueError("the condition is an array of objects: expected an array of integers, or text")
    text = values.astype(str)
    if names is None:
        found, ids = np.unique(text, return_inverse=True)
        return ids.reshape(-1), tuple(map(str, found))
    unknown = sorted(set(text.tolist()) - set(names))
    if unknown:
        raise ValueError(f"the condition {unknown[0]!r} is no class: expected some of {', '.join(names[:10])}")
    place = {name: i for i, name in enumerate(names)}
    return np.array([place[value] for value in text.tolist()]), names


def describe_spec(spec: ConditionSpec) -> str:
    """Return a few words for a specification of conditions.

    >>> describe_spec(ConditionSpec((Leaf(classes=10),)))
    '10 classes'
    """

    def words(leaf: Leaf) -> str:
        if leaf.classes is not None:
            return f"{leaf.classes} classes"
        return f"{'x'.join(map(str, leaf.shape)) or 'one'} number{'s' if leaf.shape else ''}"

    parts = [f"{leaf.path} ({words(leaf)})" if leaf.path else words(leaf) for leaf in spec.leaves]
    return " and ".join(parts)
