"""Attention over pixels, or from pixels to tokens: all images at once, one after another, or in a fused kernel."""

import contextlib
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from ensdiff.models.conv import Precision, lax_precision
from ensdiff.typing import Array

AttentionOrder = Literal["auto", "batch", "image", "fused"]


def resolve_attention(order: AttentionOrder, platform: str | None = None) -> AttentionOrder:
    """Return the order that ``"auto"`` selects on a platform, by default the platform of the default backend.

    It never selects ``"fused"``, whose kernels have no forward-mode derivative.
    """
    if order != "auto":
        return order
    return "image" if (jax.default_backend() if platform is None else platform) == "cpu" else "batch"


def attend(
    q_BNSD: Float[Array, "B N S D"],
    k_BNLD: Float[Array, "B N L D"],
    v_BNLD: Float[Array, "B N L D"],
    order: AttentionOrder,
    precision: Precision = "default",
) -> Float[Array, "B N S D"]:
    """Return ``softmax(q k^T / sqrt(D)) v`` of N heads, from S pixels to L pixels or tokens.

    The weights are float32 until they are multiplied by v, and so are the sums of these products. The division by the
    sum of the weights follows.

    ``order`` is concrete. ``"fused"`` leaves the algorithm to `jax.nn.dot_product_attention`: where cuDNN serves, its
    kernel never writes the weights to memory, but has no forward-mode derivative.
    """
    product = functools.partial(
        jnp.einsum, precision=lax_precision(precision), preferred_element_type=jnp.dtype(jnp.float32)
    )

    def weigh(q, k, v, *, axes):
        scale = q.shape[-1] ** -0.5
        if q.dtype == jnp.float32:  # the smaller array
            logits = product(f"...qd,...{axes}->...qk", q * scale, k)
        else:  # unrounded
            logits = product(f"...qd,...{axes}->...qk", q, k) * scale
        largest = checkpoint_name(jax.lax.stop_gradient(logits.max(-1, keepdims=True)), "largest")
        e = jnp.exp(logits - largest)
        mixed = product(f"...qk,...{axes}->...qd", e.astype(v.dtype), v)
        return (mixed / e.sum(-1, keepdims=True)).astype(v.dtype)

    if order == "batch":
        return weigh(q_BNSD, k_BNLD, v_BNLD, axes="kd")
    if order == "fused":
        return _fused(q_BNSD, k_BNLD, v_BNLD, precision)
    B, N, S, D = q_BNSD.shape
    # keys and values have their pixels last, so that no product of the backward pass transposes S x L weights
    k_RDL, v_RDL = (x.swapaxes(2, 3).reshape(B * N, D, x.shape[2]) for x in (k_BNLD, v_BNLD))
    keep = jax.checkpoint_policies.save_only_these_names("largest")
    one = jax.checkpoint(lambda qkv: weigh(*qkv, axes="dk"), policy=keep)
    return jax.lax.map(one, (q_BNSD.reshape(B * N, S, D), k_RDL, v_RDL)).reshape(B, N, S, D)


def _fused(q_BNSD: Array, k_BNLD: Array, v_BNLD: Array, precision: Precision) -> Array:
    D = q_BNSD.shape[-1]
    cudnn = jax.default_backend() == "gpu" and q_BNSD.dtype == jnp.bfloat16 and D % 8 == 0 and D <= 128
    q, k, v = (x.swapaxes(1, 2) for x in (q_BNSD, k_BNLD, v_BNLD))
    with contextlib.ExitStack() as settings:
        settings.enter_context(jax.numpy_dtype_promotion("standard"))  # it promotes bfloat16 to float32 inside
        if precision != "default":
            settings.enter_context(jax.default_matmul_precision(precision))
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if cudnn else None).swapaxes(1, 2)
