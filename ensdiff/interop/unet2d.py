"""Conversion between diffusers' `UNet2DModel` and ensdiff's `UNetConfig`: its arguments, and names of its tensors.

`ensdiff.interop.unet_condition` shares what `UNet2DConditionModel` has in common with it.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.interop.options import UNET, check_options
from ensdiff.interop.tensors import Style
from ensdiff.models.space import PIXELS, Pixels
from ensdiff.models.unet import UNetConfig

DEFAULTS: dict[str, Any] = {
    "sample_size": None, "in_channels": 3, "out_channels": 3, "layers_per_block": 2,
    "block_out_channels": (224, 448, 672, 896), "attention_head_dim": 8, "norm_num_groups": 32, "norm_eps": 1e-5,
    "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1, "dropout": 0.0, "add_attention": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "class_embed_type": None, "num_class_embeds": None,
}  # fmt: skip
"""UNet2DModel's own defaults for honoured fields."""


def model_options(params: Ensemble) -> dict[str, Any]:
    """Return the content of a ``config.json`` from which `UNet2DModel` builds the same U-Net.

    Raises:
        ValueError: `UNet2DModel` cannot represent the U-Net.
    """
    model = params.model
    if model.condition_width not in (None, 4 * model.channels):
        raise ValueError(
            f"condition_width={model.condition_width} has no counterpart in UNet2DModel: expected "
            f"{4 * model.channels}, the width of its time embedding"
        )
    return {
        **common_options(params, "UNet2DModel", "Attn"),
        "attention_head_dim": model.head_channels,
        "add_attention": model.middle_attention,
        "class_embed_type": None if model.condition_width is None else "identity",
        "num_class_embeds": None if model.classes is None else model.classes + 1,
    }


def common_options(params: Ensemble, kind: str, attending: str) -> dict[str, Any]:
    """Return the arguments that `UNet2DModel` and `UNet2DConditionModel` have in common.

    Args:
        params: an ensemble of U-Nets.
        kind: the name of the class.
        attending: what the names of its blocks with attention start with.

    Raises:
        ValueError: the class cannot represent the U-Net.
    """
    model = params.model
    H, W, C = params.image_shape
    for name, allowed in (
        ("time_layout", ("sin_cos", "cos_sin")),
        ("downsample", ("conv", "conv_end")),
        ("upsample", ("conv",)),
    ):
        if getattr(model, name) not in allowed:
            given = getattr(model, name)
            raise ValueError(f"{name}={given!r} has no counterpart in {kind}: expected {' or '.join(allowed)}")
    if model.channels != model.widths[0]:
        raise ValueError(
            f"the first level has {model.widths[0]} channels and the first convolution {model.channels}: {kind} "
            "needs equal numbers (a first multiplier of 1)"
        )
    if isinstance(params.space, Pixels) and params.space != PIXELS:
        raise ValueError(f"{params.space}: diffusers' models work in [-1, 1]")
    levels = range(len(model.widths))
    up = model.attention_levels if model.attention_levels_up is None else model.attention_levels_up
    return {
        "_class_name": kind,
        "sample_size": H if H == W else [H, W],
        "in_channels": C,
        "out_channels": C,
        "layers_per_block": model.blocks,
        "block_out_channels": list(model.widths),
        "down_block_types": [f"{attending * (i in model.attention_levels)}DownBlock2D" for i in levels],
        "up_block_types": [f"{attending * (i in up)}UpBlock2D" for i in reversed(levels)],
        "norm_num_groups": model.norm_groups,
        "norm_eps": model.norm_epsilon,
        "flip_sin_to_cos": model.time_layout == "cos_sin",
        "freq_shift": model.time_shift,
        "downsample_padding": 1 if model.downsample == "conv" else 0,
        "dropout": model.dropout,
    }


def unet_config(config: Mapping[str, Any], source: str = "the config") -> UNetConfig:
    """Return the `UNetConfig` for `UNet2DModel`'s arguments.

    Raises:
        ValueError: a field is unknown, or ensdiff does not support its value. The message names it and the source.
    """
    check_options(config, UNET, source)
    check_lists(config, source)
    try:
        return _unet_config(config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def check_lists(config: Mapping[str, Any], source: str) -> None:
    """Raise ValueError unless the types and widths of blocks are lists."""
    for name in ("down_block_types", "up_block_types", "block_out_channels"):
        if not isinstance(config.get(name, ()), list | tuple):
            raise ValueError(f"{source}: {name}={config[name]!r}: expected a list, one entry per level")


def _unet_config(config: Mapping[str, Any]) -> UNetConfig:
    known = {**DEFAULTS, **{k: v for k, v in config.items() if k in DEFAULTS}}
    rows = known["num_class_embeds"]
    if rows is not None and (type(rows) is not int or rows < 1 or known["class_embed_type"] is not None):
        raise ValueError(
            f"num_class_embeds={rows!r}, class_embed_type={known['class_embed_type']!r}: expected a positive number of "
            "classes with class_embed_type=None, or None"
        )
    return UNetConfig(
        **common_fields(known, "Attn"),
        middle_attention=known["add_attention"],
        head_channels=known["attention_head_dim"],
        classes=rows,
        condition_width=4 * known["block_out_channels"][0] if known["class_embed_type"] == "identity" else None,
    )


def common_fields(known: Mapping[str, Any], attending: str) -> dict[str, Any]:
    """Return the fields of `UNetConfig` for the arguments that both classes have in common: see `common_options`.

    Raises:
        ValueError: ensdiff does not support a value. The message names it.
    """
    if known["in_channels"] != known["out_channels"]:
        raise ValueError(f"in_channels={known['in_channels']}, out_channels={known['out_channels']}: expected equal")
    down, up, widths = known["down_block_types"], known["up_block_types"], known["block_out_channels"]
    for name, values in (("norm_num_groups", [known["norm_num_groups"]]), ("block_out_channels", widths)):
        if not values or not all(type(value) is int and value > 0 for value in values):
            raise ValueError(f"{name}={known[name]!r} is not supported: expected positive integers")
    if not len(down) == len(up) == len(widths):
        raise ValueError(f"{len(down)} down blocks, {len(up)} up blocks, {len(widths)} widths: expected equal numbers")
    for kinds, name in ((down, "DownBlock2D"), (up, "UpBlock2D")):
        allowed = (name, attending + name)
        for kind in kinds:
            if kind not in allowed:
                raise ValueError(f"block {kind!r} is not supported: expected {' or '.join(allowed)}")
    attended = tuple(i for i, kind in enumerate(down) if kind.startswith(attending))
    attended_up = tuple(sorted(len(up) - 1 - i for i, kind in enumerate(up) if kind.startswith(attending)))
    return dict(
        image_channels=known["in_channels"],
        channels=widths[0],
        multipliers=tuple(width / widths[0] for width in widths),
        blocks=known["layers_per_block"],
        attention_levels=attended,
        attention_levels_up=None if attended_up == attended else attended_up,
        norm_groups=known["norm_num_groups"],
        norm_epsilon=known["norm_eps"],
        time_layout="cos_sin" if known["flip_sin_to_cos"] else "sin_cos",
        time_shift=known["freq_shift"],
        downsample="conv" if known["downsample_padding"] else "conv_end",
        dropout=known["dropout"],
    )


def height_and_width(size: Any) -> tuple[int, int]:
    """Return the height and width of a ``sample_size``.

    Raises:
        ValueError: the size is neither a positive integer nor two of them.
    """
    pair = size if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        raise ValueError(f"sample_size={size!r}: expected a positive integer, or height and width")
    return pair[0], pair[1]


CLASSES = "class_embedding"
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names in checkpoints that diffusers wrote before version 0.15."""


def rename_old(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a state dict with the names of today's versions."""
    old = re.compile(rf"(attentions\.[^.]*\.)({'|'.join(OLD_ATTENTION)})\.")
    return {old.sub(lambda m: f"{m[1]}{OLD_ATTENTION[m[2]]}.", name): value for name, value in state.items()}


def incoming(state: Mapping[str, np.ndarray], model: UNetConfig, source: str) -> dict[str, np.ndarray]:
    """Return a state dict of `UNet2DModel` with one tensor per parameter.

    A table of ``model.classes`` rows gets a row of zeros, for no class. A vector that is added as it is passes a dense
    layer here, whose weights are the identity.
    """
    new = rename_old(state)
    table = new.get(f"{CLASSES}.weight")
    if model.condition_width is not None and table is None:
        new[f"{CLASSES}.weight"] = np.eye(model.condition_width, dtype=np.float32)
        new[f"{CLASSES}.bias"] = np.zeros(model.condition_width, np.float32)
    elif model.classes is not None and table is not None and table.ndim == 2 and len(table) == model.classes:
        new[f"{CLASSES}.weight"] = np.concatenate([table, np.zeros_like(table[:1])])
    return new


def outgoing(state: Mapping[str, np.ndarray], model: UNetConfig) -> dict[str, np.ndarray]:
    """Return the state dict of `UNet2DModel`: the inverse of `incoming`, with the row for no class.

    Raises:
        ValueError: the dense layer of vectors is not the identity.
    """
    new = dict(state)
    if model.condition_width is not None:
        weight, bias = new.pop(f"{CLASSES}.weight"), new.pop(f"{CLASSES}.bias")
        if not np.array_equal(weight, np.eye(len(weight))) or bias.any():
            raise ValueError("the dense layer of the condition is not the identity, and UNet2DModel has no such layer")
    return new


def style(config: UNetConfig) -> Style:
    """Return `UNet2DModel`'s names of the parts of a U-Net."""
    last = len(config.multipliers) - 1

    def place(kind: str, level: int) -> str:
        return {"down": f"down_blocks.{level}", "middle": "mid_block", "up": f"up_blocks.{last - level}"}[kind]

    return Style(
        head="conv_in",
        time=("time_embedding.linear_1", "time_embedding.linear_2"),
        tail=("conv_norm_out", "conv_out"),
        block=lambda kind, level, index: f"{place(kind, level)}.resnets.{index}",
        sample=lambda kind, level: f"{place(kind, level)}.{kind}samplers.0.conv",
        attention=lambda kind, level, index: f"{place(kind, level)}.attentions.{index}",
        in_block={
            "norm1": "norm1",
            "conv1": "conv1",
            "time": "time_emb_proj",
            "norm2": "norm2",
            "conv2": "conv2",
            "skip": "conv_shortcut",
        },
        in_attention={"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"},
        condition=CLASSES,
    )
