"""Descriptions of networks, as JSON-able values that a run holds, and the network that a description belongs to.

A built-in network is described by its settings, and rebuilt from them. Code is never stored: a network of your own is
described by its name and the shapes and dtypes of its parameters, its *fingerprint*. Whoever loads it passes the same
network, which is compared with the fingerprint.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ensdiff.models.adapters import Adapted
from ensdiff.models.denoiser import Denoiser, initial_shapes, name_of
from ensdiff.models.dit import DiTConfig
from ensdiff.models.parameters import shapes_of
from ensdiff.models.transformer import FIELDS
from ensdiff.models.unet import UNetConfig

KINDS: dict[str, Any] = {"unet": UNetConfig, "dit": DiTConfig}
"""The settings of each kind of built-in network."""


def fingerprint_of(model: Denoiser) -> dict[str, Any]:
    """Return the description of a network, for `model_from_dict`.

    >>> fingerprint_of(UNetConfig(channels=64))["kind"]
    'unet'
    """
    for kind, settings in KINDS.items():
        if isinstance(model, settings):
            fields = dataclasses.asdict(model)
            if isinstance(model, UNetConfig) and model.context_width is None:  # as before there were transformers
                fields = {name: value for name, value in fields.items() if name not in FIELDS}
            return {"kind": kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}}
    if isinstance(model, Adapted):
        own = {name: getattr(model, name) for name in _ADAPTED}
        if model.down_seed is not None:  # descriptions without it are older than it, and their digests stay
            own["down_seed"] = model.down_seed
        return {"kind": "adapted", "base": fingerprint_of(model.base), **own}
    settings = re.sub(r" at 0x[0-9a-f]+", "", str(getattr(model, "described", "")))
    return {"kind": "own", "name": name_of(model), "settings": settings, "parameters": _parameters(model)}


_ADAPTED = ("rank", "alpha", "targets", "train_also", "stack", "digest")
"""Fields of `Adapted` beside the base that every description has."""


def _parameters(model: Denoiser) -> dict[str, list]:
    return {path: [list(shape), dtype] for path, (shape, dtype) in sorted(shapes_of(initial_shapes(model)).items())}


def model_from_dict(text: Mapping[str, Any], model: Denoiser | None = None) -> Denoiser:
    """Return the network that a description belongs to.

    Args:
        text: what `fingerprint_of` returned. A description without a kind is that of a U-Net.
        model: the network, which a network of your own requires. For a built-in network it may be given, and must equal
            the described one.

    Raises:
        ValueError: it is not a description; a network of your own is needed and not given; or the given one is not the
            described one. The message names the parameters or settings that differ.

    >>> model_from_dict({"channels": 64, "multipliers": [1, 2]}).multipliers
    (1, 2)
    """
    try:
        kind = text.get("kind", "unet")
        if kind == "adapted":
            return _adapted(text, model)
        if kind == "own":
            return _own(str(text["name"]), text["parameters"], text.get("settings"), model)
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in text.items() if k != "kind"}
        described = KINDS[kind](**fields)
    except (AttributeError, KeyError, TypeError) as error:
        kinds = ", ".join(map(repr, (*KINDS, "adapted", "own")))
        raise ValueError(f"not the description of a network: {error!r}; expected one of the kinds {kinds}") from error
    if model is not None and model != described:
        raise ValueError(f"the network given is not the one described, {_differs(described, model)}: leave it out")
    return described


def _adapted(text: Mapping[str, Any], model: Denoiser | None) -> Denoiser:
    """Return the adapted network of a description; ``model`` is the network itself, or its base."""
    given = model.base if isinstance(model, Adapted) else model
    fields = {name: text[name] for name in _ADAPTED} | {"down_seed": text.get("down_seed")}
    described = Adapted(base=model_from_dict(text["base"], given), **fields)
    if isinstance(model, Adapted) and dataclasses.replace(model, stack=described.stack) != described:
        raise ValueError(f"the network given is not the one described, {_differs(described, model)}: leave it out")
    return described


def _differs(described: Any, model: Any) -> str:
    if type(model) is not type(described):
        return f"which is a {type(described).__name__} and not {name_of(model)}"
    names = [field.name for field in dataclasses.fields(described)]
    pairs = {name: (getattr(described, name), getattr(model, name)) for name in names}
    return "which has " + ", ".join(f"{name}={a!r} and not {b!r}" for name, (a, b) in pairs.items() if a != b)


def _own(name: str, described: Mapping[str, Any], settings: Any, model: Denoiser | None) -> Denoiser:
    if model is None:
        raise ValueError(
            f"{name!r} is a network of your own, of which only a fingerprint is stored: pass the network, for "
            "example ensdiff.load(run, model=...)"
        )
    if not isinstance(described, Mapping):
        raise TypeError(f"parameters={described!r}")
    given = _parameters(model)
    differs = [
        f"{path} is {_shape(given[path])} and not {_shape(described[path])}"
        for path in described
        if path in given and given[path] != list(described[path])
    ]
    missing, extra = sorted(set(described) - set(given)), sorted(set(given) - set(described))
    faults = [f"it has no {path}" for path in missing] + [f"it has also {path}" for path in extra] + differs
    own = fingerprint_of(model)
    if not faults and own["name"] != name:
        faults = [f"it is called {own['name']!r}"]
    elif not faults and settings is not None and own["settings"] != settings:
        faults = [f"its settings are {own['settings']} and not {settings}"]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(
            f"{name_of(model)} is not the network that the parameters belong to, {name!r}: {'; '.join(faults[:5])}"
            f"{more}"
        )
    return model


def _shape(described: Any) -> str:
    shape, dtype = described
    return f"{dtype} of shape {tuple(shape)}"
