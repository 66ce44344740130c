"""Paragraphs of the report that explain the sections of an attribution, by its method."""

from collections.abc import Sequence

from ensdiff.attribution import Attribution
from ensdiff.attribution.measures import L2, distance_words
from ensdiff.report.wording import by_gradients, meaning, measured

HOW_TO_READ = (
    "Each training unit was seen by only some members of the ensemble. Each sample below is shown with the units "
    "whose removal moves it most: drop every member that saw the unit, start again from the same noise, and the "
    "result is what this ensemble would have made had the unit never existed. The number is the distance that the "
    "sample moves (L2 over pixels in [0, 1]); the squares are the members, filled where the member saw the unit.",
    "Dropping as many other members moves a sample somewhat. The p-value compares with ablations by code words "
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


HOW_TO_READ_LOSS = (
    "Each training unit was seen by only some members of the ensemble. Each picture below is shown with the units "
    "whose removal makes it least likely. The number is how much the picture's denoising loss rises if every member "
    "that saw the unit is dropped (squared noise summed over pixels), ± its standard error; the squares are the "
    "members, filled where the member saw the unit.",
    HOW_TO_READ[1]
    .replace("moves a sample somewhat", "changes a loss somewhat")
    .replace("moves the sample at least as far", "raises the loss at least as much")
    .replace("to move it more", "to change it more"),
)
"""How to read the sections of an attribution by loss."""
WITHOUT = "The pictures without a unit are what the members that did not see it make from the same noise."


def how_to_read(att: Attribution, generated: bool = True) -> Sequence[str]:
    """Return paragraphs that explain the sections of an attribution, by its method.

    Args:
        att: the attribution.
        generated: whether it is of samples, of which the page shows counterfactuals; False for pictures from elsewhere.

    >>> att = ensdiff.attribute(params, samples, "differential", top=3, null=9)
    >>> how_to_read(att) == HOW_TO_READ
    True
    """
    if by_gradients(att):
        texts = [text.replace("{meaning}", meaning(att)) for text in HOW_TO_READ_SCORES]
        return texts if generated else [texts[0].split(" The pictures without a unit answer")[0], *texts[1:]]
    if att.distance == "loss":
        return (*HOW_TO_READ_LOSS, WITHOUT) if generated else HOW_TO_READ_LOSS
    return tuple(text.replace(distance_words(L2), measured(att)) for text in HOW_TO_READ)
