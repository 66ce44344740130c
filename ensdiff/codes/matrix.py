"""The check of a code matrix given by the caller."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ensdiff.codes.errors import some, warn
from ensdiff.typing import unmasked


def check_matrix(code_NK: Any, names: Sequence[str] | None) -> UInt8[np.ndarray, "N K"]:
    """Return the matrix as uint8. Raises and warns as `Code.from_matrix` documents."""
    matrix = np.asarray(unmasked(code_NK, "the code"))
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"the code has shape {matrix.shape}: expected (units, members), both at least 1")
    if matrix.dtype.kind not in "buif":
        raise ValueError(f"the code has dtype {matrix.dtype}: expected 0 and 1 as bool, integers or floats")
    wrong = np.argwhere((matrix != 0) & (matrix != 1))
    if len(wrong):
        i, k = wrong[0]
        raise ValueError(f"code[{i}, {k}] is {matrix[i, k]}: expected 0 or 1 ({len(wrong)} such entries)")
    matrix = matrix.astype(np.uint8)
    N, K = matrix.shape
    if K < 2:
        raise ValueError("the code has one member: an encoded ensemble needs at least 2")
    if names is not None and len(names) != N:
        raise ValueError(f"{len(names)} names for {N} units: expected one per unit")
    label = (lambda ids: some([names[i] for i in ids])) if names is not None else some
    shares, weights = matrix.sum(0), matrix.sum(1)
    if (shares == 0).any():
        raise ValueError(
            f"members {some(np.flatnonzero(shares == 0))} see no unit (columns of zeros): drop these columns"
        )
    if (weights == K).any():
        raise ValueError(
            f"units {label(np.flatnonzero(weights == K))} are seen by every member (rows of ones) and could never "
            "be removed: leave them out of the code, or train a member without them"
        )
    if (weights == 0).any():
        warn(f"units {label(np.flatnonzero(weights == 0))} are seen by no member: removing them changes nothing")
    if (shares == N).any() and N > 1:
        warn(f"members {some(np.flatnonzero(shares == N))} see every unit: they survive no removal")
    packed_rows = np.packbits(matrix, axis=1)
    _, first = np.unique(packed_rows, axis=0, return_index=True)
    again = np.setdiff1d(np.arange(N), first)
    if len(again):
        warn(
            f"units {label(again)} have the same code word as an earlier unit: they can only be removed together and "
            "cannot be told apart"
        )
    return matrix
