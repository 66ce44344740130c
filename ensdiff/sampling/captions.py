"""Short texts for the conditions of samples and pictures, as reports and figures show them."""

from collections.abc import Sequence
from typing import Any

from ensdiff.ensemble.ensemble import Ensemble


def captions_of(params: Ensemble, cond: Any, captions: Sequence[str] | None = None) -> list[str] | None:
    """Return a short text for the condition of each image; None for unconditional members.

    Args:
        params: the ensemble.
        cond: the condition tree of the images, such as ``samples.cond``; None for unconditional members.
        captions: texts that the images have already, such as ``samples.captions``; None if they have none.

    Returns:
        The given texts, or for classes their names, or "class 3"; "no condition" for the null row.

    >>> captions_of(params, samples.cond) is None
    True
    """
    spec = params.condition
    if spec is None or cond is None:
        return None
    if captions is not None:
        return list(captions)
    texts = spec.captions(cond)
    if len(spec.leaves) > 1:
        return texts
    (leaf,) = spec.leaves
    numbered = leaf.classes is not None and leaf.names is None
    return ["no condition" if text == "none" else f"class {text}" if numbered else text for text in texts]


def check_captions(captions: Sequence[str], count: int) -> tuple[str, ...]:
    """Return one caption per image.

    Raises:
        ValueError: they are no texts, or neither one per image nor one for all.

    >>> check_captions("a cat", 2)
    ('a cat', 'a cat')
    """
    given = [captions] if isinstance(captions, str) else list(captions)
    if len(given) not in (1, count) or not all(isinstance(text, str) for text in given):
        raise ValueError(f"captions={captions!r:.60}: expected {count} texts, one per image, or one for all")
    return tuple(given * (count // len(given)))
