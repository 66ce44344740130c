"""Which class of diffusers a network belongs to, and the module that converts it: `unet2d` or `dit`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.interop import dit, unet2d
from ensdiff.interop.tensors import Naming
from ensdiff.models.denoiser import name_of
from ensdiff.models.dit import DiTConfig
from ensdiff.models.unet import UNetConfig

CLASSES = ("UNet2DModel", "DiTTransformer2DModel")
Network = UNetConfig | DiTConfig


def model_options(params: Ensemble) -> dict[str, Any]:
    """Return the content of a ``config.json`` from which diffusers builds the same network.

    Raises:
        ValueError: no class of diffusers can represent the network.
    """
    return part_of(params.model).model_options(params)


def read_config(config: Mapping[str, Any], source: str = "the config") -> Network:
    """Return the network of a ``config.json``; without ``_class_name``, that of a `UNet2DModel`.

    Raises:
        ValueError: the class, a field or a value is not supported. The message names it and the source.
    """
    name = config.get("_class_name", CLASSES[0])
    if name not in CLASSES:
        raise ValueError(f"{source}: _class_name={name!r} is not supported: expected {' or '.join(map(repr, CLASSES))}")
    return dit.dit_config(config, source) if name == CLASSES[1] else unet2d.unet_config(config, source)


def part_of(model: Any) -> Any:
    """Return the module that converts a network."""
    if isinstance(model, UNetConfig | DiTConfig):
        return dit if isinstance(model, DiTConfig) else unet2d
    raise ValueError(f"{name_of(model)} has no counterpart in diffusers: expected a UNetConfig or a DiTConfig")


def naming(model: Network) -> Naming:
    """Return the names of a network's tensors."""
    return dit.tensor_names if isinstance(model, DiTConfig) else unet2d.style(model)


def completed(model: Network, states: Sequence[Mapping[str, np.ndarray]], classes: int | None) -> Network:
    """Return a network with what its configuration does not say."""
    if isinstance(model, DiTConfig):
        shared = dit.shares_embedding(states, model.depth)
        model = dataclasses.replace(model, embedding="shared" if shared else "per_block")
    elif classes is not None and model.classes is not None and classes in (model.classes, model.classes - 1):
        return dataclasses.replace(model, classes=classes)
    if classes not in (None, model.classes):
        rows = "no table of classes" if model.classes is None else f"a table for {model.classes} classes"
        raise ValueError(f"classes={classes}: the network has {rows}")
    return model
