"""Codes restricted to some of the members, and codes with the same units in another order."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from ensdiff.codes.errors import some
from ensdiff.codes.names import as_names
from ensdiff.codes.words import CodeWords

T = TypeVar("T", bound=CodeWords)


def only(code: T, members: Sequence[int]) -> T:
    """Implement `Code.only`."""
    chosen = np.asarray(members)
    if chosen.ndim == 1 and any(isinstance(k, bool | np.bool_) for k in members):
        raise ValueError(f"members {members!r} are booleans: pass member numbers, for a mask np.flatnonzero(mask)")
    distinct = chosen.ndim == 1 and chosen.dtype.kind in "iu" and len(np.unique(chosen)) == len(chosen) > 0
    if not distinct or not 0 <= chosen.min() <= chosen.max() < code.members:
        raise ValueError(f"members={members!r}: expected distinct member numbers, 0 .. {code.members - 1}")
    parts = [words[:, chosen] for _, words in code.chunks()]
    weights = {int(weight) for words in parts for weight in np.unique(words.sum(1))}
    groups = code.groups
    if groups is not None:
        group_GK = np.unpackbits(
            np.frombuffer(groups.packed, np.uint8).reshape(groups.count, -1), axis=1, count=code.members
        )[:, chosen]
        of_groups = set(group_GK.sum(1).tolist())
        groups_packed = np.packbits(group_GK, axis=1).tobytes()
        groups = dataclasses.replace(groups, weight=_one(of_groups), packed=groups_packed)
    packed = b"".join(np.packbits(words, axis=1).tobytes() for words in parts)
    return type(code)(len(chosen), code.units, _one(weights), 0, packed, code.names, groups)


def reordered(code: T, names: Sequence[str]) -> T:
    """Implement `Code.reordered`."""
    if code.names is None:
        raise ValueError("this code has no names to order its units by: pass them to Code.from_matrix(..., names=...)")
    wanted, place = as_names(names), {name: i for i, name in enumerate(as_names(code.names))}
    unknown, left = [name for name in wanted if name not in place], sorted(set(place) - set(wanted))
    if unknown or left:
        differences = [(unknown, "are not in the code"), (left, "of the code are missing")]
        text = "; ".join(f"{some(map(repr, which))} {what}" for which, what in differences if which)
        raise ValueError(f"{len(wanted)} names for a code of {code.units} units: {text}")
    order = np.array([place[name] for name in wanted])
    groups = code.groups
    if groups is not None:
        groups = dataclasses.replace(groups, of_unit=np.frombuffer(groups.of_unit, "<i4")[order].tobytes())
    packed = np.packbits(code.rows(order), axis=1).tobytes()
    return dataclasses.replace(code, key=0, packed=packed, names=wanted, groups=groups)


def _one(values: set[int]) -> int | None:
    return next(iter(values)) if len(values) == 1 else None
