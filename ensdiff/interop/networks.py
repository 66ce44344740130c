"""Which class of diffusers a network belongs to, and the module that converts it.

`unet2d` converts `UNet2DModel`, `unet_condition` converts `UNet2DConditionModel`, and `dit` converts
`DiTTransformer2DModel`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.interop import dit, unet2d, unet_condition
from ensdiff.interop.tensors import Naming, names, unstack
from ensdiff.models.denoiser import initial_shapes, name_of
from ensdiff.models.dit import DiTConfig
from ensdiff.models.unet import UNetConfig

CLASSES = ("UNet2DModel", "DiTTransformer2DModel", "UNet2DConditionModel")
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
    if name == CLASSES[1]:
        return dit.dit_config(config, source)
    return (unet2d if name == CLASSES[0] else unet_condition).unet_config(config, source)


def part_of(model: Any) -> Any:
    """Return the module that converts a network."""
    if isinstance(model, DiTConfig):
        return dit
    if isinstance(model, UNetConfig):
        return unet2d if model.context_width is None else unet_condition
    raise ValueError(f"{name_of(model)} has no counterpart in diffusers: expected a UNetConfig or a DiTConfig")


def naming(model: Network) -> Naming:
    """Return the names of a network's tensors."""
    return dit.tensor_names if isinstance(model, DiTConfig) else part_of(model).style(model)


def names_of(model: Network) -> dict[str, str]:
    """Return the name of the torch module of each kernel of a network, by the kernel's path in a member's parameters.

    Files of low-rank adapters name modules this way.

    Raises:
        ValueError: no class of diffusers can represent the network.

    >>> names_of(UNetConfig(channels=4, multipliers=(1,), norm_groups=2))["down0_block0/conv1/kernel"]
    'down_blocks.0.resnets.0.conv1'
    """
    table = naming(model)
    params = initial_shapes(model)
    found = {"/".join(path): name.rpartition(".")[0] for name, path in names(table, params).items()}
    return {
        path: name for path, name in found.items() if path.endswith("/kernel") and not path.startswith("condition/")
    }


def state_dicts(params: Ensemble) -> Iterator[dict[str, np.ndarray]]:
    """Yield the parameters of every member under the names that diffusers' class gives them, float32."""
    part = part_of(params.model)
    return (part.outgoing(state, params.model) for state in unstack(params, naming(params.model)))


def with_context(model: Network, length: int) -> UNetConfig:
    """Return a network for another number of tokens, which its configuration does not say.

    Raises:
        ValueError: the network takes no tokens.
    """
    if not isinstance(model, UNetConfig) or model.context_width is None:
        raise ValueError(f"context_length={length}: the network takes no tokens")
    return dataclasses.replace(model, context_length=length)


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
