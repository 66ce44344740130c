"""The code of some of the members."""

from collections.abc import Sequence

import numpy as np

from ensdiff.codes.code import Code


def columns(code: Code, members: Sequence[int]) -> Code:
    """The code of an ensemble that has only ``members`` of a code's, in their order. It is stored, and has no groups.

    >>> columns(Code.balanced(4, 6), [2, 0]).rows(3).tolist() == Code.balanced(4, 6).rows(3)[:, [2, 0]].tolist()
    True
    """
    members = list(members)
    weights, parts = set(), []
    for _, word_MK in code.chunks():
        word_MK = word_MK[:, members]
        weights |= set(np.unique(word_MK.sum(1)).tolist())
        parts.append(np.packbits(word_MK, axis=1))
    weight = weights.pop() if len(weights) == 1 else None
    return Code(len(members), code.units, weight, 0, np.concatenate(parts).tobytes(), code.names)
