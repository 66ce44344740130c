"""The U-Net of Ho et al. 2020 (arXiv 2006.11239) for one member, channels last, in linen, and its settings.

Its options cover both reference implementations (GenEns and `diffusers.UNet2DModel`). Nothing here knows about the
ensemble: `ensdiff.ensemble.members` stacks members.
"""

import dataclasses
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Num

from ensdiff.models.attention import AttentionOrder
from ensdiff.models.blocks import (
    Attention,
    ConditionEmbedding,
    Conv,
    Dense,
    GroupNorm,
    ResBlock,
    TimeLayout,
    add,
    timestep_embedding,
)
from ensdiff.models.condition import ConditionSpec, condition_of, network_condition
from ensdiff.models.conv import STACKED, Precision, Strategy
from ensdiff.models.transformer import Transformer, check_transformers, heads_of, of_level
from ensdiff.settings import check_fields
from ensdiff.typing import Array, ArrayLike, Params


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Architecture of the U-Net, static and hashable. It is a denoiser (`ensdiff.models.Denoiser`).

    Args:
        image_channels: C of the images, and of the prediction.
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
        compute_dtype: dtype of the layers' inputs, products and outputs, ``"float32"`` or ``"bfloat16"`` (7 bits of
            mantissa instead of 23). Parameters, the optimiser, normalisation statistics, attention weights before they
            are multiplied by the values, gradients of biases, and sums over micro-batches, devices and members are
            always float32. The product that computes a kernel's gradient rounds it to bfloat16 once.
        precision: how products of float32 numbers are computed. ``"default"`` leaves it to JAX and the device: NVIDIA
            GPUs since Ampere use TF32, which rounds the factors to 10 bits of mantissa and adds up in float32; TPUs
            round the factors to bfloat16; CPUs compute in float32. ``"highest"`` is full float32 everywhere, several
            times slower on GPUs and TPUs. It makes no difference to products of bfloat16.
        remat: recompute residual blocks and transformers in the backward pass instead of keeping their activations.
        conv: how members are computed, see `ensdiff.models.conv`.
        stack: the number of members of one device that are computed together: the largest divisor of the device's
            members up to ``stack``. 0 is the form's default: one by one for ``"map"`` and ``"winograd"``, all of them
            for the forms that can be stacked. With ``conv="measure"``, only groups of this size are timed. Results
            change by rounding at most.
        classes: number of classes that images are conditioned on; None for a network without classes. A table with one
            embedding per class, and one more for "no class", is added to the time embedding.
        condition_width: D of the vectors that images are conditioned on; None for a network without them. A dense layer
            maps a vector to what is added to the time embedding; zeros stand for "no condition".
        context_width: D of the tokens that images are conditioned on, such as the embedding of a caption; None for a
            network without them. Transformers (`ensdiff.models.transformer`) then take the place of self-attention.
        context_length: L, the number of tokens of each image; 77 is that of Stable Diffusion's text encoders.
        transformer_blocks: blocks of each transformer: one number for all levels, or one per level. The middle has that
            of the last level.
        heads: attention heads of each transformer: one number for all levels, or one per level. None leaves it to
            ``head_channels``.
        linear_projection: whether the projections of transformers are dense layers (as in Stable Diffusion 2) or 1x1
            convolutions (as in 1).
        attention: ``"batch"`` computes the attention of all images at once. ``"image"`` computes one head of one image
            at a time, so that its weights stay in the cache, and recomputes the weights in the backward pass instead of
            keeping them. ``"auto"`` is ``"image"`` on a CPU and ``"batch"`` elsewhere. ``"fused"`` trains with
            `jax.nn.dot_product_attention`, which on NVIDIA GPUs is a kernel of cuDNN for bfloat16 and heads of up to
            128 channels, a multiple of 8. Such kernels have no forward-mode derivative, so predictions take what
            ``"auto"`` stands for.

    >>> model = UNetConfig(channels=4, multipliers=(1,), norm_groups=2, classes=10)
    >>> theta = jax.jit(model.init)(jax.random.key(0))
    >>> x_BHWC, t_B = jnp.zeros((2, 8, 8, 1)), jnp.array([0.0, 999.0])
    >>> jax.jit(model.apply)(theta, x_BHWC, t_B, jnp.array([3, 10])).shape  # the second image has no class
    (2, 8, 8, 1)
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
    precision: Precision = "default"
    remat: bool = False
    conv: Strategy = "auto"
    stack: int = 0
    attention: AttentionOrder = "auto"
    classes: int | None = None
    condition_width: int | None = None
    context_width: int | None = None
    context_length: int = 77
    transformer_blocks: tuple[int, ...] = (1,)
    heads: tuple[int, ...] | None = None
    linear_projection: bool = False

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
        check_transformers(self, attended)
        _ = self.condition
        if self.stack < 0:
            raise ValueError(f"stack={self.stack}: expected a number of members, or 0 for the default")
        if self.stack > 1 and self.conv not in (*STACKED, "measure"):
            raise ValueError(
                f"stack={self.stack} with conv={self.conv!r}: the forms that can be stacked are "
                f"{', '.join(map(repr, STACKED))}, and 'measure' times them; with other values of conv leave stack at 0"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(round(self.channels * m) for m in self.multipliers)

    @property
    def dtype(self) -> jnp.dtype:
        """``compute_dtype`` as a dtype."""
        return jnp.dtype(self.compute_dtype)

    @property
    def condition(self) -> ConditionSpec | None:
        """The condition that the network takes, without names of classes; None for an unconditional network."""
        return condition_of(self.classes, self.condition_width, self.context_width, self.context_length)

    def check_image(self, height: int, width: int, channels: int | None = None) -> None:
        """Raise ValueError if images of this size cannot be halved between all levels, or have other channels."""
        factor = self._factor
        if channels not in (None, self.image_channels):
            raise ValueError(
                f"the images have {channels} channels and the U-Net {self.image_channels}: set "
                f"image_channels={channels}"
            )
        if height % factor or width % factor:
            raise ValueError(
                f"images of {height}x{width} do not fit a U-Net of {len(self.multipliers)} levels: height and width "
                f"must be multiples of {factor}; use fewer multipliers or resize the images"
            )

    @property
    def _factor(self) -> int:
        return 2 ** (len(self.multipliers) - 1)

    @property
    def stored(self) -> "UNetConfig":
        """The settings without those that choose how the same parameters are computed."""
        return dataclasses.replace(self, conv="auto", stack=0, attention="auto", remat=False)

    def init(self, key: Array) -> Params:
        """Return the initial parameters of one member, which do not depend on the size of images."""
        x_BHWC = jnp.zeros((1, self._factor, self._factor, self.image_channels))
        return UNet(self).init(key, x_BHWC, jnp.zeros((1,)))["params"]

    def apply(
        self,
        params: Params,
        x_BHWC: Float[ArrayLike, "B H W C"],
        t_B: Float[ArrayLike, " B"],
        cond: Any = None,
        key_B: Array | None = None,
    ) -> Float[Array, "B H W C"]:
        """Return the prediction for noisy images, see `ensdiff.models.Denoiser`.

        Args:
            params: the parameters of one member.
            x_BHWC: noisy images in model space.
            t_B: their times, float32.
            cond: class ids, int32 (B,), vectors, float32 (B, D), or tokens, float32 (B, L, D); None for no condition.
            key_B: one key per image for dropout; without keys, or with ``dropout=0``, there is none.

        Raises:
            ValueError: the condition is not what the network takes.
        """
        predicted: Any = UNet(self).apply({"params": params}, x_BHWC, t_B, key_B if self.dropout else None, cond)
        return predicted


def unet(config: UNetConfig) -> UNetConfig:
    """Return the settings of a U-Net, which are the denoiser.

    Raises:
        TypeError: the argument is not a `UNetConfig`.

    >>> unet(UNetConfig(channels=64)).channels
    64
    """
    if not isinstance(config, UNetConfig):
        raise TypeError(f"expected a UNetConfig, got {config!r}: for a network of your own, see ensdiff.models.linen")
    return config


class UNet(nn.Module):
    """The network of one member, for a batch of noisy images.

    ``__call__(x_BHWC, t_B, dropout_keys_B=None, cond=None)`` takes images in model space, their times (float32, or
    whole numbers) and, when training with dropout, one key per image (so that the draws do not depend on how the batch
    is sharded). A conditional network takes class ids, vectors or tokens as ``cond``; None stands for no condition. It
    returns the prediction, float32, in the shape of the images.

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
        t_B: Num[ArrayLike, " B"],
        dropout_keys_B: Array | None = None,
        cond: Any = None,
    ) -> Float[Array, "B H W C"]:
        config = self.config
        levels = len(config.widths)
        up_levels = config.attention_levels if config.attention_levels_up is None else config.attention_levels_up
        Block = nn.remat(ResBlock) if config.remat else ResBlock
        Attending = nn.remat(Transformer) if config.remat else Transformer
        count = 0

        def block(h: Array, level: int, name: str, attended: bool) -> Array:
            nonlocal count
            h = Block(config.widths[level], config, index=count, name=name)(h, time_BD, dropout_keys_B)
            count += 1
            if not attended:
                return h
            if config.context_width is None:
                return Attention(config, name=f"{name}_attention")(h)
            blocks, linear = of_level(config.transformer_blocks, level), config.linear_projection
            return Attending(heads_of(config, level), blocks, linear, config, name=f"{name}_attention")(h, rows)

        time_BD = timestep_embedding(t_B, config.channels, config.time_layout, config.time_shift).astype(config.dtype)
        time_BD = Dense(4 * config.channels, config, name="time1")(time_BD)
        time_BD = Dense(4 * config.channels, config, name="time2")(nn.swish(time_BD))
        rows = network_condition(config.condition, cond, len(t_B))
        if rows is not None and config.context_width is None:
            time_BD = add(time_BD, ConditionEmbedding(4 * config.channels, config, name="condition")(rows))

        h = Conv(config.channels, config, name="head")(jnp.asarray(x_BHWC))
        skips = [h]
        for level, width in enumerate(config.widths):
            for i in range(config.blocks):
                h = block(h, level, f"down{level}_block{i}", level in config.attention_levels)
                skips.append(h)
            if level < levels - 1:
                h = self._down(h, width, level)
                skips.append(h)

        h = block(h, levels - 1, "middle_block0", config.middle_attention)
        h = block(h, levels - 1, "middle_block1", False)

        for level, width in reversed(list(enumerate(config.widths))):
            for i in range(config.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, level, f"up{level}_block{i}", level in up_levels)
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
