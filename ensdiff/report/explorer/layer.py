"""Layers of the explorer: one kind of unit that a code can remove, such as items or groups, and what each removal does.

A run with a hierarchical code has two layers, its items and its groups; every other run has one layer.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ensdiff.attribution import Attribution, attribute
from ensdiff.attribution.measures import measure_name
from ensdiff.attribution.queries import other_conditions
from ensdiff.codes import Code
from ensdiff.data import Dataset
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.memory import Resources
from ensdiff.metrics import radius
from ensdiff.metrics.arrays import distances
from ensdiff.report.explorer.scores import unfit_scores
from ensdiff.runs.identity import check_data
from ensdiff.sampling.sample import Samples, ablated

TOLERANCE = 0.01
"""Largest relative difference, due to rounding, between computations of one influence on different devices."""
MOST_SETS = 8
"""Maximum number of units of which all subsets are computed: 247 subsets of two or more."""


class Removal(NamedTuple):
    """A sample without some units: the image, and how far the sample moved (L2 in the members' space)."""

    image: Float[np.ndarray, "H W C"]
    influence: float


class Layer(NamedTuple):
    """Everything that was computed about the units of one code.

    Args:
        name: the singular name for one unit.
        code: the units' words.
        data: the training images, with this layer's units.
        att: the most influential units of each sample by exact ablation, most influential first.
        image_BTHWC: each sample without each of these units, pixels in [0, 1] or latents.
        sets: for each sample, its removals of sets of units, by sorted unit ids. Sets without survivors are left out.
        landscape: influences of all units (or of the most influential): exact, or predicted by ``differential``.
        whole: whether the landscape holds every unit that can be removed.
        classes: the class name of each unit, or None without classes.
        scores: an attribution of the samples by a gradient method or by loss, shown beside the exact one, or None.
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
    scores: Attribution | None = None

    @property
    def exact(self) -> bool:
        """Whether every influence of the landscape is exact."""
        return self.landscape.method == "exact"

    @property
    def radius_B(self) -> Float[np.ndarray, " B"]:
        """Counterfactual radius from the exact influences of single units; for a screen, those that it verified."""
        return radius(self.att.influence, resamples=0).radius_B


def explore(
    params: Ensemble,
    data: Dataset,
    samples: Samples,
    att: Attribution | None = None,
    *,
    scores: Attribution | None = None,
    groups: bool = False,
    top: int = 32,
    combined: int = 5,
    null: int | Literal["all", "auto"] = "auto",
    level: float = 0.1,
    landscape: int = 20_000,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Layer:
    """Compute what the explorer shows for one kind of unit.

    Args:
        params: the ensemble.
        data: its training data.
        samples: what `ensdiff.sample` returned.
        att: an attribution of the same samples by ``"exact"`` or ``"screen"``, to use instead of a new one.
        scores: an attribution of the same samples by a gradient method or by loss, to show beside the exact one.
        groups: use the groups of a hierarchical code instead of its units.
        top: number of units per sample whose removal is computed exactly; all if there are no more units.
        combined: number of first units per sample of which every subset is removed too, at most `MOST_SETS`.
        null: number of null ablations for p- and q-values, 0 for none, or ``"auto"``, see `ensdiff.attribute`.
        level: the largest q-value at which a sample is attributed to a unit.
        landscape: number of most influential units per sample whose predicted influence is kept.
        seed: the seed of the null's words.
        memory_budget: maximum bytes of activations per device.
        progress: show progress bars.

    Returns:
        The layer.

    Raises:
        ValueError: a number is out of range, the data are of another run, or an attribution is of other samples.
    """
    if not 0 <= combined <= MOST_SETS:
        raise ValueError(f"combined={combined}: expected 0 .. {MOST_SETS} units of which all subsets are removed")
    if top < 1 or landscape < 1:
        raise ValueError(f"top={top}, landscape={landscape}: expected at least 1 unit")
    code = params.code.group_code() if groups else params.code
    check_data(params, data)
    if scores is not None and (problem := unfit_scores(params, samples, scores, code)):
        raise ValueError(f"the scores do not fit: {problem}")
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
        scores,
    )


def all_units(code: Code) -> int:
    """Return how many units can be removed."""
    from ensdiff.attribution.candidates import Candidates

    return len(Candidates.of(code, None))


def same_samples(params: Ensemble, samples: Samples, att: Attribution, code: Code | None = None) -> bool:
    """Return whether an attribution can be shown with these samples, by recomputing the first removal of each."""
    return unfit(params, samples, att, params.code if code is None else code) is None


def unfit(params: Ensemble, samples: Samples, att: Attribution, code: Code) -> str | None:
    """Return why an attribution cannot be shown with these samples, or None if it can."""
    measure = measure_name(None, None, params.space)
    if att.method not in ("exact", "screen") or att.distance != measure or att.sets is not None:
        return f"it is by {att.method!r} in {att.distance}; shown are 'exact' or 'screen' of single units in {measure}"
    if len(att) != len(samples):
        return f"it is of {len(att)} samples, not {len(samples)}"
    if att.units.max() >= code.units or att.settings.get("candidates") != all_units(code):
        return f"it is of other units than these {code.units}"
    if problem := other_conditions(att.settings, params, samples):
        return problem
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
    """Remove every set of two or more units that leaves a survivor from every sample, in a single landscape."""
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
    """Return the class of each unit from the labels of its items or from its group, or None if it adds nothing."""
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
