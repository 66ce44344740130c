"""The settings of the U-Net: its architecture, and how it is computed."""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp

from ensdiff.models.attention import AttentionOrder
from ensdiff.models.conv import STACKED, Precision, Strategy
from ensdiff.settings import check_fields

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
        compute_dtype: dtype of the layers' inputs, products and outputs, ``"float32"`` or ``"bfloat16"`` (7 bits of
            mantissa instead of 23). Parameters, the optimiser, normalisation statistics, attention weights before they
            are multiplied by the values, gradients of biases, and sums over micro-batches, devices and members are
            always float32. The product that computes a kernel's gradient rounds it to bfloat16 once.
        precision: how products of float32 numbers are computed. ``"default"`` leaves it to JAX and the device: NVIDIA
            GPUs since Ampere use TF32, which rounds the factors to 10 bits of mantissa and adds up in float32; TPUs
            round the factors to bfloat16; CPUs compute in float32. ``"highest"`` is full float32 everywhere, several
            times slower on GPUs and TPUs. It makes no difference to products of bfloat16.
        remat: recompute residual blocks in the backward pass instead of keeping their activations.
        conv: how members are computed, see `ensdiff.models.conv`.
        stack: the number of members of one device that are computed together: the largest divisor of the device's
            members up to ``stack``. 0 is the form's default: one by one for ``"map"`` and ``"winograd"``, all of them
            for the forms that can be stacked. With ``conv="measure"``, only groups of this size are timed. Results
            change by rounding at most.
        attention: ``"batch"`` computes the attention of all images at once. ``"image"`` computes one head of one image
            at a time, so that its weights stay in the cache, and recomputes the weights in the backward pass instead of
            keeping them. ``"auto"`` is ``"image"`` on a CPU and ``"batch"`` elsewhere. ``"fused"`` trains with
            `jax.nn.dot_product_attention`, which on NVIDIA GPUs is a kernel of cuDNN for bfloat16 and heads of up to
            128 channels, a multiple of 8. Such kernels have no forward-mode derivative, so predictions take what
            ``"auto"`` stands for.

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
    precision: Precision = "default"
    remat: bool = False
    conv: Strategy = "auto"
    stack: int = 0
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

    def check_image(self, height: int, width: int) -> None:
        """Raise ValueError if images of this size cannot be halved between all levels."""
        factor = 2 ** (len(self.multipliers) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"images of {height}x{width} do not fit a U-Net of {len(self.multipliers)} levels: height and width "
                f"must be multiples of {factor}; use fewer multipliers or resize the images"
            )
