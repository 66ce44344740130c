"""Conversion between diffusers' `UNet2DConditionModel`, the U-Net of Stable Diffusion, and `UNetConfig` with tokens.

Its ``attention_head_dim`` is the number of heads, not their width. See `UNet2DConditionModel`'s source about this name.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.interop import unet2d
from ensdiff.interop.options import CONDITION_UNET, check_options
from ensdiff.interop.tensors import Style
from ensdiff.models.transformer import heads_of, of_level
from ensdiff.models.unet import UNetConfig

DEFAULTS: dict[str, Any] = {
    "sample_size": None, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "norm_num_groups": 32, "norm_eps": 1e-5,
    "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1, "dropout": 0.0, "cross_attention_dim": 1280,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "transformer_layers_per_block": 1, "use_linear_projection": False,
}  # fmt: skip
"""UNet2DConditionModel's own defaults for honoured fields."""
IN_BLOCK = {
    "norm1": "norm1", "self/query": "attn1.to_q", "self/key": "attn1.to_k", "self/value": "attn1.to_v",
    "self/out": "attn1.to_out.0", "norm2": "norm2", "cross/query": "attn2.to_q", "cross/key": "attn2.to_k",
    "cross/value": "attn2.to_v", "cross/out": "attn2.to_out.0", "norm3": "norm3", "mlp1": "ff.net.0.proj",
    "mlp2": "ff.net.2",
}  # fmt: skip
"""Names of the layers of a transformer's block."""


def model_options(params: Ensemble) -> dict[str, Any]:
    """Return the content of a ``config.json`` from which `UNet2DConditionModel` builds the same U-Net.

    Raises:
        ValueError: `UNet2DConditionModel` cannot represent the U-Net.
    """
    model = params.model
    common = unet2d.common_options(params, "UNet2DConditionModel", "CrossAttn")
    if not model.middle_attention:
        raise ValueError("middle_attention=False has no counterpart in UNet2DConditionModel: expected True")
    levels = range(len(model.widths))
    return {
        **common,
        "attention_head_dim": _one_or_list([max(1, heads_of(model, level)) for level in levels]),
        "transformer_layers_per_block": _one_or_list([of_level(model.transformer_blocks, level) for level in levels]),
        "cross_attention_dim": model.context_width,
        "use_linear_projection": model.linear_projection,
    }


def unet_config(config: Mapping[str, Any], source: str = "the config") -> UNetConfig:
    """Return the `UNetConfig` for `UNet2DConditionModel`'s arguments, for 77 tokens.

    Raises:
        ValueError: a field is unknown, or ensdiff does not support its value. The message names it and the source.
    """
    check_options(config, CONDITION_UNET, source)
    unet2d.check_lists(config, source)
    known = {**DEFAULTS, **{k: v for k, v in config.items() if k in DEFAULTS}}
    try:
        levels = len(known["block_out_channels"])
        width, blocks = (_of_all(known, name, levels) for name in ("cross_attention_dim", "layers_per_block"))
        return UNetConfig(
            **unet2d.common_fields({**known, "layers_per_block": blocks}, "CrossAttn"),
            context_width=width,
            transformer_blocks=_of_levels(known, "transformer_layers_per_block", levels),
            heads=_of_levels(known, "attention_head_dim", levels),
            linear_projection=known["use_linear_projection"],
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _one_or_list(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values


def _of_levels(known: Mapping[str, Any], name: str, levels: int) -> tuple[int, ...]:
    """Return a single number for all levels, or one per level if they differ."""
    value = known[name]
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if len(values) not in (1, levels) or not all(type(one) is int and one > 0 for one in values):
        raise ValueError(f"{name}={value!r} is not supported: expected a positive integer, or one for each level")
    if len(values) == 1 and isinstance(value, list | tuple) and levels > 1:
        raise ValueError(f"{name}={value!r} is not supported: expected {levels} numbers, one for each level")
    return values if len(set(values)) > 1 else values[:1]


def _of_all(known: Mapping[str, Any], name: str, levels: int) -> int:
    """Return the number that all levels share."""
    values = _of_levels(known, name, levels)
    if len(values) > 1:
        raise ValueError(f"{name}={known[name]!r} is not supported: expected the same number for all levels")
    return values[0]


def incoming(state: Mapping[str, np.ndarray], model: UNetConfig, source: str) -> dict[str, np.ndarray]:
    """Return a state dict of `UNet2DConditionModel` with one tensor per parameter."""
    return dict(state)


def outgoing(state: Mapping[str, np.ndarray], model: UNetConfig) -> dict[str, np.ndarray]:
    """Return the state dict of `UNet2DConditionModel`: the inverse of `incoming`."""
    return dict(state)


def style(config: UNetConfig) -> Style:
    """Return `UNet2DConditionModel`'s names of the parts of a U-Net."""
    inside = {name: name for name in ("norm", "proj_in", "proj_out")}
    for i in range(max(config.transformer_blocks)):
        inside |= {f"block{i}/{part}": f"transformer_blocks.{i}.{name}" for part, name in IN_BLOCK.items()}
    return unet2d.style(config)._replace(in_attention=inside)
