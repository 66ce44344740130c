"""The diffusion transformer, DiT, of Peebles & Xie 2023 (arXiv 2212.09748) for one member, channels last, in linen.

An image is cut into patches, which become tokens with fixed sinusoids of their position. In each block, the embedding
of time and condition c shifts, scales and gates both branches (adaLN-zero):

(1) ``h <- h + gate1(c) attention(scale1(c) * norm(h) + shift1(c))``
(2) ``h <- h + gate2(c) mlp(scale2(c) * norm(h) + shift2(c))``

All gates start at 0, so each block starts as the identity, and the first prediction is 0. Sinusoids of times and
positions are those of `diffusers.DiTTransformer2DModel`.

A DiT consists of products with weights, which `jax.vmap` turns into products of a batch of members, so any number of
members can be computed together (``stack``). Measured for 8 members, 4 blocks, and patches of 2x2:

- CPU, gradients: one after another took 12 to 26 % less processor time than all together, for 14x14 and 28x28 images
  and widths of 64 and 128 (1.75 against 2.38 ms per member and image for the smallest, 21.9 against 28.6 for the
  largest, with 4 members), and a member's activations are alive one at a time.
- Compiled for a TPU v5e, batches of 32: equal FLOPs; together, a member moves 47 % more bytes (14x14, width 64), 4 %
  more (28x28, width 128) or 3 % fewer (the same in float32), with 621 instead of 8 x 590 operations to start, and more
  than ten times the memory.

The default is therefore one after another. Where starting an operation takes longer than a small network's products,
as on large GPUs (not measured), ``stack=0`` is worth a try.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from ensdiff.models.attention import attend
from ensdiff.models.blocks import ConditionEmbedding, Dense, add, normalised, timestep_embedding
from ensdiff.models.condition import ConditionSpec, condition_of, network_condition
from ensdiff.models.conv import Precision
from ensdiff.settings import check_fields
from ensdiff.typing import Array, ArrayLike, Params

TIME_WIDTH = 256
"""Number of sinusoids of the time."""
EPSILON = 1e-6
"""Epsilon of the normalisation before attention and before the output."""


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Architecture of the diffusion transformer, static and hashable. It is a denoiser (`ensdiff.models.Denoiser`).

    Args:
        image_channels: C of the images, and of the prediction.
        patch: height and width of a patch, which must divide those of the images.
        width: D of each token, a multiple of 4 and of ``heads``.
        depth: number of blocks.
        heads: attention heads of each block.
        mlp_ratio: width of the hidden layer of each MLP, as a multiple of ``width``.
        embedding: ``"shared"`` uses one embedding of time and condition in all blocks, as the paper does.
            ``"per_block"`` gives each block its own layers, as `diffusers.DiTTransformer2DModel` trains them; the
            output then uses the first block's.
        mlp_norm_epsilon: epsilon of the normalisation before each MLP.
        classes: number of classes that images are conditioned on; None for a network without classes. A table with one
            embedding per class, and one more for "no class", is added to the embedding of the time.
        condition_width: D of the vectors that images are conditioned on; None for a network without them. Zeros stand
            for "no condition".
        compute_dtype: dtype of the layers' inputs, products and outputs, see `UNetConfig`.
        precision: how products of float32 numbers are computed, see `UNetConfig`.
        attention: ``"batch"`` computes the attention of all images at once, ``"image"`` one head of one image at a
            time, with less memory.
        remat: recompute blocks in the backward pass instead of keeping their activations.
        stack: the number of members of one device that are computed together; 0 is all of them.

    >>> import jax
    >>> model = DiTConfig(patch=4, width=8, depth=1, heads=2, classes=10)
    >>> theta = jax.jit(model.init)(jax.random.key(0))
    >>> x_BHWC, t_B = jnp.zeros((2, 8, 8, 1)), jnp.array([0.0, 999.0])
    >>> jax.jit(model.apply)(theta, x_BHWC, t_B, jnp.array([3, 10])).shape  # the second image has no class
    (2, 8, 8, 1)
    """

    image_channels: int = 1
    patch: int = 2
    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0
    embedding: Literal["shared", "per_block"] = "shared"
    mlp_norm_epsilon: float = 1e-6
    classes: int | None = None
    condition_width: int | None = None
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Precision = "default"
    attention: Literal["batch", "image"] = "batch"
    remat: bool = False
    stack: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        condition_of(self.classes, self.condition_width)
        for name in ("image_channels", "patch", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a positive number")
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width={self.width}, heads={self.heads}: width must be a multiple of 4 and of heads")
        if self.mlp_width < 1 or not self.mlp_norm_epsilon > 0:
            raise ValueError(
                f"mlp_ratio={self.mlp_ratio}, mlp_norm_epsilon={self.mlp_norm_epsilon}: expected positive numbers"
            )
        if self.stack < 0:
            raise ValueError(f"stack={self.stack}: expected a number of members, or 0 for all")

    @property
    def mlp_width(self) -> int:
        """Width of the hidden layer of each MLP."""
        return round(self.width * self.mlp_ratio)

    @property
    def dtype(self) -> jnp.dtype:
        """``compute_dtype`` as a dtype."""
        return jnp.dtype(self.compute_dtype)

    @property
    def condition(self) -> ConditionSpec | None:
        """The condition that the network takes, without names of classes; None for an unconditional network."""
        return condition_of(self.classes, self.condition_width)

    def check_image(self, height: int, width: int, channels: int | None = None) -> None:
        """Raise ValueError if images of this size cannot be cut into patches, or have other channels."""
        if channels not in (None, self.image_channels):
            raise ValueError(
                f"the images have {channels} channels and the DiT {self.image_channels}: set image_channels={channels}"
            )
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"images of {height}x{width} do not consist of patches of {self.patch}x{self.patch}: choose another "
                "patch or resize the images"
            )

    def init(self, key: Array) -> Params:
        """Return the initial parameters of one member, which do not depend on the size of images."""
        x_BHWC = jnp.zeros((1, self.patch, self.patch, self.image_channels))
        return DiT(self).init(key, x_BHWC, jnp.zeros((1,)))["params"]

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
            cond: class ids, int32 (B,), or vectors, float32 (B, D); None for no condition.
            key_B: unused; there is no dropout.

        Raises:
            ValueError: the condition is not what the network takes.
        """
        predicted: Any = DiT(self).apply({"params": params}, x_BHWC, t_B, cond)
        return predicted


def dit(config: DiTConfig) -> DiTConfig:
    """Return the settings of a diffusion transformer, which are the denoiser.

    Raises:
        TypeError: the argument is not a `DiTConfig`.

    >>> dit(DiTConfig(width=64)).width
    64
    """
    if not isinstance(config, DiTConfig):
        raise TypeError(f"expected a DiTConfig, got {config!r}: for a network of your own, see ensdiff.models.linen")
    return config


def position_embedding(rows: int, columns: int, width: int) -> np.ndarray:
    """Return the fixed sinusoids of each patch, float32 (rows * columns, width), in the order of rows.

    The first half of an embedding belongs to the column and the second half to the row, with sines before cosines.

    >>> position_embedding(2, 3, 8).shape
    (6, 8)
    """
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    row, column = np.indices((rows, columns)).reshape(2, -1)
    angles = [place[:, None] * frequencies[None] for place in (column, row)]
    return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


_XAVIER = nn.initializers.xavier_uniform()
_SMALL = nn.initializers.normal(0.02)


class Embedding(nn.Module):
    """The embedding of time and condition, float32 (B, D)."""

    config: DiTConfig

    @nn.compact
    def __call__(self, t_B: Array, cond: Any) -> Array:
        config = self.config
        time_BD = timestep_embedding(t_B, TIME_WIDTH, "cos_sin", shift=1)
        time_BD = Dense(config.width, config, kernel_init=_SMALL, name="time1")(time_BD)
        time_BD = Dense(config.width, config, kernel_init=_SMALL, name="time2")(nn.swish(time_BD)).astype(jnp.float32)
        if cond is None:
            return time_BD
        return time_BD + ConditionEmbedding(config.width, config, scale=0.02, name="condition")(cond)


class DiTBlock(nn.Module):
    """A block of the transformer, equations (1) and (2)."""

    config: DiTConfig

    @nn.compact
    def __call__(self, h_BLD: Array, c_BD: Array) -> Array:
        config = self.config
        B, L, D = h_BLD.shape
        modulation = Dense(6 * D, config, zero_init=True, name="modulation")(nn.swish(c_BD)).astype(jnp.float32)
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation[:, None], 6, axis=-1)

        def dense(features: int, name: str) -> Dense:
            return Dense(features, config, kernel_init=_XAVIER, name=name)

        def gated(h_BLD: Array, gate: Array, branch: Array) -> Array:
            return h_BLD + (gate * branch.astype(jnp.float32)).astype(h_BLD.dtype)

        x = normalised(h_BLD, EPSILON) * (1.0 + scale1) + shift1
        q, k, v = (
            dense(D, name)(x).reshape(B, L, config.heads, D // config.heads).swapaxes(1, 2)
            for name in ("query", "key", "value")
        )
        x = attend(q, k, v, config.attention, config.precision).swapaxes(1, 2).reshape(B, L, D)
        h_BLD = gated(h_BLD, gate1, dense(D, "out")(x))
        x = normalised(h_BLD, config.mlp_norm_epsilon) * (1.0 + scale2) + shift2
        x = nn.gelu(dense(config.mlp_width, "mlp1")(x), approximate=True)
        return gated(h_BLD, gate2, dense(D, "mlp2")(x))


class DiT(nn.Module):
    """The network of one member, for a batch of noisy images: ``__call__(x_BHWC, t_B, cond=None)``.

    It returns the prediction, float32, in the shape of the images.
    """

    config: DiTConfig

    @nn.compact
    def __call__(
        self, x_BHWC: Float[ArrayLike, "B H W C"], t_B: Num[ArrayLike, " B"], cond: Any = None
    ) -> Float[Array, "B H W C"]:
        config = self.config
        B, H, W, C = x_BHWC.shape
        P, D = config.patch, config.width
        config.check_image(H, W, C)
        h, w = H // P, W // P
        rows = network_condition(config.condition, cond, B)
        shared = config.embedding == "shared"
        names = ["embedding"] if shared else [f"embedding{i}" for i in range(config.depth)]
        embeddings = [Embedding(config, name=name)(jnp.asarray(t_B), rows) for name in names]

        patches = x_BHWC.reshape(B, h, P, w, P, C).swapaxes(2, 3).reshape(B, h * w, P * P * C)
        tokens = Dense(D, config, kernel_init=_XAVIER, name="patches")(jnp.asarray(patches))
        tokens = add(tokens, jnp.asarray(position_embedding(h, w, D))[None])
        Block = nn.remat(DiTBlock) if config.remat else DiTBlock
        for i in range(config.depth):
            tokens = Block(config, name=f"block{i}")(tokens, embeddings[0 if shared else i])

        modulation = Dense(2 * D, config, zero_init=True, name="tail_modulation")(nn.swish(embeddings[0]))
        shift, scale = jnp.split(modulation.astype(jnp.float32)[:, None], 2, axis=-1)
        x = normalised(tokens, EPSILON) * (1.0 + scale) + shift
        x = Dense(P * P * C, config, zero_init=True, name="tail")(x).astype(jnp.float32)
        return x.reshape(B, h, w, P, P, C).swapaxes(2, 3).reshape(B, H, W, C)
