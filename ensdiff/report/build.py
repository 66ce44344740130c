"""Building the sections of the report from an attribution."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from ensdiff.attribution import Attribution
from ensdiff.attribution.pictures import pictures_of
from ensdiff.attribution.queries import other_conditions
from ensdiff.data import Dataset
from ensdiff.data.viewing import Decode, viewer
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.memory import Resources
from ensdiff.metrics.arrays import at_most
from ensdiff.report.figures import null_figure
from ensdiff.report.page import SHOWN, Figure, SampleSection, UnitCard
from ensdiff.report.wording import (
    by_gradients,
    judgement_sentence,
    meaning,
    null_words,
    verdict_words,
)
from ensdiff.runs.identity import check_attributed, check_data
from ensdiff.sampling.captions import captions_of
from ensdiff.sampling.sample import Samples, ablated
from ensdiff.typing import ArrayLike


def attribution_sections(
    params: Ensemble,
    data: Dataset,
    samples: Samples | ArrayLike,
    att: Attribution,
    top: int = 6,
    *,
    groups: bool = False,
    inside: Attribution | None = None,
    names: Sequence[str] | None = None,
    cond: Any = None,
    decode: Decode | None = None,
    progress: bool = False,
) -> Sequence[SampleSection]:
    """Return one section per sample: its most influential units, with their images and the counterfactual without each.

    The note of a gradient method says what the number and the null are, and how the members judge the scores. Pictures
    that were not generated here have no counterfactuals.

    Args:
        params: the ensemble.
        data: its training data.
        samples: what `ensdiff.sample` returned, or the pictures from elsewhere that were attributed, (B, H, W, C).
        att: their attribution.
        top: units per sample.
        groups: whether the attribution is to the groups of a hierarchical code (``code=params.code.group_code()``).
        inside: an attribution of the same samples to all single units: for each group, the pictures that it puts first
            are shown.
        names: names of pictures from elsewhere, such as their files.
        cond: the conditions of such pictures, as they were given to `ensdiff.attribute`.
        decode: for latents, a function from latents (n, H, W, C) to pictures (n, h, w, c) in [0, 1], with which samples
            and training images are shown.
        progress: show a progress bar.

    Raises:
        ValueError: the data are not what the ensemble was trained on (`ensdiff.check_data`), the attribution is to
            other units, to sets of units or of samples with other conditions, or ``decode`` is missing for latents.
    """
    view = viewer(params.space, decode)
    check_data(params, data)
    code = params.code.group_code() if groups else params.code
    shown = data.regroup(params.code.group_of_unit()[data.unit_of_item], code.names) if groups else data
    check_attributed(att, shown)
    if att.sets is not None:
        raise ValueError("the attribution is to sets of units: these sections show single units")
    queries = samples if isinstance(samples, Samples) else pictures_of(params, samples, cond)
    if problem := other_conditions(att.settings, params, queries):
        raise ValueError(f"the attribution does not fit: {problem}")
    if inside is not None:
        _check_inside(params, inside, att, groups)
    units_BT = att.units[:, :top]
    B, T = units_BT.shape
    counterfactual_BT: Any = None
    if isinstance(samples, Samples):
        words_RK, sample_R = code.ablate(units_BT.reshape(-1)), np.repeat(np.arange(B), T)
        counterfactual_R = ablated(params, samples, words_RK, sample_R, Resources(progress=progress))
        counterfactual_BT = view(counterfactual_R.reshape(B, T, *params.image_shape))
    pictures = view(queries.images)
    if isinstance(samples, Samples):
        captions = captions_of(params, samples.cond, samples.captions)
        heading, origin = "Sample {}", "as generated"
    else:
        captions = None if cond is None else captions_of(params, queries.cond, None)
        heading, origin = "Picture {}", "as given"
    noun = "group" if groups else "unit"
    cards_BT = _cards(
        shown, att, units_BT, code.rows(units_BT.reshape(-1)), counterfactual_BT, view, inside, data.unit_of_item
    )
    return [
        SampleSection(
            heading.format(b) if names is None else names[b],
            pictures[b],
            _note(att, b, noun),
            cards_BT[b],
            _figure(att, b, top),
            None if captions is None else captions[b],
            None if att.q_value is None else verdict_words(att, b, shown.unit_names),
            0 if att.q_value is None else int(at_most(att.q_value[b, :top], att.level).sum()),
            origin,
        )
        for b in range(B)
    ]


def _check_inside(params: Ensemble, inside: Attribution, att: Attribution, groups: bool) -> None:
    """Check that an attribution to single units can choose the pictures of groups.

    Raises:
        ValueError: it cannot.
    """
    whole = groups and inside.sets is None and inside.units.shape == (len(att), params.code.units)
    if not whole:
        raise ValueError(
            f"inside has units of shape {inside.units.shape}: expected an attribution of the same {len(att)} samples "
            f"to all {params.code.units} single units (top={params.code.units}), and groups=True"
        )


def _cards(
    data: Dataset,
    att: Attribution,
    units_BT: Int[np.ndarray, "B T"],
    words_RK: UInt8[np.ndarray, "R K"],
    counterfactual_BT: Any,
    view: Callable[[Any], np.ndarray],
    inside: Attribution | None,
    unit_of_item: Int[np.ndarray, " n"],
) -> list[list[UnitCard]]:
    """Return the cards of the units of each sample.

    The pictures of a group are in the order of ``inside``, whose single units are those of ``unit_of_item``.
    """
    B, T = units_BT.shape
    cards: list[list[UnitCard]] = [[] for _ in range(B)]
    for b in range(B):
        place_N = None if inside is None else np.argsort(inside.units[b])
        for t in range(T):
            unit = int(units_BT[b, t])
            items = data.items_of(unit)
            extra = {} if att.p_value is None else {"p": f"{att.p_value[b, t]:.3g}"}
            if att.q_value is not None:
                extra["q"] = f"{att.q_value[b, t]:.2g}"
            present = data.present_items_of(unit)
            if place_N is not None:
                present = present[np.argsort(place_N[unit_of_item[present]], kind="stable")]
            if data.labels is not None and len(items) == len(present) == 1:
                extra["class"] = str(data.labels[items[0]])
            cards[b].append(
                UnitCard(
                    data.unit_names[unit],
                    view(data.images[present[:SHOWN]]),
                    None if counterfactual_BT is None else counterfactual_BT[b, t],
                    float(att.influence[b, t]),
                    words_RK[b * T + t],
                    extra,
                    len(items) - len(present),
                    None if att.standard_error is None else float(att.standard_error[b, t]),
                    meaning(att),
                    len(present),
                    None if inside is None else f"of {len(present)}, chosen by {inside.method}",
                )
            )
    return cards


def _note(att: Attribution, b: int, noun: str) -> str:
    """Return what was found for one sample."""
    note = f"Most influential of {att.settings['candidates']:,} {noun}s."
    note += f" The number is {meaning(att)}." if by_gradients(att) else ""
    if att.verdict is not None:
        note += f" Verdict: {att.verdict[b]}"
        note += "." if att.limitation is None else f" (the null is too small for any other verdict: {att.limitation})."
    if by_gradients(att):
        note += "" if att.null_BL is None else _null_note(att, att.null_BL[b])
        note += "" if att.judgement is None else f" {judgement_sentence(att.judgement)}"
    elif att.null_BL is not None:
        null = att.null_BL[b]
        moves = "raises its loss" if att.distance == "loss" else "moves this sample"
        note += (
            f" The null, {len(null)} ablations of code words that no unit owns, {moves} by {np.median(null):.3f} in "
            f"the median and {null.max():.3f} at most."
        )
    return note


def _figure(att: Attribution, b: int, top: int) -> Figure | None:
    """Return a histogram of the null ablations of one sample, with the units marked; None without such a null."""
    if by_gradients(att) or att.null_BL is None:
        return None
    null = att.null_BL[b]
    return Figure(
        "Null ablations, and the units above (lines)",
        null_figure(null, att.influence[b, :top]),
        f"Histogram of {len(null)} null influences with the units' influences marked",
    )


def _null_note(att: Attribution, null_L: Float[np.ndarray, " L"]) -> str:
    """Return what the null of a gradient method is, and its scores for one sample."""
    return (
        f" The null, {null_words(att)}, scores {np.median(null_L):.3g} in the median and {null_L.max():.3g} at most; "
        "p and q compare it with the units' scores under members that did not see them."
    )
