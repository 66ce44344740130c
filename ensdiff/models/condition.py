"""Conditions: what a model is told about each image, such as its class, a vector or the tokens of a caption.

The conditions of B images are a *condition tree*: an array with B rows, or a (nested) dict, list or tuple of such
arrays. Lists become tuples. An array has a path, such as ``0/tokens`` in ``[{"tokens": tokens_BL}, size_B]``.
`ConditionSpec` holds what is static about it. Each array has a *null* row, which stands for "no condition": the number
of classes for class ids, which is one more than the largest id. For everything else it is zeros, unless the
specification has another row, such as the embedding of the empty prompt. Training replaces the condition of some images
by the null row, so that one network is conditional and unconditional, as guidance needs (Ho & Salimans 2022, arXiv
2207.12598).
"""

import dataclasses
import difflib
import hashlib
from typing import Any, Literal

import numpy as np

from ensdiff.models import null as null_rows
from ensdiff.models.trees import flatten, unflatten
from ensdiff.settings import check_fields


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a condition tree.

    Args:
        path: the keys that lead to it, joined by ``/``; empty if the tree is one array.
        shape: the shape of one row; ``()`` for class ids.
        dtype: the dtype that networks receive.
        classes: number of classes, for integers of shape ``()``; None for other arrays.
        names: names of the classes, in the order of their ids; None if they have none.
        null_bytes: the numbers of the null row (`ConditionSpec.with_null`); None for the default.
        encoder: what made the rows, such as a text encoder and its digest; None if it is not known.
    """

    path: str = ""
    shape: tuple[int, ...] = ()
    dtype: Literal["int32", "float32"] = "int32"
    classes: int | None = None
    names: tuple[str, ...] | None = None
    null_bytes: bytes | None = None
    encoder: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        label = f"condition {self.path!r}" if self.path else "the condition"
        if (self.classes is not None) != (self.dtype == "int32" and self.shape == ()):
            raise ValueError(f"{label}: expected a number of classes for one integer per image, and none for others")
        if self.classes is not None and self.classes < 1:
            raise ValueError(f"{label} has {self.classes} classes: expected at least 1")
        if self.names is not None and (len(self.names) != self.classes or len(set(self.names)) < len(self.names)):
            raise ValueError(f"{label}: {len(self.names)} names for {self.classes} classes: expected distinct names")
        if self.null_bytes is not None:
            if self.classes is not None:
                raise ValueError(f"{label}: a null row for classes, whose null row is their number: leave it out")
            row = null_rows.unpack(self.null_bytes, self.shape, self.dtype)
            object.__setattr__(self, "null_bytes", null_rows.pack(row))

    def __repr__(self) -> str:  # short, but different for different null rows, because digests of pytrees use it
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        null_bytes, encoder = values.pop("null_bytes"), values.pop("encoder")
        values |= {} if null_bytes is None else {"null_sha256": hashlib.sha256(null_bytes).hexdigest()}
        values |= {} if encoder is None else {"encoder": encoder}
        return f"Leaf({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    @property
    def null(self) -> np.ndarray:
        """The row that stands for no condition."""
        if self.null_bytes is not None:
            return null_rows.unpack(self.null_bytes, self.shape, self.dtype)
        return np.full(self.shape, 0 if self.classes is None else self.classes, self.dtype)


@dataclasses.dataclass(frozen=True)
class ConditionSpec:
    """What is static about a condition tree; hashable.

    Args:
        leaves: its arrays, in alphabetical order of their paths.

    >>> spec = ConditionSpec.of(np.array([0, 2, 1]), classes=3)
    >>> spec.null(2).tolist()
    [3, 3]
    """

    leaves: tuple[Leaf, ...]

    @classmethod
    def of(cls, tree: Any, classes: int | None = None, names: tuple[str, ...] | None = None) -> "ConditionSpec":
        """Return the specification of a condition tree.

        Args:
            tree: an array with one row per item, or a (nested) dict, list or tuple of such arrays.
            classes: number of classes of every integer array of shape (N,); by default the number of names, or the
                largest id plus 1.
            names: names of the classes.

        Raises:
            ValueError: the tree holds something other than finite numbers.
        """
        leaves = []
        for path, array in sorted(flatten(tree).items()):
            if array.ndim == 0 or array.dtype.kind not in "iuf":
                raise ValueError(
                    f"condition {path!r} has dtype {array.dtype} and shape {array.shape}: expected numbers, one row "
                    "per image"
                )
            if array.dtype.kind in "iu":
                some = classes if classes is not None else len(names) if names is not None else int(array.max()) + 1
                leaves.append(Leaf(path, array.shape[1:], "int32", *((some, names) if array.ndim == 1 else ())))
            else:
                leaves.append(Leaf(path, array.shape[1:], "float32"))
        if not leaves:
            raise ValueError("the condition is empty: expected an array with one row per image, or a tree of them")
        return cls(tuple(leaves))

    def check(self, tree: Any, count: int, *, null: bool = True) -> Any:
        """Return the conditions of ``count`` images as a tree of NumPy arrays with the dtypes of the specification.

        Args:
            tree: a condition tree with ``count`` rows or with one row for all images; for classes also their names.
            count: B.
            null: whether the id that stands for no class is allowed.

        Raises:
            ValueError: arrays are missing or unknown, a shape or a class is wrong, or a number is not finite.
        """
        known = {leaf.path: leaf for leaf in self.leaves}
        given = flatten(tree, known)
        if set(given) != set(known):
            words = [", ".join(map(repr, sorted(paths))) or "none" for paths in (given, known)]
            raise ValueError(f"the condition has the arrays {words[0]}: expected {words[1]}")
        return unflatten({path: _checked(known[path], given[path], count, null) for path in given})

    def with_null(self, tree: Any, encoder: str | None = None) -> "ConditionSpec":
        """Return the specification with other null rows, for arrays that are not class ids.

        Args:
            tree: the null row of each such array, in a tree like that of the conditions. Arrays that it lacks keep
                theirs.
            encoder: what made the rows of these arrays, such as a text encoder and its digest.

        Raises:
            ValueError: an array is unknown or of class ids, or a row has the wrong shape, or a number is not finite.

        >>> spec = ConditionSpec.of(np.ones((4, 2))).with_null([0.5, -1.0])
        >>> spec.null(1).tolist()
        [[0.5, -1.0]]
        """
        given = flatten(tree, [leaf.path for leaf in self.leaves])
        for path in sorted(set(given) - {leaf.path for leaf in self.leaves if leaf.classes is None}):
            known = ", ".join(repr(leaf.path) for leaf in self.leaves if leaf.classes is None) or "none"
            raise ValueError(f"a null row for the condition {path!r}: expected some of the arrays {known}")
        return ConditionSpec(tuple(
            dataclasses.replace(
                leaf, encoder=encoder, null_bytes=null_rows.pack(_checked(leaf, given[leaf.path], 1, True)[0])
            )
            if leaf.path in given else leaf
            for leaf in self.leaves
        ))  # fmt: skip

    def null(self, count: int) -> Any:
        """Return ``count`` rows that stand for no condition."""
        return unflatten({leaf.path: np.repeat(leaf.null[None], count, axis=0) for leaf in self.leaves})

    def in_turn(self, count: int) -> Any:
        """Return ``count`` rows in which the classes take turns; None if the condition is not one class per image.

        >>> ConditionSpec((Leaf(classes=3),)).in_turn(5).tolist()
        [0, 1, 2, 0, 1]
        """
        if len(self.leaves) != 1 or self.leaves[0].classes is None:
            return None
        return unflatten({self.leaves[0].path: (np.arange(count) % self.leaves[0].classes).astype(np.int32)})

    def captions(self, tree: Any) -> list[str]:
        """Return a short text for each row: the class's name or number, or "none" for the null row.

        >>> ConditionSpec((Leaf(classes=2, names=("cat", "dog")),)).captions(np.array([1, 2]))
        ['dog', 'none']
        """
        arrays = flatten(tree)
        texts = []
        for row in range(len(next(iter(arrays.values())))):
            parts = [(leaf.path, _caption(leaf, arrays[leaf.path][row])) for leaf in self.leaves]
            texts.append(parts[0][1] if len(parts) == 1 else ", ".join(f"{path} {text}" for path, text in parts))
        return texts

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the specification as JSON-able values, for `from_dict`."""
        return [_described(leaf) for leaf in self.leaves]

    @classmethod
    def from_dict(cls, text: Any) -> "ConditionSpec":
        """Return the specification that `to_dict` described.

        Raises:
            ValueError: it is not such a description.
        """
        try:
            rows: list[dict[str, Any]] = [
                {name: tuple(v) if isinstance(v, list) else v for name, v in leaf.items()} for leaf in text
            ]
            texts = [row.pop("null", None) for row in rows]
            nulls = [None if text is None else null_rows.from_text(text) for text in texts]
            return cls(tuple(Leaf(**row, null_bytes=null) for row, null in zip(rows, nulls, strict=True)))
        except (AttributeError, TypeError) as error:
            raise ValueError(f"condition={text!r}: expected a list of the fields of its arrays") from error


def condition_of(
    classes: int | None, width: int | None, context_width: int | None = None, context_length: int = 1
) -> ConditionSpec | None:
    """Return the condition that a network takes: ids of classes, vectors, or tokens; None for none of them.

    Args:
        classes: number of classes.
        width: D of vectors, (D,) per image.
        context_width: D of tokens, (L, D) per image.
        context_length: L.

    Raises:
        ValueError: more than one of the first three is given, or one is not positive.
    """
    given = {"classes": classes, "condition_width": width, "context_width": context_width}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        words = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"{words}: expected one of them, or none")
    for name, value in given.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: expected a positive number, or None for a network without it")
    if classes is not None:
        return ConditionSpec((Leaf(classes=classes),))
    if context_width is not None:
        return ConditionSpec((Leaf(shape=(context_length, context_width), dtype="float32"),))
    return None if width is None else ConditionSpec((Leaf(shape=(width,), dtype="float32"),))


def network_condition(taken: ConditionSpec | None, cond: Any, count: int) -> Any:
    """Return what a network that takes a condition of one array computes with: the given rows, or null rows for None.

    It looks at the shape and dtype only, so ``cond`` may be traced.

    Args:
        taken: the condition that the network takes; None for an unconditional network.
        cond: its rows, or None for no condition.
        count: B.

    Raises:
        ValueError: a condition for an unconditional network, or another shape or dtype.
    """
    if taken is None:
        if cond is not None:
            raise ValueError(
                "a condition was given, but the network takes none: set classes=, condition_width= or context_width="
            )
        return None
    if cond is None:
        return taken.null(count)
    (leaf,) = taken.leaves
    shape, dtype = getattr(cond, "shape", None), getattr(cond, "dtype", None)
    if shape != (count, *leaf.shape) or dtype != leaf.dtype:
        given = f"an array of {dtype} and shape {shape}" if shape is not None else f"{type(cond).__name__}"
        raise ValueError(f"the condition is {given}: expected {leaf.dtype} of shape {(count, *leaf.shape)}")
    return cond


def _described(leaf: Leaf) -> dict[str, Any]:
    """Return the fields of a leaf as JSON-able values: those that older versions did not know only if they are set."""
    values = dataclasses.asdict(leaf)
    null_bytes, encoder = values.pop("null_bytes"), values.pop("encoder")
    values |= {} if null_bytes is None else {"null": null_rows.to_text(null_bytes)}
    return values | ({} if encoder is None else {"encoder": encoder})


def _checked(leaf: Leaf, array: np.ndarray, count: int, null: bool) -> np.ndarray:
    label = f"condition {leaf.path!r}" if leaf.path else "the condition"
    if array.dtype.kind in "US" and leaf.names is not None:
        array = np.array([_id_of(leaf, str(name), label) for name in array.reshape(-1)]).reshape(array.shape)
    elif array.dtype.kind in "US":
        fix = "give numbers" if leaf.encoder is None else f"give what its encoder makes of the text ({leaf.encoder})"
        raise ValueError(f"{label} is text, but {'the classes have no names' if leaf.classes else 'no class'}: {fix}")
    if array.shape == leaf.shape:
        array = array[None]
    if array.shape[1:] != leaf.shape or len(array) not in (1, count):
        raise ValueError(
            f"{label} has shape {array.shape}: expected ({count}, {', '.join(map(str, leaf.shape))}), one row per "
            f"image, or one row of shape {leaf.shape} for all"
        )
    if array.dtype.kind not in ("iu" if leaf.dtype == "int32" else "iuf"):
        raise ValueError(f"{label} has dtype {array.dtype}: expected {leaf.dtype}")
    if leaf.classes is not None and len(array):
        last = leaf.classes - (not null)
        if not (array.min() >= 0 and array.max() <= last):
            wrong = array[(array < 0) | (array > last)][0]
            more = f", or {leaf.classes} for no condition" if null else ", counted from 0"
            raise ValueError(f"{label} has the class {wrong}: expected 0 .. {leaf.classes - 1}{more}")
    with np.errstate(over="ignore"):
        stored = array.astype(leaf.dtype)
    if not np.isfinite(stored).all():
        raise ValueError(f"{label} holds NaN, infinity or numbers too large for {leaf.dtype}: expected finite numbers")
    if leaf.dtype == "int32" and not np.array_equal(stored, array):
        raise ValueError(f"{label} holds integers that do not fit 32 bits: expected smaller ones")
    return np.repeat(stored, count, axis=0) if len(stored) != count else stored


def _id_of(leaf: Leaf, name: str, label: str) -> int:
    assert leaf.names is not None
    if name in leaf.names:
        return leaf.names.index(name)
    if name.isdecimal() and int(name) <= len(leaf.names) and not any(known.isdecimal() for known in leaf.names):
        return int(name)
    near = difflib.get_close_matches(name, leaf.names, n=3)
    listed = ", ".join(near or leaf.names[:10])
    raise ValueError(f"{label} has no class {name!r}: expected {'perhaps ' if near else 'for example '}{listed}")


def _caption(leaf: Leaf, row: np.ndarray) -> str:
    if np.array_equal(row, leaf.null):
        return "none"
    if leaf.classes is not None:
        return leaf.names[int(row)] if leaf.names is not None else str(int(row))
    return f"{'x'.join(map(str, leaf.shape)) or 'a'} number{'s' if leaf.shape else ''}"
