"""Transformers over the pixels of an image that attend to tokens, as in the U-Net of Stable Diffusion.

They are those of Rombach et al. 2022 (arXiv 2112.10752). With the pixels h of shape (B, H W, C) and the tokens c of
shape (B, L, D), such as the embedding of a caption, a block computes

(1) ``h <- h + attention(norm1(h), norm1(h))``
(2) ``h <- h + attention(norm2(h), c)``
(3) ``h <- h + mlp2(a * gelu(b))`` with ``a, b = mlp1(norm3(h))`` (GEGLU, arXiv 2002.05202).

A projection comes before the blocks and one after them, whose result is added to the image. The latter starts at 0, so
that the transformer starts as the identity.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ensdiff.models.attention import attend, resolve_attention
from ensdiff.models.blocks import Conv, Dense, GroupNorm, LayerNorm, Settings
from ensdiff.typing import Array

GROUP_EPSILON = 1e-6
"""Epsilon of the group normalisation before the first projection; other layers of the U-Net have their own."""
FIELDS = ("context_width", "context_length", "transformer_blocks", "heads", "linear_projection")
"""Fields of `ensdiff.models.unet.UNetConfig` that describe transformers."""


def check_transformers(config: Any, attended: list[int]) -> None:
    """Check the fields of a U-Net that describe transformers.

    Args:
        config: the settings of the U-Net.
        attended: the levels with attention.

    Raises:
        ValueError: a field is out of range, or would have no effect.
    """
    if config.context_width is None:
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if field.name in FIELDS and value != field.default:
                raise ValueError(f"{field.name}={value!r} is for a network with tokens: set context_width too")
        return
    if config.context_length < 1:
        raise ValueError(f"context_length={config.context_length}: expected a positive number of tokens")
    if not attended:
        raise ValueError(
            f"context_width={config.context_width}, but no level has attention, so nothing would attend to the tokens: "
            "set attention_levels or middle_attention"
        )
    levels = len(config.multipliers)
    for name in ("transformer_blocks", "heads"):
        values = getattr(config, name)
        if values is not None and (len(values) not in (1, levels) or min(values) < 1):
            raise ValueError(
                f"{name}={values}: expected one positive number for all levels, or one for each of the {levels} levels"
            )
    if config.heads is None:
        return
    if config.head_channels is not None:
        raise ValueError(f"heads={config.heads}, head_channels={config.head_channels}: expected one of them, or none")
    for level in attended:
        width, heads = config.widths[level], of_level(config.heads, level)
        if width % heads:
            raise ValueError(f"heads={config.heads}: {heads} heads do not divide the width {width} of level {level}")


def of_level(values: tuple[int, ...], level: int) -> int:
    """Return the number of a level; a single number is that of all levels.

    >>> of_level((5, 10), 1), of_level((8,), 1)
    (10, 8)
    """
    return values[level] if len(values) > 1 else values[0]


def heads_of(config: Any, level: int) -> int:
    """Return the number of attention heads of the transformers of a level."""
    if config.heads is not None:
        return of_level(config.heads, level)
    return config.widths[level] // (config.head_channels or config.widths[level])


class HeadedAttention(nn.Module):
    """Attention of ``h_BSC`` to ``c_BLD`` in several heads; queries, keys and values have no biases."""

    heads: int
    config: Settings

    @nn.compact
    def __call__(self, h_BSC: Array, c_BLD: Array) -> Array:
        config = self.config
        B, S, C = h_BSC.shape

        def split(x: Array, name: str) -> Array:
            x = Dense(C, config, use_bias=False, name=name)(x)
            return x.reshape(B, x.shape[1], self.heads, C // self.heads).swapaxes(1, 2)

        q, k, v = split(h_BSC, "query"), split(c_BLD, "key"), split(c_BLD, "value")
        mixed = attend(q, k, v, resolve_attention(config.attention), config.precision)
        return Dense(C, config, name="out")(mixed.swapaxes(1, 2).reshape(B, S, C))


class TransformerBlock(nn.Module):
    """A block, equations (1) to (3)."""

    heads: int
    config: Settings

    @nn.compact
    def __call__(self, h_BSC: Array, c_BLD: Array) -> Array:
        config, C = self.config, h_BSC.shape[-1]
        x = LayerNorm(config, name="norm1")(h_BSC)
        h_BSC = h_BSC + HeadedAttention(self.heads, config, name="self")(x, x)
        x = LayerNorm(config, name="norm2")(h_BSC)
        h_BSC = h_BSC + HeadedAttention(self.heads, config, name="cross")(x, c_BLD)
        x = LayerNorm(config, name="norm3")(h_BSC)
        values, gates = jnp.split(Dense(8 * C, config, name="mlp1")(x), 2, axis=-1)
        gates = nn.gelu(gates.astype(jnp.float32), approximate=False).astype(values.dtype)
        return h_BSC + Dense(C, config, name="mlp2")(values * gates)


class Transformer(nn.Module):
    """Blocks between two projections, which are dense layers (``linear``) or 1x1 convolutions, with a residual."""

    heads: int
    blocks: int
    linear: bool
    config: Settings

    @nn.compact
    def __call__(self, x_BHWC: Array, c_BLD: Array) -> Array:
        config = self.config
        B, H, W, C = x_BHWC.shape
        Projection: Any = Dense if self.linear else functools.partial(Conv, size=1)
        h = GroupNorm(config, epsilon=GROUP_EPSILON, name="norm")(x_BHWC)
        h = Projection(C, config, name="proj_in")(h).reshape(B, H * W, C)
        for i in range(self.blocks):
            h = TransformerBlock(self.heads, config, name=f"block{i}")(h, c_BLD)
        return x_BHWC + Projection(C, config, name="proj_out", zero_init=True)(h.reshape(B, H, W, C))
