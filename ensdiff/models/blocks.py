"""The layers of which networks are built: each for one member, with float32 parameters, computing in ``compute_dtype``.

Normalisation statistics, attention weights, and the gradients of biases and normalisation are always float32. Nothing
here knows about the ensemble: `ensdiff.ensemble.members` stacks members.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from ensdiff.models.attention import AttentionOrder, attend, resolve_attention
from ensdiff.models.conv import Precision, Strategy, conv2d, lax_precision, upsampled_conv2d
from ensdiff.typing import Array, ArrayLike

TimeLayout = Literal["sin_cos", "cos_sin", "interleaved"]


class ProductSettings(Protocol):
    """What dense layers read of a network's settings; `ensdiff.models.unet.UNetConfig` documents each field."""

    @property
    def dtype(self) -> jnp.dtype: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def classes(self) -> int | None: ...


class Settings(ProductSettings, Protocol):
    """What all layers read of a network's settings."""

    @property
    def conv(self) -> Strategy: ...
    @property
    def attention(self) -> AttentionOrder: ...
    @property
    def head_channels(self) -> int | None: ...
    @property
    def norm_groups(self) -> int: ...
    @property
    def norm_epsilon(self) -> float: ...
    @property
    def dropout(self) -> float: ...


def timestep_embedding(
    t_B: Num[ArrayLike, " B"], width: int, layout: TimeLayout, shift: int = 0
) -> Float[Array, "B D"]:
    """Return sinusoids of the time, with frequencies ``10000^(-i / (width/2 - shift))``, i = 0 .. width/2 - 1.

    Args:
        t_B: times: float32, or whole numbers of any dtype, which give the same bits as the same floats.
        width: D, an even number.
        layout: their order: ``"sin_cos"`` and ``"cos_sin"`` are blocks, ``"interleaved"`` alternates sine and cosine.
        shift: 0, or 1 as in DDPM's code.

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
    config: Settings
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
        return add(self.product(x_BHWC, kernel), bias)

    def product(self, x_BHWC: Array, kernel: Array, strategy: Strategy | None = None) -> Array:
        """Convolve as this layer does, but with any kernel of its size, without the bias."""
        dtype = self.config.dtype
        how: Any = {"strategy": strategy or self.config.conv, "precision": self.config.precision}
        if self.upsampled:
            return upsampled_conv2d(x_BHWC.astype(dtype), kernel.astype(dtype), **how)
        padding = self.size // 2
        if self.end_padded:
            x_BHWC, padding = jnp.pad(x_BHWC, ((0, 0), (0, padding), (0, padding), (0, 0))), 0
        return conv2d(x_BHWC.astype(dtype), kernel.astype(dtype), stride=self.stride, padding=padding, **how)


class Dense(nn.Module):
    """A linear layer over the last axis of the input, with parameters ``kernel`` (C, D) and ``bias`` (D,), if any."""

    features: int
    config: ProductSettings
    zero_init: bool = False
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.zeros if self.zero_init else self.kernel_init
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        y = self.product(x, kernel)
        return add(y, self.param("bias", nn.initializers.zeros, (self.features,))) if self.use_bias else y

    def product(self, x: Array, kernel: Array) -> Array:
        """Multiply as this layer does, but with any kernel over its inputs, without the bias."""
        dtype = self.config.dtype
        precision: Any = lax_precision(self.config.precision)
        contracted = (((x.ndim - 1,), (0,)), ((), ()))
        return jax.lax.dot_general(x.astype(dtype), kernel.astype(dtype), contracted, precision)


def add(y: Array, few: Array) -> Array:
    """Return ``y`` plus ``few``, broadcast to the shape of ``y`` and rounded to its dtype.

    It is repeated in float32, so that its gradient, the sum over the repetitions, is float32.
    """
    return y + jnp.broadcast_to(few.astype(jnp.float32), y.shape).astype(y.dtype)


class GroupNorm(nn.Module):
    """Group normalisation as one affine pass: moments in float32, then ``x * scale_BC + shift_BC``.

    ``epsilon`` is by default ``config.norm_epsilon``.
    """

    config: Settings
    epsilon: float | None = None

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        B, _H, _W, C = x_BHWC.shape
        G = self.config.norm_groups
        scale_C = self.param("scale", nn.initializers.ones, (C,)).astype(jnp.float32)
        bias_C = self.param("bias", nn.initializers.zeros, (C,)).astype(jnp.float32)
        epsilon = self.config.norm_epsilon if self.epsilon is None else self.epsilon
        x32 = x_BHWC.astype(jnp.float32)
        mean_BC = x32.mean((1, 2))
        mean_BG = mean_BC.reshape(B, G, C // G).mean(-1)
        centre_BC = jnp.repeat(mean_BG, C // G, axis=-1)
        square_BC = jnp.square(x32 - centre_BC[:, None, None]).mean((1, 2))
        variance_BG = square_BC.reshape(B, G, C // G).mean(-1)
        inverse_BC = jnp.repeat(jax.lax.rsqrt(variance_BG + epsilon), C // G, axis=-1)
        gain_BC = inverse_BC * scale_C[None]
        shift_BC = bias_C[None] - centre_BC * gain_BC
        return (x32 * gain_BC[:, None, None] + shift_BC[:, None, None]).astype(self.config.dtype)


def normalised(x: Array, epsilon: float) -> Array:
    """Return ``x`` with mean 0 and variance 1 over its last axis, float32."""
    centred = x.astype(jnp.float32)
    centred = centred - centred.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, with parameters ``scale`` and ``bias``; computed in float32."""

    config: ProductSettings
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape).astype(jnp.float32)
        y = normalised(x, self.epsilon)
        return (y * jnp.broadcast_to(scale, y.shape) + jnp.broadcast_to(bias, y.shape)).astype(self.config.dtype)


class ResBlock(nn.Module):
    """A residual block: norm, swish, conv; add the time embedding; norm, swish, dropout, conv; add the input.

    If the widths differ, the input passes through a 1x1 convolution.
    """

    features: int
    config: Settings
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

    config: Settings

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


class ConditionEmbedding(nn.Module):
    """The embedding of a condition, float32: a row of ``table`` (classes + 1, D) per class, or `Dense` of a vector.

    The table starts with numbers of standard deviation ``scale``. The row of a class is picked by a product with zeros
    and a one. Its gradient is a sum in a fixed order, where the scattered sum of indexing may have another order, and
    so other bits, in every run on a GPU.
    """

    features: int
    config: ProductSettings
    scale: float = 1.0

    @nn.compact
    def __call__(self, cond: Array) -> Array:
        if self.config.classes is None:
            return Dense(self.features, self.config, name="dense")(cond).astype(jnp.float32)
        rows = self.config.classes + 1
        table = self.param("table", nn.initializers.normal(self.scale), (rows, self.features))
        return jnp.matmul(jax.nn.one_hot(cond, rows, dtype=jnp.float32), table, precision="highest")
