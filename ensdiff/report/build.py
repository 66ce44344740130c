"""Building the sections of the report from an attribution."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ensdiff.attribution import Attribution
from ensdiff.attribution.measures import L2, distance_words
from ensdiff.attribution.queries import other_conditions
from ensdiff.data import Dataset
from ensdiff.data.viewing import Decode, viewer
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.memory import Resources
from ensdiff.report.figures import null_figure
from ensdiff.report.page import SHOWN, Figure, SampleSection, UnitCard
from ensdiff.report.wording import by_gradients, judgement_sentence, meaning, measured, null_words
from ensdiff.runs.identity import check_attributed, check_data
from ensdiff.sampling.captions import captions_of
from ensdiff.sampling.sample import Samples, ablated

HOW_TO_READ = (
    "Each training unit was seen by only some members of the ensemble. Each sample below is shown with the units "
    "whose removal moves it most: drop every member that saw the unit, start again from the same noise, and the "
    "result is what this ensemble would have made had the unit never existed. The number is the distance that the "
    "sample moves (L2 over pixels in [0, 1]); the squares are the members, filled where the member saw the unit.",
    "Dropping any half of the ensemble moves a sample somewhat. The p-value compares with ablations by code words "
    "that no unit owns: the share of them that moves the sample at least as far. Among many units small p-values are "
    "expected by chance; the q-value (Benjamini-Hochberg) allows for that. A sample is attributable to the units "
    "whose q is at most the level; where there are none, it is unattributable: no single unit is shown to move it "
    "more than switching off other members does.",
)
"""How to read the sections of an attribution by ablation."""
HOW_TO_READ_SCORES = (
    "Each training unit was seen by only some members of the ensemble. Each sample below is shown with the units whose "
    "presence in training makes it most likely, by the gradients of the members. The number is {meaning}; the squares "
    "are the members, filled where the member saw the unit. The pictures without a unit answer another question: they "
    "are what the members that did not see the unit make from the same noise.",
    "Among many units some high scores arise by chance. The p-value is the share of a null that scores at least as "
    "high: held-out items, which no member saw, for units of one item, and otherwise random groups or sets of the same "
    "size. It compares the scores under members that did not see the unit. The q-value (Benjamini-Hochberg) allows for "
    "the number of units; a sample is attributable to the units whose q is at most the level.",
    "Every member was trained on a known part of the units, so that its losses of the samples show what training on "
    "these units changes. The held-out check is the rank correlation (LDS) between each member's losses and what the "
    "scores predict for it without its own scores.",
)
"""How to read the sections of an attribution by a gradient method."""


def how_to_read(att: Attribution) -> Sequence[str]:
    """Return paragraphs that explain the sections of an attribution, by its method.

    >>> att = ensdiff.attribute(params, samples, "differential", top=3, null=9)
    >>> how_to_read(att) == HOW_TO_READ
    True
    """
    if not by_gradients(att):
        return tuple(text.replace(distance_words(L2), measured(att)) for text in HOW_TO_READ)
    return [text.replace("{meaning}", meaning(att)) for text in HOW_TO_READ_SCORES]


def attribution_sections(
    params: Ensemble,
    data: Dataset,
    samples: Samples,
    att: Attribution,
    top: int = 6,
    *,
    decode: Decode | None = None,
    progress: bool = False,
) -> Sequence[SampleSection]:
    """Return one section per sample: its most influential units, with their images and the counterfactual without each.

    The note of a gradient method says what the number and the null are, and how the members judge the scores.

    Args:
        params: the ensemble.
        data: its training data.
        samples: what `ensdiff.sample` returned.
        att: their attribution.
        top: units per sample.
        decode: for latents, a function from latents (n, H, W, C) to pictures (n, h, w, c) in [0, 1], with which samples
            and training images are shown.
        progress: show a progress bar.

    Raises:
        ValueError: the data are not what the ensemble was trained on (`ensdiff.check_data`), the attribution is to
            other units, to sets of units or of samples with other conditions, or ``decode`` is missing for latents.
    """
    view = viewer(params.space, decode)
    check_data(params, data)
    check_attributed(att, data)
    if att.sets is not None:
        raise ValueError("the attribution is to sets of units: these sections show single units")
    if problem := other_conditions(att.settings, params, samples):
        raise ValueError(f"the attribution does not fit: {problem}")
    units_BT = att.units[:, :top]
    B, T = units_BT.shape
    words_RK = params.code.rows(units_BT.reshape(-1))
    counterfactual_R = ablated(
        params,
        samples,
        params.code.ablate(units_BT.reshape(-1)),
        np.repeat(np.arange(B), T),
        Resources(progress=progress),
    )
    counterfactual_BT = view(counterfactual_R.reshape(B, T, *params.image_shape))
    images, captions = view(samples.images), captions_of(params, samples.cond, samples.captions)
    sections = []
    for b in range(B):
        cards = []
        for t in range(T):
            unit = int(units_BT[b, t])
            items = data.items_of(unit)
            extra = {} if att.p_value is None else {"p": f"{att.p_value[b, t]:.3g}"}
            if att.q_value is not None:
                extra["q"] = f"{att.q_value[b, t]:.2g}"
            pictures = data.pictures_of(unit)
            shown = view(pictures[:SHOWN])
            if data.labels is not None and len(items) == len(pictures) == 1:
                extra["class"] = str(data.labels[items[0]])
            cards.append(
                UnitCard(
                    data.unit_names[unit],
                    shown,
                    counterfactual_BT[b, t],
                    float(att.influence[b, t]),
                    words_RK[b * T + t],
                    extra,
                    len(items) - len(pictures),
                    None if att.standard_error is None else float(att.standard_error[b, t]),
                    meaning(att),
                    len(pictures),
                )
            )
        figure = None
        note = f"Most influential of {att.settings['candidates']:,} units."
        note += f" The number is {meaning(att)}." if by_gradients(att) else ""
        if att.verdict is not None:
            note += f" Verdict: {att.verdict[b]}"
            note += (
                "." if att.limitation is None else f" (the null is too small for any other verdict: {att.limitation})."
            )
        if by_gradients(att):
            note += "" if att.null_BL is None else _null_note(att, att.null_BL[b])
            note += "" if att.judgement is None else f" {judgement_sentence(att.judgement)}"
        elif att.null_BL is not None:
            null = att.null_BL[b]
            note += (
                f" The null, {len(null)} ablations of code words that no unit owns, moves this sample by "
                f"{np.median(null):.3f} in the median and {null.max():.3f} at most."
            )
            figure = Figure(
                "Null ablations, and the units above (lines)",
                null_figure(null, att.influence[b, :top]),
                f"Histogram of {len(null)} null influences with the units' influences marked",
            )
        sections.append(
            SampleSection(f"Sample {b}", images[b], note, cards, figure, None if captions is None else captions[b])
        )
    return sections


def _null_note(att: Attribution, null_L: Float[np.ndarray, " L"]) -> str:
    """Return what the null of a gradient method is, and its scores for one sample."""
    return (
        f" The null, {null_words(att)}, scores {np.median(null_L):.3g} in the median and {null_L.max():.3g} at most; "
        "p and q compare it with the units' scores under members that did not see them."
    )
