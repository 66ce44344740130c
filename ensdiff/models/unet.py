"""The noise predictor of one member: the U-Net of Ho et al. 2020 (arXiv 2006.11239), channels last, in linen.

Its options cover both reference implementations (GenEns and `diffusers.UNet2DModel`). Nothing here knows about the
ensemble: `ensdiff.ensemble.members` stacks members. Parameters are float32. Layers compute in ``compute_dtype``, but
normalisation statistics and attention weights are always float32.
"""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ensdiff.models.attention import AttentionOrder, attend, resolve_attention
from ensdiff.models.conv import Strategy, conv2d, upsampled_conv2d
from ensdiff.settings import check_fields
from ensdiff.typing import Array, ArrayLike

TimeLayout = Literal["sin_cos", "cos_sin", "interleaved"]


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Architecture of the U-Net, static and hashable.

    Args:
        image_channels: C of the images, and of the predicted noise.
        channels: width of the first convolution; the time embedding is 4 times as wide.
        multipliers: width of each level as a multiple of ``channels``; each further level halves H and W.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention_levels: levels with self-attention after each residual block on the way down; 0 is full resolution.
        attention_levels_up: the same for the way up; None uses ``attention_levels``.
        middle_attention: whether there is self-attention between the two middle blocks.
        head_channels: channels of one attention head; None uses a single head.
        norm_groups: groups of each GroupNorm; must divide every width.
        norm_epsilon: epsilon of each GroupNorm.
        time_layout: order of the sinusoids: ``"sin_cos"`` and ``"cos_sin"`` are blocks, ``"interleaved"`` alternates
            sine and cosine.
        time_shift: the slowest frequency is ``10000^(-(width/2 - 1) / (width/2 - time_shift))``; 0, or 1 as in
            DDPM's code.
        dropout: dropout rate inside residual blocks during training.
        downsample: ``"conv"`` (3x3, stride 2, one row of padding on every side), ``"conv_end"`` (the same, padded below
            and on the right only, as in DDPM's code) or ``"pool"`` (2x2 mean).
        upsample: ``"conv"`` (nearest, then a 3x3 convolution) or ``"nearest"``.
        compute_dtype: ``"float32"`` or ``"bfloat16"``.
        remat: recompute residual blocks in the backward pass instead of keeping their activations.
        conv: how members are computed, see `ensdiff.models.conv`.
        attention: ``"batch"`` computes the attention of all images at once. ``"image"`` computes one head of one image
            at a time, so that its weights stay in the cache, and recomputes the weights in the backward pass instead of
            keeping them. ``"auto"`` is ``"image"`` on a CPU and ``"batch"`` elsewhere.

    >>> UNetConfig(image_channels=3, channels=64, multipliers=(1, 2, 2), attention_levels=(2,)).channels
    64
    """

    image_channels: int = 1
    channels: int = 32
    multipliers: tuple[float, ...] = (1, 2)
    blocks: int = 1
    attention_levels: tuple[int, ...] = ()
    attention_levels_up: tuple[int, ...] | None = None
    middle_attention: bool = True
    head_channels: int | None = None
    norm_groups: int = 8
    norm_epsilon: float = 1e-5
    time_layout: TimeLayout = "sin_cos"
    time_shift: Literal[0, 1] = 0
    dropout: float = 0.0
    downsample: Literal["conv", "conv_end", "pool"] = "conv"
    upsample: Literal["conv", "nearest"] = "conv"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    conv: Strategy = "auto"
    attention: AttentionOrder = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.image_channels < 1 or self.channels < 2 or self.channels % 2 or self.blocks < 1:
            raise ValueError(
                f"image_channels={self.image_channels}, channels={self.channels}, blocks={self.blocks}: expected at "
                "least one image channel, an even number of channels, and at least one block per level"
            )
        if not self.multipliers or not all(0 < m <= 1024 for m in self.multipliers):
            raise ValueError(
                f"multipliers={self.multipliers}: expected one multiplier per level, each above 0, for example (1, 2)"
            )
        if self.norm_groups < 1 or not self.norm_epsilon > 0:
            raise ValueError(
                f"norm_groups={self.norm_groups}, norm_epsilon={self.norm_epsilon}: expected at least one group, and a "
                "positive number"
            )
        for width in (self.channels, *self.widths):
            if width % self.norm_groups:
                raise ValueError(
                    f"norm_groups={self.norm_groups} does not divide the width {width}; widths here are "
                    f"{self.channels} and {self.widths}, so norm_groups must divide "
                    f"{math.gcd(self.channels, *self.widths)}"
                )
        levels = range(len(self.multipliers))
        attended = [levels[-1]] if self.middle_attention else []
        for name in ("attention_levels", "attention_levels_up"):
            for level in getattr(self, name) or ():
                if level not in levels:
                    raise ValueError(f"{name}={getattr(self, name)}: levels are 0 .. {len(levels) - 1}")
                attended.append(level)
        for level in attended:
            if self.head_channels is not None and (self.head_channels < 1 or self.widths[level] % self.head_channels):
                raise ValueError(f"head_channels={self.head_channels} does not divide the width {self.widths[level]}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout}: expected a rate in [0, 1)")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(round(self.channels * m) for m in self.multipliers)

    @property
    def dtype(self) -> jnp.dtype:
        """``compute_dtype`` as a dtype."""
        return jnp.dtype(self.compute_dtype)

    def check_image(self, height: int, width: int) -> None:
        """Raise ValueError if images of this size cannot be halved between all levels."""
        factor = 2 ** (len(self.multipliers) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"images of {height}x{width} do not fit a U-Net of {len(self.multipliers)} levels: height and width "
                f"must be multiples of {factor}; use fewer multipliers or resize the images"
            )


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
        if self.upsampled:
            y = upsampled_conv2d(x_BHWC.astype(dtype), kernel.astype(dtype), strategy=self.config.conv)
            return y + bias.astype(dtype)[None, None, None]
        padding = self.size // 2
        if self.end_padded:
            x_BHWC, padding = jnp.pad(x_BHWC, ((0, 0), (0, padding), (0, padding), (0, 0))), 0
        y = conv2d(
            x_BHWC.astype(dtype),
            kernel.astype(dtype),
            stride=self.stride,
            padding=padding,
            strategy=self.config.conv,
        )
        return y + bias.astype(dtype)[None, None, None]


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
        time = nn.Dense(self.features, dtype=config.dtype, name="time")(nn.swish(time_BD))
        h = nn.swish(GroupNorm(config, name="norm2")(h + time[:, None, None]))
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
            nn.Dense(C, dtype=config.dtype, name=name)(h).reshape(B, H * W, C // D, D).swapaxes(1, 2)
            for name in ("query", "key", "value")
        )
        h = attend(q, k, v, resolve_attention(config.attention)).swapaxes(1, 2).reshape(B, H, W, C)
        h = nn.Dense(C, dtype=config.dtype, name="out", kernel_init=nn.initializers.zeros)(h)
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
        time_BD = nn.Dense(4 * config.channels, dtype=config.dtype, name="time1")(time_BD)
        time_BD = nn.Dense(4 * config.channels, dtype=config.dtype, name="time2")(nn.swish(time_BD))

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
