"""`attribute`: which training units each sample depends on, most influential first.

An ablation of one unit switches off every member that saw it, about half of the ensemble, and that moves a sample by
itself. An influence therefore means something only against the *null*: ablations by code words of the same weight
that no unit owns. ``p_value = (1 + #{null >= influence}) / (1 + #null)``, one-sided, per sample.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from ensdiff.attribution.differential import gram, quadratic_influence
from ensdiff.attribution.exact import exact_influence
from ensdiff.codes import Code
from ensdiff.ensemble import Ensemble
from ensdiff.sample import Samples, check_samples
from ensdiff.typing import Array

Method = Literal["exact", "differential", "screen"]


@dataclasses.dataclass(frozen=True)
class Attribution:
    """The most influential units of each sample.

    Args:
        units: (B, top) unit ids, most influential first.
        influence: (B, top) distances between the sample and its counterfactual, >= 0, in units of ``distance``.
        p_value: (B, top) share of null ablations that move the sample at least as far; None without a null.
        null_BL: (B, L) influences of the L null ablations; None without.
        method: how it was computed.
        distance: ``"l2"`` over [0, 1] pixels, or the name of the feature function.
        settings: everything else that was asked for.
    """

    units: Int[np.ndarray, "B top"]
    influence: Float[np.ndarray, "B top"]
    p_value: Float[np.ndarray, "B top"] | None
    null_BL: Float[np.ndarray, "B L"] | None
    method: str
    distance: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        B, top = self.units.shape
        lines = [f"Attribution({self.method}, {self.distance} distance, top {top} units of {B} samples)"]
        for b in range(min(B, 8)):
            cells = []
            for i in range(min(top, 4)):
                p = "" if self.p_value is None else f", p={self.p_value[b, i]:.3f}"
                cells.append(f"{self.units[b, i]} ({self.influence[b, i]:.3f}{p})")
            lines.append(f"  sample {b}: " + ", ".join(cells) + (", ..." if top > 4 else ""))
        return "\n".join(lines + (["  ..."] if B > 8 else []))


def attribute(
    params: Ensemble,
    samples: Samples,
    method: Method | str = "screen",
    *,
    top: int = 10,
    units: Sequence[int] | None = None,
    features: Callable[[Array], Array] | None = None,
    verify: int = 50,
    null: int = 0,
    seed: int = 0,
    chunk: int | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Attribution:
    """Rank training units by how far each sample moves when the unit is removed from its causal history.

    Args:
        params: the ensemble.
        samples: what `ensdiff.sample` returned.
        method: ``"exact"`` regenerates every sample without every unit (4); ``"differential"`` predicts the distance
            from the Gram of the Jacobian (6), one run a sample for any number of units; ``"screen"`` ranks all units
            by (6) and verifies the best ``verify`` of them by (4).
        top: units returned a sample.
        units: the candidate unit ids; by default all.
        features: a function of images (B, H, W, C) in [0, 1] to features; distances are L2 between features. By
            default between pixels.
        verify: units a sample that ``"screen"`` verifies exactly.
        null: number of null ablations for ``p_value``; 0 is none.
        seed: of the null code words.
        chunk: images at a time in exact ablation; by default from the memory budget.
        memory_budget: bytes of activations a device may hold.
        progress: show progress bars.

    Returns:
        `Attribution`, arrays of shape (B, top). Influences are >= 0: larger means that the sample depends more on
        the unit.

    Raises:
        ValueError: unknown method or units, ``top`` larger than the number of candidates, too few unowned words.
    """
    if method not in get_args(Method):
        raise ValueError(f"method={method!r}: expected one of {', '.join(map(repr, get_args(Method)))}")
    check_samples(params, samples, f"method={method!r}")
    candidates_N = _candidates(params.code, units)
    N, B = len(candidates_N), len(samples)
    if not 1 <= top <= N:
        raise ValueError(f"top={top}: expected 1 .. {N}, the number of candidate units")
    if verify < top and method == "screen":
        raise ValueError(f"verify={verify} is less than top={top}: verify at least as many units as are returned")
    if null < 0:
        raise ValueError(f"null={null}: expected the number of null ablations, 0 for none")
    weights_NK = params.code.ablate(candidates_N)
    null_LK = _uniform(1 - params.code.unowned(null, seed)) if null else np.empty((0, params.members), np.float32)
    resources: dict[str, Any] = dict(chunk=chunk, memory_budget=memory_budget, progress=progress)

    def exact(weights_RK, sample_R):
        return exact_influence(params, samples, weights_RK, sample_R, features, **resources)

    def exact_null() -> Float[np.ndarray, "B L"]:
        rows = np.repeat(null_LK, B, axis=0)
        return exact(rows, np.tile(np.arange(B), null)).reshape(null, B).T

    if method == "exact":
        rows = np.repeat(weights_NK, B, axis=0)
        scores_BN = exact(rows, np.tile(np.arange(B), N)).reshape(N, B).T
        null_BL = exact_null() if null else None
    else:
        grams = gram(params, samples, features, memory_budget=memory_budget, progress=progress)
        weights_K = np.asarray(samples.weights_K)
        scores_BN = quadratic_influence(grams, weights_NK, weights_K)
        null_BL = quadratic_influence(grams, null_LK, weights_K) if null else None
    order_BN = np.argsort(-scores_BN, axis=1, kind="stable")

    if method == "screen":
        order_BN = order_BN[:, : min(verify, N)]
        m = order_BN.shape[1]
        verified = exact(weights_NK[order_BN.reshape(-1)], np.repeat(np.arange(B), m)).reshape(B, m)
        best = np.argsort(-verified, axis=1, kind="stable")[:, :top]
        index_BT = np.take_along_axis(order_BN, best, axis=1)
        influence_BT = np.take_along_axis(verified, best, axis=1)
        null_BL = exact_null() if null else None
    else:
        index_BT = order_BN[:, :top]
        influence_BT = np.take_along_axis(scores_BN, index_BT, axis=1)

    p_BT = None if null_BL is None else _p_values(influence_BT, null_BL)
    distance = "l2" if features is None else getattr(features, "__name__", type(features).__name__)
    settings = dict(top=top, candidates=N, verify=verify if method == "screen" else None, null=null, seed=seed)
    return Attribution(candidates_N[index_BT], influence_BT, p_BT, null_BL, method, distance, settings)


def _candidates(code: Code, units: Sequence[int] | None) -> Int[np.ndarray, " N"]:
    if units is None:
        return np.arange(code.units)
    ids = np.asarray(units)
    if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"units={units!r}: expected a list of unit ids, 0 .. {code.units - 1}")
    if ids.min() < 0 or ids.max() >= code.units:
        raise ValueError(f"unit {ids[(ids < 0) | (ids >= code.units)][0]}: ids are 0 .. {code.units - 1}")
    return ids


def _uniform(keep_MK: np.ndarray) -> Float[np.ndarray, "M K"]:
    return (keep_MK / keep_MK.sum(1, keepdims=True)).astype(np.float32)


def _p_values(influence_BT: np.ndarray, null_BL: np.ndarray) -> Float[np.ndarray, "B top"]:
    """(1 + #{null >= influence}) / (1 + #null)."""
    reached = (null_BL[:, None, :] >= influence_BT[:, :, None]).sum(-1)
    return (1.0 + reached) / (1.0 + null_BL.shape[1])
