"""Marks of the images that an attribution is of, by which a saved attribution is told from one of other images.

Each image has four numbers: sums over its P values x_p in [0, 1] with weights that are as good as random,

(q1) ``m_j = sqrt(2 / P) sum_p x_p cos(sqrt(j) p^2)`` for j = 2, 3, 5, 7.

They differ between two images by about the root mean square of the images' difference. Unlike a hash, they are nearly
the same for an image that was sampled again on another device, where it differs by rounding.
"""

import hashlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from ensdiff.attribution.pictures import Pictures
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.models.space import Latents
from ensdiff.sampling.captions import captions_of
from ensdiff.sampling.sample import Samples
from ensdiff.typing import ArrayLike

FREQUENCIES = np.sqrt([2.0, 3.0, 5.0, 7.0])
TOLERANCE = 1e-3
"""Largest difference between marks of one image that was computed on different devices."""


def query_marks(images: ArrayLike) -> list[list[float]]:
    """Return the marks (q1) of B images in Python's own types, which JSON can write: B lists of four numbers.

    Args:
        images: (B, H, W, C) in [0, 1], or uint8.

    >>> query_marks(np.ones((1, 1, 1, 1)))  # one value, p = 0
    [[1.414214, 1.414214, 1.414214, 1.414214]]
    """
    return [[round(value, 6) for value in row] for row in _marks_BJ(images).tolist()]


def same_queries(marks: Any, images: ArrayLike) -> bool:
    """Return whether the marks, as read from a file, are those of these images up to `TOLERANCE`.

    >>> images = np.eye(4).reshape(2, 2, 2, 2)
    >>> same_queries(query_marks(images), images + 1e-5), same_queries(query_marks(images), images[::-1])
    (True, False)
    """
    now_BJ = _marks_BJ(images)
    try:
        then_BJ = np.asarray(marks, np.float64)
    except (TypeError, ValueError):
        return False
    return then_BJ.shape == now_BJ.shape and bool((np.abs(then_BJ - now_BJ) <= TOLERANCE).all())


def query_settings(params: Ensemble, given: Any) -> dict[str, Any]:
    """Return what an attribution records about its images besides the marks, in values that JSON can write.

    For latents, ``space``. For conditional members ``captions`` (texts for people), ``conditions`` (marks of the values
    of each condition), and for samples ``guidance``.

    Args:
        params: the ensemble.
        given: `Samples`, or images with their conditions (`ensdiff.attribution.pictures.Pictures`).
    """
    settings: dict[str, Any] = {"space": "latents"} if isinstance(params.space, Latents) else {}
    cond = getattr(given, "cond", None)
    if params.condition is None or cond is None:  # a method of one's own may be asked about plain arrays
        return settings
    settings |= {
        "captions": captions_of(params, cond, getattr(given, "captions", None)),
        "conditions": condition_marks(cond),
    }
    return settings | ({"guidance": given.guidance} if isinstance(given, Samples) else {})


def condition_marks(cond: Any) -> list[str]:
    """Return a mark of the condition of each image: the first 16 hexadecimal digits of the SHA-256 of its values.

    >>> condition_marks(np.array([3, 3, 1], np.int32))
    ['9d9f290527a6be62', '9d9f290527a6be62', '67abdd721024f0ff']
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(cond)]
    values = (b"".join(np.ascontiguousarray(part).tobytes() for part in row) for row in zip(*leaves, strict=True))
    return [hashlib.sha256(value).hexdigest()[:16] for value in values]


def other_conditions(settings: dict[str, Any], params: Ensemble, samples: Samples | Pictures) -> str | None:
    """Return why the conditions in an attribution's settings are not those of these samples, or None if they are."""
    if params.condition is None:
        return None
    if "conditions" not in settings:
        return "it does not record the conditions of its images: attribute them again"
    now, then = condition_marks(samples.cond), settings["conditions"]
    texts = samples.captions if isinstance(samples, Samples) else None
    captions = captions_of(params, samples.cond, texts) or []
    for b, (mark, caption) in enumerate(zip(now, captions, strict=True)):
        if b >= len(then) or then[b] != mark:
            known = settings.get("captions") or []
            other = f" ({known[b]})" if b < len(known) else ""
            return f"its sample {b} has another condition{other} than this one ({caption})"
    if not isinstance(samples, Samples):
        return None
    guidance = settings.get("guidance", samples.guidance)
    if guidance != samples.guidance:
        return f"its samples have guidance {guidance:g}, not {samples.guidance:g}"
    return None


def _marks_BJ(images: ArrayLike) -> Float[np.ndarray, "B J"]:
    x = np.asarray(images)
    x_BP = x.reshape(len(x), -1).astype(np.float64) / (255 if x.dtype == np.uint8 else 1)
    P = x_BP.shape[1]
    return np.sqrt(2 / P) * x_BP @ np.cos(np.square(np.arange(P))[:, None] * FREQUENCIES)
