"""Codes as JSON-serialisable values."""

import base64
import math
import operator
from typing import Any

import numpy as np

from ensdiff.codes.hierarchy import Groups

MAX_MEMBERS = 2**16
"""Largest number of members of a code. With many more, counting the possible words would take too long."""


def to_dict(code: Any) -> dict[str, Any]:
    """Implement `Code.to_dict`."""
    values: dict[str, Any] = {"members": code.members, "units": code.units, "weight": code.weight}
    if code.names is not None:
        values["names"] = list(code.names)
    if code.packed is None:
        return {**values, "key": f"{code.key:#018x}"}
    values["matrix"] = base64.b64encode(code.packed).decode()
    if code.groups is not None:
        groups = code.groups
        values["groups"] = {
            "count": groups.count,
            "weight": groups.weight,
            "of_unit": base64.b64encode(groups.of_unit).decode(),
            "matrix": base64.b64encode(groups.packed).decode(),
        }
        if groups.names is not None:
            values["groups"]["names"] = list(groups.names)
    return values


def from_dict(cls: Any, values: dict[str, Any]) -> Any:
    """Implement `Code.from_dict`."""
    try:
        K, N, weight = operator.index(values["members"]), operator.index(values["units"]), values["weight"]
        if not 1 <= K <= MAX_MEMBERS or N < 1:
            raise ValueError(f"{K} members and {N} units: expected 1 .. {MAX_MEMBERS} members, and at least one unit")
        names = values.get("names")
        if names is not None and len(names) != N:
            raise ValueError(f"{len(names)} names for {N} units: expected one per unit")
        names = None if names is None else tuple(map(str, names))
        if "matrix" not in values:
            if not (0 < operator.index(weight) < K and 0 < N <= math.comb(K, weight)):
                raise ValueError(f"{K} members of weight {weight} cannot hold {N} units")
            return cls(K, N, weight, int(values["key"], 16), None, names)
        packed = base64.b64decode(values["matrix"], validate=True)
        if len(packed) != N * -(-K // 8):
            raise ValueError(f"the matrix has {len(packed)} bytes: expected {N * -(-K // 8)}")
        code = cls(
            K,
            N,
            None if weight is None else operator.index(weight),
            0,
            packed,
            names,
            _read_groups(cls, values["groups"], K, N) if "groups" in values else None,
        )
        if weight is not None and any((words.sum(1) != weight).any() for _, words in code.chunks()):
            raise ValueError(f"the matrix has rows whose weight is not {weight}")
        return code
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a code: {error!r}; expected the result of Code.to_dict") from error


def _read_groups(cls: Any, values: dict[str, Any], members: int, units: int) -> Groups:
    words = from_dict(cls, {**values, "members": members, "units": values["count"], "matrix": values["matrix"]})
    of_unit = base64.b64decode(values["of_unit"], validate=True)
    if len(of_unit) != 4 * units:
        raise ValueError(f"groups.of_unit has {len(of_unit)} bytes: expected {4 * units}")
    numbers = np.frombuffer(of_unit, "<i4")
    if numbers.min() < 0 or numbers.max() >= words.units:
        raise ValueError(f"groups {numbers.min()} .. {numbers.max()}: expected 0 .. {words.units - 1}")
    return Groups(words.units, words.weight, of_unit, words.packed, words.names)
