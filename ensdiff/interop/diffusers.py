"""Ensembles of `diffusers.UNet2DModel`, as counterfactualuniverses keeps them: ``Shard{k}/pytorch_model.bin``.

Its 50-step sampler is `SAMPLER` here, given a (51, B, H, W, C) noise array: the posterior variance on a strided chain,
nothing clipped.
"""

import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from ensdiff.codes import Code
from ensdiff.ensemble import Ensemble
from ensdiff.interop.tensors import Style, read_state_dict, stack
from ensdiff.schedule import SamplerConfig
from ensdiff.unet import UNetConfig

SAMPLER = SamplerConfig("ddpm", steps=50, clip=False)
FILES = ("pytorch_model.bin", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors", "model.safetensors")

DEFAULTS: dict[str, Any] = {
    "sample_size": None, "in_channels": 3, "out_channels": 3, "layers_per_block": 2,
    "block_out_channels": (224, 448, 672, 896), "attention_head_dim": 8, "norm_num_groups": 32, "norm_eps": 1e-5,
    "flip_sin_to_cos": True, "dropout": 0.0, "add_attention": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
"""UNet2DModel's own defaults for what can be chosen here."""

FIXED: dict[str, tuple] = {
    "freq_shift": (0,), "time_embedding_type": ("positional",), "act_fn": ("silu", "swish"), "downsample_padding": (1,),
    "downsample_type": ("conv",), "upsample_type": ("conv",), "mid_block_scale_factor": (1, 1.0),
    "resnet_time_scale_shift": ("default",), "center_input_sample": (False,), "class_embed_type": (None,),
    "num_class_embeds": (None,), "attn_norm_num_groups": (None,), "mid_block_type": ("UNetMidBlock2D",),
}  # fmt: skip
"""What must be as it is by default."""


def load(
    directory: str | os.PathLike,
    code: Code | np.ndarray | None = None,
    *,
    config: dict[str, Any] | None = None,
    image_size: int | None = None,
) -> Ensemble:
    """Open an ensemble of `UNet2DModel` checkpoints.

    Args:
        directory: holds ``Shard0``, ``Shard1``, ... with one checkpoint each, and ``config.json`` (there or in the
            shards).
        code: the code, or its (N, K) matrix, 1 = trained on; without it unit k stands for member k's own data.
        config: `UNet2DModel`'s arguments, where there is no ``config.json``.
        image_size: height and width, where the config has no ``sample_size``.

    Raises:
        FileNotFoundError, ImportError, ValueError: see `ensdiff.interop.tensors`; an option of `UNet2DModel` that
            ensdiff does not have is named.
    """
    root = pathlib.Path(directory)
    shards = {int(m[1]): p for p in root.glob("Shard*") if (m := re.fullmatch(r"Shard(\d+)", p.name))}
    if not shards or sorted(shards) != list(range(len(shards))):
        raise FileNotFoundError(f"{root} holds shards {sorted(shards)}: expected folders Shard0, Shard1, ...")
    files = [_checkpoint(shards[k]) for k in sorted(shards)]
    if config is None:
        places = [root / "config.json", shards[0] / "config.json"]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise FileNotFoundError(f"no config.json in {root} or its shards: give config=, UNet2DModel's arguments")
        config = json.loads(found.read_text())
    size = image_size if image_size is not None else config.get("sample_size")
    if size is None:
        raise ValueError("the config has no sample_size: give image_size=")
    height, width = (size, size) if isinstance(size, int) else size
    unet = unet_config(config)
    states = [read_state_dict(file) for file in files]
    shape = (height, width, unet.image_channels)
    return stack(states, [str(f) for f in files], unet, _style(unet), shape, code)


def _checkpoint(shard: pathlib.Path) -> pathlib.Path:
    found = next((shard / name for name in FILES if (shard / name).exists()), None)
    if found is None:
        raise FileNotFoundError(f"{shard} holds none of {', '.join(FILES)}")
    return found


def unet_config(config: dict[str, Any]) -> UNetConfig:
    """`UNetConfig` of `UNet2DModel`'s arguments.

    Raises:
        ValueError: an option, or a kind of block, that ensdiff does not have.
    """
    for name, allowed in FIXED.items():
        if name in config and config[name] not in allowed:
            raise ValueError(f"{name}={config[name]!r} is not supported: expected {allowed[0]!r}")
    known = {**DEFAULTS, **{k: v for k, v in config.items() if k in DEFAULTS}}
    if known["in_channels"] != known["out_channels"]:
        raise ValueError(f"in_channels={known['in_channels']}, out_channels={known['out_channels']}: expected equal")
    down, up, widths = known["down_block_types"], known["up_block_types"], known["block_out_channels"]
    if not len(down) == len(up) == len(widths):
        raise ValueError(f"{len(down)} down blocks, {len(up)} up blocks, {len(widths)} widths: expected equal numbers")
    for kinds, allowed in ((down, ("DownBlock2D", "AttnDownBlock2D")), (up, ("UpBlock2D", "AttnUpBlock2D"))):
        for kind in kinds:
            if kind not in allowed:
                raise ValueError(f"block {kind!r} is not supported: expected {' or '.join(allowed)}")
    return UNetConfig(
        image_channels=known["in_channels"],
        channels=widths[0],
        multipliers=tuple(width / widths[0] for width in widths),
        blocks=known["layers_per_block"],
        attention_levels=tuple(i for i, kind in enumerate(down) if kind.startswith("Attn")),
        attention_levels_up=tuple(sorted(len(up) - 1 - i for i, kind in enumerate(up) if kind.startswith("Attn"))),
        middle_attention=known["add_attention"],
        head_channels=known["attention_head_dim"],
        norm_groups=known["norm_num_groups"],
        norm_epsilon=known["norm_eps"],
        time_layout="cos_sin" if known["flip_sin_to_cos"] else "sin_cos",
        dropout=known["dropout"],
    )


def _style(config: UNetConfig) -> Style:
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
    )
