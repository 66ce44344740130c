"""Condition trees: arrays by their paths, and back.

A condition tree is an array, or a dict, list or tuple of condition trees. An array has a path: the keys that lead to
it, joined by ``/``, where the elements of a list or tuple have the keys ``0``, ``1``, ... Paths do not tell lists from
tuples, so trees that are made from paths have tuples.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ensdiff.typing import unmasked


def flatten(tree: Any, known: Collection[str] | None = None, path: str = "") -> dict[str, np.ndarray]:
    """Return the arrays of a condition tree by their paths.

    Without ``known``, a list or tuple is a part of the tree if it holds dicts or arrays at any depth. If it holds only
    numbers or text, possibly nested, it is an array. An array without axes counts as a number. With ``known``, a list
    or tuple is a part of the tree only if one of these paths leads into it, to its first element. Otherwise it is an
    array, whatever it holds.

    Args:
        tree: the condition tree.
        known: the paths of the arrays that are expected; None if they are not known.
        path: the path of the tree itself.

    Raises:
        ValueError: the tree has one of these faults:

            - A key of a dict is empty, is not text, or contains ``/``.
            - A dict has the keys ``0``, ``1``, ... like a list.
            - A list of arrays could be a tree or the rows of one array (an error only without ``known``).
            - A named tuple is a part of the tree.
            - An array has masked entries.
            - The rows of a nested list differ in length.

    >>> arrays = flatten([{"tokens": np.zeros((3, 7))}, [0, 2, 1]])
    >>> {path: array.shape for path, array in arrays.items()}
    {'0/tokens': (3, 7), '1': (3,)}
    >>> [array.shape for array in flatten([[[1.5, 2.5]], 4], known=["0", "1"]).values()]
    [(1, 2), ()]
    """
    label = f"condition {path!r}" if path else "the condition"
    prefix = f"{path}/" if path else ""
    if isinstance(tree, Mapping):
        for key in tree:
            if not isinstance(key, str) or not key or "/" in key:
                raise ValueError(f"{label} has the key {key!r}: expected text without '/'")
        if tree and _are_places(tree):
            raise ValueError(f"{label} has the keys {', '.join(tree)}, like a list: give a list, or use other keys")
        parts = dict(tree)
    elif _is_part(tree) if known is None else _has_places(tree, known, prefix):
        if hasattr(tree, "_fields"):
            name = type(tree).__name__
            raise ValueError(f"{label} has the named tuple {name}: expected dicts, lists or tuples; use _asdict()")
        if known is None and isinstance(tree, list):
            _check_rows(tree, label)
        parts = {str(place): part for place, part in enumerate(tree)}
    else:
        return {path: np.asarray(unmasked(tree, label))}
    found: dict[str, np.ndarray] = {}
    for key, part in parts.items():
        found |= flatten(part, known, f"{prefix}{key}")
    return found


def unflatten(arrays: Mapping[str, Any]) -> Any:
    """Return the condition tree whose arrays have the given paths: the inverse of `flatten`, with tuples for lists.

    >>> unflatten({"0/size": 1, "1": 2})
    ({'size': 1}, 2)
    """
    if set(arrays) == {""}:
        return arrays[""]
    parts: dict[str, dict[str, Any]] = {}
    for path, array in arrays.items():
        key, _, rest = path.partition("/")
        parts.setdefault(key, {})[rest] = array
    tree = {key: unflatten(part) for key, part in parts.items()}
    return tuple(tree[str(place)] for place in range(len(tree))) if tree and _are_places(tree) else tree


def _is_part(tree: Any) -> bool:
    """Return whether something is a dict, or a list or tuple that holds dicts or arrays at any depth."""
    if isinstance(tree, list | tuple):
        return any(getattr(part, "shape", ()) != () or _is_part(part) for part in tree)
    return isinstance(tree, Mapping)


def _has_places(tree: Any, known: Collection[str], prefix: str) -> bool:
    """Return whether something is a list or tuple, and a known path leads to its first element."""
    return isinstance(tree, list | tuple) and any(f"{name}/".startswith(f"{prefix}0/") for name in known)


def _check_rows(tree: list, label: str) -> None:
    """Check that arrays in a list cannot be the rows of one array.

    Raises:
        ValueError: they can be.
    """
    shapes = {() if _is_part(part) else np.shape(part) for part in tree}
    if len(shapes) == 1 and next(iter(shapes))[:1] == (len(tree),):
        raise ValueError(
            f"{label} is a list of {len(tree)} arrays with {len(tree)} rows each: give a tuple if they are arrays of a "
            "tree, or np.stack(...) if they are the rows of one array"
        )


def _are_places(keys: Collection[str]) -> bool:
    """Return whether keys are those of the elements of a list."""
    return set(keys) == {str(place) for place in range(len(keys))}
