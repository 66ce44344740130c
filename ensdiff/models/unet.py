"""The noise predictor of one member: the U-Net of Ho et al. 2020 (arXiv 2006.11239), channels last, in linen.

Its options cover both reference implementations (GenEns and `diffusers.UNet2DModel`). Nothing here knows about the
ensemble: `ensdiff.ensemble.members` stacks members. Parameters are float32. Layers compute in ``compute_dtype``, but
normalisation statistics, attention weights, and the gradients of biases and normalisation are always float32.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ensdiff.models.attention import attend, resolve_attention
from ensdiff.models.config import TimeLayout, UNetConfig
from ensdiff.models.conv import conv2d, lax_precision, upsampled_conv2d
from ensdiff.typing import Array, ArrayLike


def timestep_embedding(
    t_B: Int[ArrayLike, " B"], width: int, layout: TimeLayout, shift: int = 0
) -> Float[Array, "B D"]:
    """Return sinusoids of the noise level, with frequencies ``10000^(-i / (width/2 - shift))``, i = 0 .. width/2 - 1.

    >>> timestep_embedding(jnp.array([0]), 4, "cos_sin").tolist()
    [[1.0, 1.0, 0.0, 0.0]]
    """
    half = width // 2
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / max(half - shift, 1)).astype(np.float32)
    angle_BD = t_B.astype(jnp.float32)[:, None] * frequencies[None]
    sin, cos = jnp.sin(angle_BD), jnp.cos(angle_BD)
    if layout == "interleaved":
        return jnp.stack([sin, cos], axis=-1).reshape(len(t_B), width)
    return jnp.concatenate([sin, cos] if layout == "sin_cos" else [cos, sin], axis=-1)


class Conv(nn.Module):
    """A biased convolution with parameters ``kernel`` (h, w, C, D) and ``bias`` (D,).

    With ``upsampled``, each pixel is first repeated to 2x2.
    """

    features: int
    config: UNetConfig
    size: int = 3
    stride: int = 1
    zero_init: bool = False
    end_padded: bool = False
    upsampled: bool = False

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (self.size, self.size, x_BHWC.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        dtype = self.config.dtype
        how: Any = {"strategy": self.config.conv, "precision": self.config.precision}
        if self.upsampled:
            return add(upsampled_conv2d(x_BHWC.astype(dtype), kernel.astype(dtype), **how), bias)
        padding = self.size // 2
        if self.end_padded:
            x_BHWC, padding = jnp.pad(x_BHWC, ((0, 0), (0, padding), (0, padding), (0, 0))), 0
        return add(conv2d(x_BHWC.astype(dtype), kernel.astype(dtype), stride=self.stride, padding=padding, **how), bias)


class Dense(nn.Module):
    """A biased linear layer with parameters ``kernel`` (C, D) and ``bias`` (D,), over the last axis of the input."""

    features: int
    config: UNetConfig
    zero_init: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        dtype = self.config.dtype
        precision: Any = lax_precision(self.config.precision)
        contracted = (((x.ndim - 1,), (0,)), ((), ()))
        return add(jax.lax.dot_general(x.astype(dtype), kernel.astype(dtype), contracted, precision), bias)


def add(y: Array, few: Array) -> Array:
    """Return ``y`` plus ``few``, broadcast to the shape of ``y`` and rounded to its dtype.

    It is repeated in float32, so that its gradient, the sum over the repetitions, is float32.
    """
    return y + jnp.broadcast_to(few.astype(jnp.float32), y.shape).astype(y.dtype)


class GroupNorm(nn.Module):
    """Group normalisation as one affine pass: moments in float32, then ``x * scale_BC + shift_BC``."""

    config: UNetConfig

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        B, _H, _W, C = x_BHWC.shape
        G = self.config.norm_groups
        scale_C = self.param("scale", nn.initializers.ones, (C,))
        bias_C = self.param("bias", nn.initializers.zeros, (C,))
        x32 = x_BHWC.astype(jnp.float32)
        mean_BC = x32.mean((1, 2))
        mean_BG = mean_BC.reshape(B, G, C // G).mean(-1)
        centre_BC = jnp.repeat(mean_BG, C // G, axis=-1)
        square_BC = jnp.square(x32 - centre_BC[:, None, None]).mean((1, 2))
        variance_BG = square_BC.reshape(B, G, C // G).mean(-1)
        inverse_BC = jnp.repeat(jax.lax.rsqrt(variance_BG + self.config.norm_epsilon), C // G, axis=-1)
        gain_BC = inverse_BC * scale_C[None]
        shift_BC = bias_C[None] - centre_BC * gain_BC
        return (x32 * gain_BC[:, None, None] + shift_BC[:, None, None]).astype(self.config.dtype)


class ResBlock(nn.Module):
    """A residual block: norm, swish, conv; add the time embedding; norm, swish, dropout, conv; add the input.

    If the widths differ, the input passes through a 1x1 convolution.
    """

    features: int
    config: UNetConfig
    index: int

    @nn.compact
    def __call__(self, x_BHWC: Array, time_BD: Array, dropout_keys_B: Array | None) -> Array:
        config = self.config
        h = nn.swish(GroupNorm(config, name="norm1")(x_BHWC))
        h = Conv(self.features, config, name="conv1")(h)
        time = Dense(self.features, config, name="time")(nn.swish(time_BD))
        h = nn.swish(GroupNorm(config, name="norm2")(add(h, time[:, None, None])))
        if dropout_keys_B is not None and config.dropout:
            keep = 1.0 - config.dropout
            mask = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, self.index), keep, h.shape[1:]))(
                dropout_keys_B
            )
            h = jnp.where(mask, h / keep, 0).astype(h.dtype)
        h = Conv(self.features, config, name="conv2", zero_init=True)(h)
        if x_BHWC.shape[-1] != self.features:
            x_BHWC = Conv(self.features, config, size=1, name="skip")(x_BHWC)
        return x_BHWC + h


class Attention(nn.Module):
    """Self-attention over the pixels with scale ``head_channels ** -0.5`` and a residual connection."""

    config: UNetConfig

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        config = self.config
        B, H, W, C = x_BHWC.shape
        D = config.head_channels or C
        h = GroupNorm(config, name="norm")(x_BHWC).reshape(B, H * W, C)
        q, k, v = (
            Dense(C, config, name=name)(h).reshape(B, H * W, C // D, D).swapaxes(1, 2)
            for name in ("query", "key", "value")
        )
        h = attend(q, k, v, resolve_attention(config.attention), config.precision)
        h = Dense(C, config, name="out", zero_init=True)(h.swapaxes(1, 2).reshape(B, H, W, C))
        return x_BHWC + h


class UNet(nn.Module):
    """The noise predictor of one member, for a batch of noisy images.

    ``__call__(x_BHWC, t_B, dropout_keys_B=None)`` takes images in model space ([-1, 1] plus noise), integer noise
    levels and, when training with dropout, one key per image (so that the draws do not depend on how the batch is
    sharded). It returns the predicted noise, float32, in the shape of the images.

    >>> net = UNet(UNetConfig(channels=4, multipliers=(1,), norm_groups=2))
    >>> x_BHWC, t_B = jnp.zeros((2, 8, 8, 1)), jnp.array([0, 999])
    >>> variables = jax.jit(net.init)(jax.random.key(0), x_BHWC, t_B)
    >>> jax.jit(net.apply)(variables, x_BHWC, t_B).shape
    (2, 8, 8, 1)
    """

    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        x_BHWC: Float[ArrayLike, "B H W C"],
        t_B: Int[ArrayLike, " B"],
        dropout_keys_B: Array | None = None,
    ) -> Float[Array, "B H W C"]:
        config = self.config
        levels = len(config.widths)
        up_levels = config.attention_levels if config.attention_levels_up is None else config.attention_levels_up
        Block = nn.remat(ResBlock) if config.remat else ResBlock
        count = 0

        def block(h: Array, width: int, name: str, attend: bool) -> Array:
            nonlocal count
            h = Block(width, config, index=count, name=name)(h, time_BD, dropout_keys_B)
            count += 1
            return Attention(config, name=f"{name}_attention")(h) if attend else h

        time_BD = timestep_embedding(t_B, config.channels, config.time_layout, config.time_shift).astype(config.dtype)
        time_BD = Dense(4 * config.channels, config, name="time1")(time_BD)
        time_BD = Dense(4 * config.channels, config, name="time2")(nn.swish(time_BD))

        h = Conv(config.channels, config, name="head")(jnp.asarray(x_BHWC))
        skips = [h]
        for level, width in enumerate(config.widths):
            for i in range(config.blocks):
                h = block(h, width, f"down{level}_block{i}", level in config.attention_levels)
                skips.append(h)
            if level < levels - 1:
                h = self._down(h, width, level)
                skips.append(h)

        h = block(h, config.widths[-1], "middle_block0", config.middle_attention)
        h = block(h, config.widths[-1], "middle_block1", False)

        for level, width in reversed(list(enumerate(config.widths))):
            for i in range(config.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, width, f"up{level}_block{i}", level in up_levels)
            if level > 0:
                h = self._up(h, width, level)

        h = nn.swish(GroupNorm(config, name="tail_norm")(h))
        return Conv(config.image_channels, config, name="tail", zero_init=True)(h).astype(jnp.float32)

    def _down(self, h: Array, width: int, level: int) -> Array:
        if self.config.downsample == "pool":
            with jax.numpy_dtype_promotion("standard"):  # flax divides by an integer
                return nn.avg_pool(h, (2, 2), (2, 2))
        end = self.config.downsample == "conv_end"
        return Conv(width, self.config, stride=2, end_padded=end, name=f"down{level}_sample")(h)

    def _up(self, h: Array, width: int, level: int) -> Array:
        if self.config.upsample == "conv":
            return Conv(width, self.config, upsampled=True, name=f"up{level}_sample")(h)
        B, H, W, C = h.shape
        return jnp.broadcast_to(h[:, :, None, :, None], (B, H, 2, W, 2, C)).reshape(B, 2 * H, 2 * W, C)
