"""Checks of the arguments of `attribute`, and names for values that JSON cannot store."""

import dataclasses
import json
import numbers
from typing import Any, Literal, NamedTuple

import numpy as np

from ensdiff.attribution.scoring import GRADIENT_METHODS, Method, Score
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.sampling.sample import Samples, check_samples
from ensdiff.typing import ArrayLike

VERIFY = 50
"""Candidates per sample that a screen verifies by default."""


def check_method(
    params: Ensemble, samples: Samples | ArrayLike, method: Method | str | Score, features: Any, **options: Any
) -> None:
    """Check that a method is known, and that it can use the samples and the options.

    Args:
        params: the ensemble.
        samples: the caller's samples or images.
        method: a name or a function.
        features: the caller's features, or None.
        **options: the caller's ``distance``, ``verify`` and ``loss``, and those of the gradient methods, None if they
            were left out.

    Raises:
        ValueError: an unknown method, options of another method, or samples that the method cannot use.
    """
    known = ("exact", "differential", "screen", "loss", *GRADIENT_METHODS)
    if not callable(method) and method not in known:
        choices = ", ".join(map(repr, known))
        raise ValueError(f"method={method!r}: expected one of {choices}, or a function of weights (M, K)")
    users = {"distance": ("exact", "screen"), "verify": ("screen",), "loss": ("loss", *GRADIENT_METHODS)}
    for name, value in options.items():
        if value is not None and method not in users.get(name, GRADIENT_METHODS):
            methods = " and ".join(map(repr, users.get(name, GRADIENT_METHODS)))
            raise ValueError(f"{name} is for method={methods}, not {name_of(method)!r}: leave it out")
    if method in GRADIENT_METHODS and options.get("data") is None:
        raise ValueError(f"method={method!r} needs the gradients of the training images: pass data=, the training data")
    if callable(method) or method in ("loss", *GRADIENT_METHODS):
        if features is not None:
            raise ValueError(
                f"features have no meaning for method={name_of(method)!r}, which measures no distance: leave them out"
            )
        if not isinstance(samples, Samples) and np.ndim(samples) == 0:
            raise ValueError(
                f"samples is a {type(samples).__name__}: expected the result of ensdiff.sample, or images (B, H, W, "
                "C), such as data.images"
            )
    else:
        check_samples(params, samples, f"method={method!r}")


class Request(NamedTuple):
    """The numbers of a call, in Python's own types, which JSON can write.

    Args:
        top: units returned per sample.
        verify: units per sample that a screen verifies, at most the number of candidates.
        audit: random unverified units per sample that are also verified.
        null: null ablations of each kind, or ``"all"``.
        level: largest q-value at which a verdict attributes a sample to a unit.
        seed: seed of the null's words, of the audit and of the draws of the loss.
        plans: whether the null is still to be planned (`ensdiff.attribution.sufficient.with_null`).
    """

    top: int
    verify: int
    audit: int
    null: int | Literal["all"]
    level: float
    seed: int
    plans: bool = False


def check_request(
    method: Method | str | Score, candidates: int, top: Any, verify: Any, audit: Any, null: Any, level: float, seed: Any
) -> Request:
    """Check the numbers of a call, and return them with defaults filled in.

    Raises:
        ValueError: a value is not a number, or is out of range.
    """
    if not _whole(top) or not 1 <= top <= candidates:
        raise ValueError(f"top={top}: expected 1 .. {candidates}, the number of candidate units")
    verify = max(VERIFY, top) if verify is None else verify
    if not _whole(verify):
        raise ValueError(f"verify={verify!r}: expected the number of units to verify")
    if verify < top:
        raise ValueError(f"verify={verify} is less than top={top}: verify at least as many units as are returned")
    if null not in ("all", "auto") and (not _whole(null) or null < 0):
        raise ValueError(f"null={null!r}: expected the number of null ablations, 0 for none, 'auto' or 'all'")
    if not _whole(audit) or audit < 0 or (audit and method != "screen"):
        raise ValueError(f"audit={audit}: expected 0, or with method='screen' a number of units")
    if not isinstance(level, numbers.Real) or not 0 < level < 1:
        raise ValueError(f"level={level}: expected a q-value between 0 and 1")
    if not _whole(seed):
        raise ValueError(f"seed={seed!r}: expected an integer")
    verify = min(int(verify), candidates)
    size: int | Literal["all"] = "all" if null == "all" else 0 if null == "auto" else int(null)
    return Request(int(top), verify, int(audit), size, float(level), int(seed), null == "auto")


def name_of(function: Any) -> str:
    """Return the name of a function, or the argument if it is a name."""
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)


def named_sampler(samples: Any) -> Any:
    """Return the samples, with a sampler function replaced by its name, because its address differs between runs."""
    if not isinstance(samples, Samples) or isinstance(samples.config.sampler, str):
        return samples
    values = dataclasses.asdict(samples.config) | {"sampler": name_of(samples.config.sampler)}
    return samples.images, samples.noise, samples.weights_K, samples.cond, samples.guidance, json.dumps(values)


def _whole(number: Any) -> bool:
    return isinstance(number, numbers.Integral) and not isinstance(number, bool)
