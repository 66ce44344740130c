"""Attention over the pixels of an image, all images at once or one after another."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from ensdiff.typing import Array

AttentionOrder = Literal["auto", "batch", "image"]


def resolve_attention(order: AttentionOrder, platform: str | None = None) -> AttentionOrder:
    """Return the order that ``"auto"`` selects on a platform, by default the platform of the default backend."""
    if order != "auto":
        return order
    return "image" if (jax.default_backend() if platform is None else platform) == "cpu" else "batch"


def attend(
    q_BNSD: Float[Array, "B N S D"],
    k_BNSD: Float[Array, "B N S D"],
    v_BNSD: Float[Array, "B N S D"],
    order: AttentionOrder,
) -> Float[Array, "B N S D"]:
    """Return ``softmax(q k^T / sqrt(D)) v`` of N heads over S pixels.

    The weights are float32 until they are multiplied by v. The division by their sum follows that product.
    """

    def weigh(q, k, v, *, axes):
        logits = jnp.einsum(f"...qd,...{axes}->...qk", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
        largest = checkpoint_name(jax.lax.stop_gradient(logits.max(-1, keepdims=True)), "largest")
        e = jnp.exp(logits - largest)
        mixed = jnp.einsum(f"...qk,...{axes}->...qd", e.astype(v.dtype), v)
        return (mixed.astype(jnp.float32) / e.sum(-1, keepdims=True)).astype(v.dtype)

    if order == "batch":
        return weigh(q_BNSD, k_BNSD, v_BNSD, axes="kd")
    B, N, S, D = q_BNSD.shape
    # keys and values have their pixels last, so that no product of the backward pass transposes S x S weights
    k_RDS, v_RDS = (x.swapaxes(2, 3).reshape(B * N, D, S) for x in (k_BNSD, v_BNSD))
    keep = jax.checkpoint_policies.save_only_these_names("largest")
    one = jax.checkpoint(lambda qkv: weigh(*qkv, axes="dk"), policy=keep)
    return jax.lax.map(one, (q_BNSD.reshape(B * N, S, D), k_RDS, v_RDS)).reshape(B, N, S, D)
