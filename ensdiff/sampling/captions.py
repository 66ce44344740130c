"""Short texts for the conditions of samples and pictures, as reports and figures show them."""

from typing import Any

from ensdiff.ensemble.ensemble import Ensemble


def captions_of(params: Ensemble, cond: Any) -> list[str] | None:
    """Return a short text for the condition of each image; None for unconditional members.

    Args:
        params: the ensemble.
        cond: the condition tree of the images, such as ``samples.cond``; None for unconditional members.

    Returns:
        For classes their names, or "class 3"; "no condition" for the null row.

    >>> captions_of(params, samples.cond) is None
    True
    """
    spec = params.condition
    if spec is None or cond is None:
        return None
    texts = spec.captions(cond)
    if len(spec.leaves) > 1:
        return texts
    (leaf,) = spec.leaves
    numbered = leaf.classes is not None and leaf.names is None
    return ["no condition" if text == "none" else f"class {text}" if numbered else text for text in texts]
