"""The code of some of an ensemble's members."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ensdiff.codes.code import Code


def only(code: "Code", members: Sequence[int]) -> "Code":
    """What `Code.only` does."""
    chosen = [operator.index(k) for k in members]
    wrong = [k for k in chosen if not 0 <= k < code.members]
    if not chosen or wrong or len(set(chosen)) < len(chosen):
        raise ValueError(f"members {chosen}: expected distinct numbers of members, 0 .. {code.members - 1}")
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


def _one(values: set[int]) -> int | None:
    return next(iter(values)) if len(values) == 1 else None
