"""Calibration: how large an influence must be to be significant.

An ablation of one unit switches off every member that saw it, which moves a sample even if the unit does not matter.
If the members' differences have nothing to do with their training data, the code word of a unit is like any other word
of its kind, so its influence is exchangeable with the influences of words that no unit owns, the *null*:

(n1) ``p = (1 + #{null >= influence}) / (1 + #null)``, uniform on its possible values if the data are exchangeable. A
     null influence that differs from the influence only by rounding (`TIE`) counts as reaching it, so that p is not too
     small.
(n2) ``q_i = min_{p_j >= p_i} N p_j / #{p <= p_j}``: Benjamini & Hochberg 1995. If every unit with q <= a is called
     attributed, on average at most a share a of these units is called so falsely.

The right null has the kind of the candidate: words of the unit's weight; for a unit of a hierarchical code, words
inside its group's word; for a set of m units, unions of m unowned words that leave a surviving member.

All N p-values enter (n2), but they take few distinct values, so only their counts are stored.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from ensdiff.attribution.candidates import Candidates
from ensdiff.codes import Code
from ensdiff.codes.permute import derive_key
from ensdiff.codes.unowned import within

TIE = 1e-5
"""Influences that differ by less than this share of a sample's largest null influence (of their kind) are equal:
candidates and null may be computed in batches of different sizes, which round float32 differently."""
POOL = 512
"""Unowned words drawn at a time to form unions."""


class Null(NamedTuple):
    """Null ablations.

    Args:
        word_LK: the members that each ablation drops.
        kind_L: the kind of candidates that each ablation is compared with, see `Candidates.kind_N`.
    """

    word_LK: UInt8[np.ndarray, "L K"]
    kind_L: Int[np.ndarray, " L"]

    @property
    def fewest(self) -> int:
        """Return the number of ablations of the rarest kind."""
        return int(np.unique(self.kind_L, return_counts=True)[1].min())


def null_ablations(candidates: Candidates, n: int | Literal["all"], seed: int) -> Null:
    """Return n null ablations for every kind of candidate, or all that exist.

    Raises:
        ValueError: too few unowned words (the message states how many members would suffice); ``"all"`` for sets; sets
            of units of a hierarchical code, which are not exchangeable with other words.
    """
    kind_N = candidates.kind_N
    count = None if n == "all" else n
    kinds = [0] if kind_N is None else [int(kind) for kind in np.unique(kind_N)]
    parts = [_null_of_kind(candidates, kind, count, seed) for kind in kinds]
    return Null(np.concatenate(parts), np.repeat(kinds, [len(part) for part in parts]))


def _null_of_kind(candidates: Candidates, kind: int, n: int | None, seed: int) -> np.ndarray:
    code = candidates.code
    if candidates.sets is not None:
        if code.groups is not None:
            raise ValueError(
                "sets of units of a hierarchical code have no null: remove whole groups (code=code.group_code()), "
                "or ask for null=0"
            )
        if n is None:
            raise ValueError("null='all': the null of sets is unions of unowned words, too many to list; give a number")
        return code.unowned(n, seed) if kind == 1 else _unions(code, kind, n, seed)
    if code.groups is not None:
        word_K = code.group_code().rows(kind)[0]
        assert code.weight is not None
        return within(word_K, code.matrix(), code.weight, n, seed)
    return code.unowned(n, seed, kind if code.weight is None else None)


def _unions(code: Code, size: int, n: int, seed: int) -> UInt8[np.ndarray, "n K"]:
    """Return n unions of ``size`` distinct unowned words that leave a surviving member."""
    rng = np.random.default_rng(derive_key(seed, size))
    found: list[np.ndarray] = []
    free = POOL if code.weight is None else math.comb(code.members, code.weight) - code.units
    for attempt in range(64):
        words = code.unowned(size * max(1, min(POOL, free) // size), int(derive_key(seed, size, attempt)) % 2**31)
        union = words[rng.permutation(len(words))].reshape(-1, size, code.members).max(1)
        found.extend(union[~union.all(1)])
        if len(found) >= n:
            return np.stack(found[:n])
    raise ValueError(
        f"null={n}: unions of {size} unowned words rarely leave a surviving member; remove fewer units together, or "
        "train with more members or a smaller weight"
    )


class Calibration:
    """The p- and q-values of candidates relative to the influences of the null ablations.

    Args:
        null_BL: influences of the null ablations.
        kind_L: the kinds of the null ablations.
    """

    def __init__(self, null_BL: Float[np.ndarray, "B L"], kind_L: Int[np.ndarray, " L"]):
        self.null_BL = null_BL
        self._null = {}
        for kind in np.unique(kind_L):
            of_kind = null_BL[:, kind_L == kind].astype(np.float64)
            self._null[int(kind)] = np.sort(of_kind + TIE * np.abs(of_kind).max(1, keepdims=True))
        self._counts = {
            kind: np.zeros((len(null_BL), null.shape[1] + 1), np.int64) for kind, null in self._null.items()
        }

    def p_values(
        self, score_BM: Float[np.ndarray, "B M"], kind_BM: Int[np.ndarray, "B M"] | None
    ) -> Float[np.ndarray, "B M"]:
        """Return the p-values (n1) of the influences of some candidates."""
        out = np.empty(score_BM.shape)
        for kind, null in self._null.items():
            chosen = np.ones(score_BM.shape, bool) if kind_BM is None else kind_BM == kind
            for b in range(len(score_BM)):
                out[b, chosen[b]] = _p(_reached(null[b], score_BM[b, chosen[b]]), null.shape[1])
        return out

    def count(self, score_BM: Float[np.ndarray, "B M"], kinds: Int[np.ndarray, "..."] | None) -> None:
        """Count the influences of M of the N candidates; kinds are (M,), or (B, M) if they differ between samples."""
        kind_BM = None if kinds is None else np.broadcast_to(kinds, score_BM.shape)
        for kind, null in self._null.items():
            for b in range(len(score_BM)):
                scores = score_BM[b] if kind_BM is None else score_BM[b, kind_BM[b] == kind]
                self._counts[kind][b] += np.bincount(_reached(null[b], scores), minlength=null.shape[1] + 1)

    def state(self) -> dict[str, np.ndarray]:
        """Return the counts, for `restore`."""
        return {f"count_{kind}": count for kind, count in self._counts.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from the counts of another calibration with the same null."""
        self._counts = {kind: state[f"count_{kind}"] for kind in self._counts}

    def count_unknown(self, candidates: int) -> None:
        """Count unscored candidates as p = 1 each, so that q-values may be too large but never too small."""
        first = next(iter(self._counts))
        self._counts[first][:, -1] += candidates

    def q_values(self, p_BM: Float[np.ndarray, "B M"], *, of_call: bool = False) -> Float[np.ndarray, "B M"]:
        """Return the q-values (n2) of counted p-values, among all candidates counted so far.

        These are the candidates of the same sample, or with ``of_call`` those of all samples of the call.
        """
        level = np.concatenate([_p(np.arange(null.shape[1] + 1), null.shape[1]) for null in self._null.values()])
        count_B = np.concatenate(list(self._counts.values()), axis=1)
        if of_call:
            count_B = np.broadcast_to(count_B.sum(0), count_B.shape)
        order = np.argsort(level, kind="stable")
        out = np.empty(p_BM.shape)
        for b in range(len(p_BM)):
            below = np.cumsum(count_B[b, order])
            # several nulls may have equal levels: the last of these has the count of all
            last = np.searchsorted(level[order], level[order], side="right") - 1
            share = below[-1] * level[order] / np.maximum(below[last], 1)
            share[below[last] == 0] = np.inf
            q = np.minimum.accumulate(share[::-1])[::-1]
            out[b] = np.minimum(q[np.searchsorted(level[order], p_BM[b], side="left")], 1.0)
        return out


def _reached(null_L: np.ndarray, score_M: np.ndarray) -> Int[np.ndarray, " M"]:
    """Return how many null influences, sorted and raised by `TIE`, reach each score."""
    return len(null_L) - np.searchsorted(null_L, score_M, side="left")


def _p(reached: np.ndarray, size: int) -> np.ndarray:
    return (1.0 + reached) / (1.0 + size)
