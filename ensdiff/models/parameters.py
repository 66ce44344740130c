"""Parameters as nested dicts of arrays, for any pytree of a network, for checkpoints and fingerprints."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from ensdiff.typing import Params

ALONE = "array"
"""The key of parameters that are a single array."""


def to_dicts(tree: Any) -> dict[str, Any]:
    """Return the arrays of a pytree in nested dicts, whose keys are the names and indices on the way to each array.

    Raises:
        ValueError: the tree has no arrays.

    >>> to_dicts({"layers": [1.0, 2.0]})
    {'layers': {'0': 1.0, '1': 2.0}}
    """
    dicts: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        *above, last = [_key(entry) for entry in path] or [ALONE]
        here = dicts
        for key in above:
            here = here.setdefault(key, {})
        here[last] = leaf
    if not dicts:
        raise ValueError("the network has no parameters: expected a pytree of arrays")
    return dicts


def from_dicts(params: Params, template: Any) -> Any:
    """Return the pytree of a template's structure with the arrays of nested dicts: the inverse of `to_dicts`.

    Raises:
        ValueError: an array of the template is missing.
    """
    paths, structure = jax.tree.flatten_with_path(template)
    leaves = [_at(params, [_key(entry) for entry in path] or [ALONE]) for path, _ in paths]
    return jax.tree.unflatten(structure, leaves)


def _at(params: Params, keys: list[str]) -> Any:
    here = params
    for key in keys:
        if not isinstance(here, dict) or key not in here:
            raise ValueError(f"the parameters have no {'/'.join(keys)}: they belong to another network")
        here = here[key]
    return here


def _key(entry: Any) -> str:
    if isinstance(entry, DictKey | FlattenedIndexKey):
        return str(entry.key)
    if isinstance(entry, GetAttrKey):
        return entry.name
    return str(entry.idx) if isinstance(entry, SequenceKey) else str(entry)


def named(params: Params) -> dict[str, Any]:
    """Return the arrays of a pytree by their paths, joined by ``/``.

    >>> named({"head": {"bias": 1, "kernel": 2}})
    {'head/bias': 1, 'head/kernel': 2}
    """
    return {"/".join(_key(entry) for entry in path): leaf for path, leaf in jax.tree.leaves_with_path(params)}


def check_paths(params: Params) -> None:
    """Raise ValueError if paths joined by ``/`` do not tell parameters apart, or one of them leads into another.

    >>> check_paths({"head/bias": 1, "head": {"bias": 2}})
    Traceback (most recent call last):
    ValueError: the parameters 'head/bias' and 'head/bias' cannot be told apart, because a name holds a /: rename one
    """
    seen: set[str] = set()
    for path, _ in jax.tree.leaves_with_path(params):
        text = "/".join(map(_key, path))
        above = {text[:place] for place, letter in enumerate(text) if letter == "/"}
        below = {other for other in seen if other.startswith(f"{text}/")}
        other = next(iter(({text} | above) & seen | below), None)
        if other is not None:
            raise ValueError(
                f"the parameters {other!r} and {text!r} cannot be told apart, because a name holds a /: rename one"
            )
        seen.add(text)


def check_names(params: Params) -> None:
    """Raise ValueError if the name of a parameter holds ``/``, so that its path does not say how it is nested.

    >>> check_names({"head/bias": 1})
    Traceback (most recent call last):
    ValueError: the parameter 'head/bias' has a / in its name, which separates the names in a path: rename it, or \
nest it, as in {'head': {'bias': ...}}
    """
    for path, _ in jax.tree.leaves_with_path(params):
        for name in map(_key, path):
            if "/" in name:
                first, rest = name.split("/", 1)
                raise ValueError(
                    f"the parameter {name!r} has a / in its name, which separates the names in a path: rename it, or "
                    f"nest it, as in {{{first!r}: {{{rest!r}: ...}}}}"
                )


def mapped(function: Callable[[str, Any], Any], params: Params) -> Params:
    """Return a pytree of the same structure, with ``function(path, array)`` in the place of each array.

    >>> mapped(lambda path, leaf: f"{path}: {leaf}", {"head": {"bias": 1}})
    {'head': {'bias': 'head/bias: 1'}}
    """
    return jax.tree.map_with_path(lambda path, leaf: function("/".join(_key(entry) for entry in path), leaf), params)


def nested(flat: Any) -> dict[str, Any]:
    """Return nested dicts of arrays from their paths: the inverse of `named` for nested dicts.

    >>> nested({"head/bias": 1, "head/kernel": 2})
    {'head': {'bias': 1, 'kernel': 2}}
    """
    dicts: dict[str, Any] = {}
    for path, leaf in flat.items():
        *above, last = path.split("/")
        here = dicts
        for key in above:
            here = here.setdefault(key, {})
        here[last] = leaf
    return dicts


def digest_of(params: Params) -> str:
    """Return the SHA-256, 64 hexadecimal digits, of the paths, shapes, dtypes and bytes of all arrays of a pytree."""
    state = hashlib.sha256()
    for path, leaf in sorted(named(params).items()):
        array = np.ascontiguousarray(leaf)
        state.update(f"{path} {array.shape} {array.dtype.name} ".encode())
        state.update(array.reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def shapes_of(params: Params) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and dtype of each array by its path, joined by ``/``.

    >>> shapes_of({"head": {"bias": jax.numpy.zeros(3)}})
    {'head/bias': ((3,), 'float32')}
    """
    return {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in named(params).items()}
