"""Conversion between diffusers' `DiTTransformer2DModel` and `DiTConfig`: its arguments, and names of its tensors.

There, every block has its own embedding of time and class. Models converted from the original code hold the same in all
blocks; these become one shared embedding here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.interop.options import DIT, check_options
from ensdiff.models.dit import DiTConfig
from ensdiff.models.space import PIXELS, Pixels

DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": None, "num_layers": 28,
    "patch_size": 2, "num_embeds_ada_norm": 1000, "norm_eps": 1e-5,
}  # fmt: skip
"""DiTTransformer2DModel's own defaults for honoured fields."""

OUTSIDE = {"patches": "pos_embed.proj", "tail_modulation": "proj_out_1", "tail": "proj_out_2"}
IN_BLOCK = {
    "modulation": "norm1.linear", "query": "attn1.to_q", "key": "attn1.to_k", "value": "attn1.to_v",
    "out": "attn1.to_out.0", "mlp1": "ff.net.0.proj", "mlp2": "ff.net.2",
}  # fmt: skip
IN_EMBEDDING = {
    "time1": "timestep_embedder.linear_1", "time2": "timestep_embedder.linear_2",
    "condition": "class_embedder.embedding_table",
}  # fmt: skip


def model_options(params: Ensemble) -> dict[str, Any]:
    """Return the content of a ``config.json`` from which `DiTTransformer2DModel` builds the same network.

    Raises:
        ValueError: `DiTTransformer2DModel` cannot represent the network.
    """
    model = params.model
    H, W, C = params.image_shape
    if model.classes is None:
        raise ValueError("a DiT without classes has no counterpart in DiTTransformer2DModel: expected classes=")
    if model.mlp_width != 4 * model.width:
        raise ValueError(f"mlp_ratio={model.mlp_ratio} has no counterpart in DiTTransformer2DModel: expected 4")
    if H != W:
        raise ValueError(f"images of {H}x{W}: DiTTransformer2DModel takes square images only")
    if isinstance(params.space, Pixels) and params.space != PIXELS:
        raise ValueError(f"{params.space}: diffusers' models work in [-1, 1]")
    return {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "in_channels": C,
        "out_channels": C,
        "num_layers": model.depth,
        "sample_size": H,
        "patch_size": model.patch,
        "num_embeds_ada_norm": model.classes,
        "norm_eps": model.mlp_norm_epsilon,
    }


def dit_config(config: Mapping[str, Any], source: str = "the config") -> DiTConfig:
    """Return the `DiTConfig` for `DiTTransformer2DModel`'s arguments, with a shared embedding.

    Raises:
        ValueError: a field is unknown, or ensdiff does not support its value. The message names it and the source.
    """
    check_options(config, DIT, source)
    known = {**DEFAULTS, **{k: v for k, v in config.items() if k in DEFAULTS}}
    if known["out_channels"] not in (None, known["in_channels"]):
        raise ValueError(
            f"{source}: in_channels={known['in_channels']}, out_channels={known['out_channels']}: expected equal "
            "numbers. A network that also predicts a variance (twice as many) is not supported"
        )
    sizes = ("num_attention_heads", "attention_head_dim", "num_embeds_ada_norm")
    for name in sizes:
        if type(known[name]) is not int or known[name] < 1:
            raise ValueError(f"{source}: {name}={known[name]!r} is not supported: expected a positive integer")
    try:
        return DiTConfig(
            image_channels=known["in_channels"],
            patch=known["patch_size"],
            width=known["num_attention_heads"] * known["attention_head_dim"],
            depth=known["num_layers"],
            heads=known["num_attention_heads"],
            mlp_norm_epsilon=known["norm_eps"],
            classes=known["num_embeds_ada_norm"],
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def tensor_names(params: Any) -> dict[str, tuple[str, ...]]:
    """Return `DiTTransformer2DModel`'s tensor name of every parameter, mapped to its path."""
    return {f"{_module(path)}.{'bias' if path[-1] == 'bias' else 'weight'}": path for path in flatten_dict(params)}


def _module(path: tuple[str, ...]) -> str:
    first, part = path[0], path[1]
    if first in OUTSIDE:
        return OUTSIDE[first]
    kind = first.rstrip("0123456789")
    block = f"transformer_blocks.{first[len(kind) :] or 0}"
    return f"{block}.norm1.emb.{IN_EMBEDDING[part]}" if kind == "embedding" else f"{block}.{IN_BLOCK[part]}"


def shares_embedding(states: Sequence[Mapping[str, np.ndarray]], depth: int) -> bool:
    """Return whether all blocks of each member hold the same embedding of time and class."""
    return all(
        np.array_equal(value, state.get(_of_block(name, i), value))
        for state in states
        for name, value in state.items()
        if ".0.norm1.emb." in name
        for i in range(1, depth)
    )


def _of_block(name: str, block: int) -> str:
    return name.replace("transformer_blocks.0.", f"transformer_blocks.{block}.", 1)


def incoming(state: Mapping[str, np.ndarray], model: DiTConfig, source: str) -> dict[str, np.ndarray]:
    """Return a state dict of `DiTTransformer2DModel` with one tensor per parameter, and patches as a dense layer.

    Raises:
        ValueError: a shared embedding is expected, and blocks hold different ones.
    """
    new = dict(state)
    name = f"{OUTSIDE['patches']}.weight"
    if name in new and new[name].ndim == 4:  # (D, C, P, P)
        new[name] = new[name].transpose(0, 2, 3, 1).reshape(len(new[name]), -1)
    if model.embedding == "shared":
        if not shares_embedding([new], model.depth):
            raise ValueError(f"{source}: blocks hold different embeddings of time and class: expected the same")
        new = {name: value for name, value in new.items() if ".norm1.emb." not in name or ".0.norm1." in name}
    return new


def outgoing(state: Mapping[str, np.ndarray], model: DiTConfig) -> dict[str, np.ndarray]:
    """Return the state dict of `DiTTransformer2DModel`: the inverse of `incoming`."""
    new = dict(state)
    name = f"{OUTSIDE['patches']}.weight"
    shape = (len(new[name]), model.patch, model.patch, model.image_channels)
    new[name] = np.ascontiguousarray(new[name].reshape(shape).transpose(0, 3, 1, 2))
    if model.embedding == "shared":
        shared = {name: value for name, value in new.items() if ".norm1.emb." in name}
        for i in range(1, model.depth):
            new |= {_of_block(name, i): value.copy() for name, value in shared.items()}
    return new
