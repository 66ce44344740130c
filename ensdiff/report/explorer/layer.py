"""What the explorer shows of one kind of unit: the items or groups that a code can remove, and what each removal does.

A run with a hierarchical code has two layers, its items and its groups; every other run has one.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ensdiff.attribution import Attribution, attribute
from ensdiff.codes import Code
from ensdiff.data import Dataset
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.memory import Resources
from ensdiff.metrics import radius
from ensdiff.metrics.arrays import distances
from ensdiff.runs.identity import check_data
from ensdiff.sampling.sample import Samples, ablated

TOLERANCE = 0.01
"""Relative difference of two computations of the same influence, on whatever devices, that is put down to rounding."""
MOST_SETS = 8
"""Of so many units at most all subsets are computed: 247 of them."""


class Removal(NamedTuple):
    """A sample without some units: the image, and how far it moved (L2 over pixels in [0, 1])."""

    image: Float[np.ndarray, "H W C"]
    influence: float


class Layer(NamedTuple):
    """All that was computed about the units of one code.

    Args:
        name: what one unit is called, in the singular.
        code: the units' words.
        data: the training images, with this layer's units.
        att: the most influential units of each sample by exact ablation, most influential first.
        image_BTHWC: each sample without each of these units, [0, 1].
        sets: of each sample, what it is without sets of units, by their sorted ids. Sets without survivors are left
            out.
        landscape: influences of all units (or of the most influential): exact ones, or predicted by ``differential``.
        whole: whether the landscape holds every unit that can be removed.
        classes: a name of each unit's class, where it has one.
    """

    name: str
    code: Code
    data: Dataset
    att: Attribution
    image_BTHWC: Float[np.ndarray, "B T H W C"]
    sets: Sequence[Mapping[tuple[int, ...], Removal]]
    landscape: Attribution
    whole: bool
    classes: Sequence[str] | None = None

    @property
    def exact(self) -> bool:
        """Whether every influence of the landscape is exact."""
        return self.landscape.method == "exact"

    @property
    def radius_B(self) -> Float[np.ndarray, " B"]:
        """Counterfactual radius, of the exact influences of single units; of a screen, those that it verified."""
        return radius(self.att.influence, resamples=0).radius_B


def explore(
    params: Ensemble,
    data: Dataset,
    samples: Samples,
    att: Attribution | None = None,
    *,
    groups: bool = False,
    top: int = 32,
    combined: int = 5,
    null: int | Literal["all"] = 99,
    level: float = 0.1,
    landscape: int = 20_000,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Layer:
    """Compute what the explorer shows of one kind of unit.

    Args:
        params: the ensemble.
        data: its training data.
        samples: what `ensdiff.sample` returned.
        att: an attribution of the same samples by ``"exact"`` or ``"screen"``, to be used instead of a new one.
        groups: the groups of a hierarchical code instead of its units.
        top: units a sample whose removal is computed exactly; where there are no more units than that, all.
        combined: of the first so many units of each sample every subset is removed too, at most `MOST_SETS`.
        null: null ablations for p- and q-values; 0 is none.
        level: q up to which a sample is attributed.
        landscape: units a sample whose predicted influence is kept, the most influential.
        seed: of the null's words.
        memory_budget: bytes of activations a device may hold.
        progress: show progress bars.

    Raises:
        ValueError: numbers out of range, data of another run, or an attribution of other samples.
    """
    if not 0 <= combined <= MOST_SETS:
        raise ValueError(f"combined={combined}: expected 0 .. {MOST_SETS} units of which all subsets are removed")
    if top < 1 or landscape < 1:
        raise ValueError(f"top={top}, landscape={landscape}: expected at least 1 unit")
    code = params.code.group_code() if groups else params.code
    check_data(params, data)
    shown = data.regroup(params.code.group_of_unit()[data.unit_of_item], code.names) if groups else data
    resources = Resources(None, memory_budget, progress)
    options: Any = dict(code=code, level=level, seed=seed, memory_budget=memory_budget, progress=progress)
    whole = all_units(code)
    if att is None:
        method = "exact" if whole <= top else "screen"
        top = min(top, whole)
        verify = top if method == "screen" else None
        att = attribute(params, samples, method, top=top, verify=verify, null=null, **options)
    elif problem := unfit(params, samples, att, code):
        raise ValueError(f"the attribution does not fit: {problem}")
    B, T = att.units.shape
    images = ablated(params, samples, code.ablate(att.units.reshape(-1)), np.repeat(np.arange(B), T), resources)
    if att.method == "exact" and whole == T:
        field = att
    else:
        field = attribute(params, samples, "differential", top=min(landscape, whole), null=null, **options)
    return Layer(
        "group" if groups else ("item" if data.units == data.items else "unit"),
        code,
        shown,
        att,
        images.reshape(B, T, *params.image_shape),
        _subsets(params, samples, code, att.units[:, :combined], resources),
        field,
        field.units.shape[1] == whole,
        _classes(shown, None if groups or params.code.groups is None else params.code.group_of_unit()),
    )


def all_units(code: Code) -> int:
    """How many units can be removed."""
    from ensdiff.attribution.candidates import Candidates

    return len(Candidates.of(code, None))


def same_samples(params: Ensemble, samples: Samples, att: Attribution, code: Code | None = None) -> bool:
    """Whether an attribution can be shown with these samples: each one's first unit is removed anew."""
    return unfit(params, samples, att, params.code if code is None else code) is None


def unfit(params: Ensemble, samples: Samples, att: Attribution, code: Code) -> str | None:
    """Why an attribution cannot be shown with these samples; None where it can."""
    if att.method not in ("exact", "screen") or att.distance != "l2" or att.sets is not None:
        return f"it is by {att.method!r} in {att.distance}; shown are 'exact' or 'screen' of single units in l2"
    if len(att) != len(samples):
        return f"it is of {len(att)} samples, not {len(samples)}"
    if att.units.max() >= code.units or att.settings.get("candidates") != all_units(code):
        return f"it is of other units than these {code.units}"
    first_B = att.units[:, 0]
    images = ablated(params, samples, code.ablate(first_B), np.arange(len(samples)), Resources())
    now_B, then_B = distances(images, np.asarray(samples.images)), att.influence[:, 0]
    wrong = np.flatnonzero(np.abs(now_B - then_B) > TOLERANCE * np.maximum(then_B, 1e-3))
    if len(wrong):
        b = wrong[0]
        moved = f"sample {b} moves by {now_B[b]:.4g} and not {then_B[b]:.4g}"
        return f"without unit {first_B[b]}, {moved}: it is of other samples"
    return None


def _subsets(
    params: Ensemble, samples: Samples, code: Code, unit_BP: Int[np.ndarray, "B P"], resources: Resources
) -> list[dict[tuple[int, ...], Removal]]:
    """Every sample without every set of two or more of its units that leaves a survivor, as one landscape."""
    sets, sample_R = [], []
    for b, units in enumerate(unit_BP):
        words_PK = code.rows(units)
        for size in range(2, len(units) + 1):
            for chosen in itertools.combinations(range(len(units)), size):
                if not words_PK[list(chosen)].any(0).all():
                    sets.append(tuple(sorted(int(units[i]) for i in chosen)))
                    sample_R.append(b)
    out: list[dict[tuple[int, ...], Removal]] = [{} for _ in unit_BP]
    if not sets:
        return out
    rows = np.array(sample_R)
    images = ablated(params, samples, code.ablate(sets), rows, resources)
    moved = distances(images, np.asarray(samples.images)[rows])
    for b, units, image, influence in zip(sample_R, sets, images, moved, strict=True):
        out[b][units] = Removal(image, float(influence))
    return out


def _classes(data: Dataset, group_of_unit: np.ndarray | None) -> list[str] | None:
    """The class of each unit, by the labels of its items (or its group); None where that says nothing new."""
    if data.labels is not None:
        present = np.setdiff1d(np.arange(data.items), data.absent)
        units, labels = data.unit_of_item[present], data.labels[present]
        item, mixed = np.full(data.units, -1), np.zeros(data.units, bool)
        item[units] = present
        first = data.labels[item]
        mixed[units[first[units] != labels]] = True
        names = ["mixed" if m else str(label) for label, m in zip(first, mixed, strict=True)]
        names = [name if i >= 0 else "unknown" for name, i in zip(names, item, strict=True)]
    elif group_of_unit is not None:
        names = [f"group {g}" for g in group_of_unit]
    else:
        return None
    return names if 1 < len(set(names)) < data.units else None
