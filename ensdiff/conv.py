"""Convolution that stays fast when the members of an ensemble are stacked by `jax.vmap`.

`vmap` turns a convolution with one kernel a member into a *grouped* convolution, for which XLA has no fast path on
the CPU. `conv2d` is an ordinary convolution for one member; a `jax.custom_batching.custom_vmap` rule says what
stacking it means:

- ``"grouped"``: what `vmap` does by itself.
- ``"loop"``: one plain convolution per member.
- ``"matmul"``: shifted copies of the input (im2col) times the kernels, one batched matrix product for all members.

All three compute the same sums and can be differentiated in both modes, provided that the differentiation is outside
of the `vmap` (``grad`` of a stacked loss), as everywhere in ensdiff. A single member that is not under a
`vmap` can be differentiated in reverse with ``"grouped"`` only, which is the plain convolution then.
"""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Float

from ensdiff.typing import Array

Strategy = Literal["auto", "grouped", "loop", "matmul"]
Padding = tuple[tuple[int, int], tuple[int, int]]


def resolve(strategy: Strategy) -> Strategy:
    """The strategy that ``"auto"`` stands for on the default backend."""
    if strategy not in get_args(Strategy):
        raise ValueError(f"conv={strategy!r}: expected one of {', '.join(map(repr, get_args(Strategy)))}")
    if strategy != "auto":
        return strategy
    return "loop"


def conv2d(
    x_BHWC: Float[Array, "B H W C"],
    kernel: Float[Array, "h w C D"],
    *,
    stride: int = 1,
    padding: int = 1,
    strategy: Strategy = "auto",
) -> Float[Array, "B I J D"]:
    """Two-dimensional convolution (cross-correlation), channels last, the same zero padding on all four sides.

    Args:
        x_BHWC: the input.
        kernel: (h, w, C, D) weights.
        stride: the same in both directions.
        padding: rows and columns of zeros added on each side.
        strategy: what a `vmap` over members becomes, see the module's text.

    >>> conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()[1]
    [6.0, 9.0, 9.0, 6.0]
    """
    if kernel.shape[:2] == (1, 1) and stride == 1 and padding == 0:
        return jnp.einsum("bhwc,cd->bhwd", x_BHWC, kernel[0, 0])
    return _stacked(resolve(strategy), stride, padding)(x_BHWC, kernel)


def _plain(x_BHWC: Array, kernel: Array, stride: int, padding: int) -> Array:
    return jax.lax.conv_general_dilated(
        x_BHWC,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _patches(x_BHWC: Array, h: int, w: int, stride: int, padding: int) -> Array:
    """(B, I, J, h * w * C) windows of the input, in the order of a kernel's leading axes."""
    x = jnp.pad(x_BHWC, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    B, H, W, C = x.shape
    rows, columns = (H - h) // stride + 1, (W - w) // stride + 1
    windows = [
        jax.lax.slice(
            x,
            (0, i, j, 0),
            (B, i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, C),
            (1, stride, stride, 1),
        )
        for i in range(h)
        for j in range(w)
    ]
    return jnp.concatenate(windows, axis=-1)


@functools.cache
def _stacked(strategy: Strategy, stride: int, padding: int):
    plain = functools.partial(_plain, stride=stride, padding=padding)
    if strategy == "grouped":
        return plain

    conv = custom_vmap(plain)

    @conv.def_vmap
    def rule(axis_size, in_batched, x, kernel):
        x_batched, kernel_batched = in_batched
        if not kernel_batched:  # one kernel: the stacked axis is more batch
            flat = plain(x.reshape(-1, *x.shape[2:]), kernel)
            return flat.reshape(*x.shape[:2], *flat.shape[1:]), True
        if strategy == "loop":
            ys = [plain(x[k] if x_batched else x, kernel[k]) for k in range(axis_size)]
            return jnp.stack(ys), True
        h, w, C, D = kernel.shape[1:]
        windows = functools.partial(_patches, h=h, w=w, stride=stride, padding=padding)
        flat_kernel = kernel.reshape(axis_size, h * w * C, D)
        if x_batched:
            patches = windows(x.reshape(-1, *x.shape[2:]))
            patches = patches.reshape(axis_size, -1, *patches.shape[1:])
            return jnp.einsum("kbijc,kcd->kbijd", patches, flat_kernel), True
        return jnp.einsum("bijc,kcd->kbijd", windows(x), flat_kernel), True

    return conv
