"""Convolution of one member that stays fast when an ensemble stacks its members, on every backend and in both modes.

A convolution is one trilinear form in its input x, its kernel k and a direction y of its output: the output, the
input gradient and the kernel gradient are its three partial derivatives, and each is linear in two arguments. One
primitive stands for all three (``out`` says which), so that derivatives of any order and mode are again convolutions
and each can be computed in the way that its backend does fast:

- XLA's CPU backend computes the gradients that autodiff writes down one or two hundred times slower than the
  convolution itself when they are inside of a loop, so there both are written as plain convolutions.
- Elsewhere they are what autodiff gives.

How members are computed is the *strategy*: what a `vmap` over them becomes, and by which algorithm one of them is:

- ``"map"``: members one after another in a compiled loop, each a plain convolution. `over_members` then
  loops over whole members and does not stack their convolutions at all: one member's activations are alive at a
  time, and compiling takes as long as for one member.
- ``"winograd"``: the same loop, and on CPUs 3x3 convolutions of wide layers as `ensdiff.models.winograd` computes
  them, in 16 products instead of 36. They compile more slowly; the gradient of a kernel is as with ``"map"``.
- ``"loop"``: one plain convolution per member, written out.
- ``"grouped"``: what `vmap` does by itself, a grouped convolution.
- ``"matmul"``: shifted copies of the input (im2col) times the kernels, one batched matrix product for all members.

All compute the same sums but for rounding. Where only the inputs are stacked, they are one larger batch.
``"auto"`` may stand for one strategy in predictions and for another in training.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Float

from ensdiff.models import winograd
from ensdiff.settings import check_value
from ensdiff.typing import Array, ArrayLike

Strategy = Literal["auto", "map", "winograd", "grouped", "loop", "matmul"]
Out = Literal["y", "x", "k"]

AUTO: dict[str, Strategy] = {"cpu": "map", "tpu": "map", "gpu": "map"}
"""What ``"auto"`` stands for. The row of the CPU is measured (`experiments.benchmark`, table "strategies"), the TPU's
is from compiled programs (BUILD.md); that of GPUs is not measured."""

AUTO_PREDICTING: dict[str, Strategy] = {**AUTO, "cpu": "winograd"}
"""The same where no gradient with respect to parameters is taken: sampling, landscapes, Jacobians, losses, that is, in
`apply_member` (a `UNet` applied by itself is as in training). Measured by the same table."""


def resolve(strategy: Strategy, platform: str | None = None, *, predicting: bool = False) -> Strategy:
    """The strategy that ``"auto"`` stands for on a platform, by default that of the default backend."""
    check_value("conv", strategy, Strategy)
    if strategy != "auto":
        return strategy
    return (AUTO_PREDICTING if predicting else AUTO).get(jax.default_backend() if platform is None else platform, "map")


def one_by_one(strategy: Strategy) -> bool:
    """Whether members are computed one after another, in a loop."""
    return resolve(strategy) in ("map", "winograd")


def conv2d(
    x_BHWC: Float[ArrayLike, "B H W C"],
    kernel: Float[ArrayLike, "h w C D"],
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
        strategy: how members are computed, see the module's text.

    >>> conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()[1]
    [6.0, 9.0, 9.0, 6.0]
    """
    if kernel.shape[:2] == (1, 1) and stride == 1 and padding == 0:
        return jnp.einsum("bhwc,cd->bhwd", x_BHWC, kernel[0, 0])
    size = tuple((n + 2 * padding - k) // stride + 1 for n, k in zip(x_BHWC.shape[1:3], kernel.shape[:2], strict=True))
    strategy = resolve(strategy)
    return _conv_p.bind(x_BHWC, kernel, out="y", size=size, stride=stride, padding=padding, strategy=strategy)


def upsampled_conv2d(
    x_BHWC: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"], *, strategy: Strategy = "auto"
) -> Float[Array, "B 2*H 2*W D"]:
    """Each pixel repeated to 2x2, then a 3x3 convolution padded by 1, in about 4/9 of the products.

    Of the nine taps of an output pixel several meet copies of one input pixel; their weights are added first. The
    four parities (a, b) of an output pixel (2i + a, 2j + b) leave a 2x2 kernel each; all four are the channels of one
    convolution at the lower resolution.
    """
    B, H, W, C = x_BHWC.shape
    D = kernel.shape[-1]
    merge = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)  # parity, tap of 2, tap of 3
    small = jnp.einsum("apr,bqs,rscd->pqcabd", merge, merge, kernel, precision="highest").astype(kernel.dtype)
    y = conv2d(x_BHWC, small.reshape(2, 2, C, 4 * D), strategy=strategy).reshape(B, H + 1, W + 1, 2, 2, D)
    rows = [jnp.stack([y[:, a : a + H, b : b + W, a, b] for b in (0, 1)], axis=3) for a in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(B, 2 * H, 2 * W, D)


def _plain(x_BHWC: Array, kernel: Array, stride: int, padding: tuple[int, int]) -> Array:
    return jax.lax.conv_general_dilated(
        x_BHWC,
        kernel,
        window_strides=(stride, stride),
        padding=tuple((p, p) for p in padding),
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


def _by_lax(a: Array, b: Array, out: Out, size: tuple[int, int], stride: int, padding: int) -> Array:
    """The form by XLA's convolution and what autodiff makes of it."""

    def conv(x, k):
        return _plain(x, k, stride, (padding, padding))

    return _by_transpose(conv, a, b, out, size)


def _by_matmul(a: Array, b: Array, out: Out, size: tuple[int, int], stride: int, padding: int) -> Array:
    """The form by windows of the input and a matrix product."""

    def conv(x, k):
        h, w, C, D = k.shape
        return jnp.einsum("bijc,cd->bijd", _patches(x, h, w, stride, padding), k.reshape(h * w * C, D))

    return _by_transpose(conv, a, b, out, size)


def _by_transpose(conv, a: Array, b: Array, out: Out, size: tuple[int, int]) -> Array:
    if out == "y":
        return conv(a, b)
    if out == "x":  # of y and k
        x = jax.ShapeDtypeStruct((a.shape[0], *size, b.shape[2]), a.dtype)
        return jax.linear_transpose(lambda x: conv(x, b), x)(a)[0]
    k = jax.ShapeDtypeStruct((*size, a.shape[-1], b.shape[-1]), a.dtype)
    return jax.linear_transpose(lambda k: conv(a, k), k)(b)[0]


def _on_cpu(a: Array, b: Array, out: Out, size: tuple[int, int], stride: int, padding: int) -> Array:
    """The form of convolutions that XLA's CPU backend computes at full speed inside of loops too."""
    if out == "y":
        return _plain(a, b, stride, (padding, padding))
    if stride > 1:
        return _by_matmul(a, b, out, size, stride, padding)
    if out == "x":
        h, w = b.shape[:2]
        return _plain(a, jnp.flip(b, (0, 1)).swapaxes(2, 3), 1, (h - 1 - padding, w - 1 - padding))
    if b.shape[1] > a.shape[1] or b.shape[2] > a.shape[2]:  # XLA would exchange a larger kernel with its input
        a, padding = jnp.pad(a, ((0, 0), (padding, padding), (padding, padding), (0, 0))), 0

    # sum_bij x[b, i + p, j + q, c] y[b, i, j, d]: channels are the batch, images are channels, y is the kernel
    k = _plain(a.transpose(3, 1, 2, 0), b.transpose(1, 2, 0, 3), 1, (padding, padding))
    return k.transpose(1, 2, 0, 3)


WIDE = 20
"""Least ``C D / (C + D)`` of a layer for Winograd's filtering: the products that it saves, against the values that it
transforms. With less it gains nothing on a CPU, but compiles longer (`experiments.benchmark`, table "layers")."""

TILES = 64
"""Least number of 2x2 tiles of its output. By count: transforming a kernel takes 144 multiply-adds an entry, and a tile
saves 20. Layers of so many tiles were measured to gain (4x4 images, 16 of them), of fewer none were measured."""


def _on_cpu_by_winograd(a: Array, b: Array, out: Out, size: tuple[int, int], stride: int, padding: int) -> Array:
    """`_on_cpu`, and the convolution and its input gradient by Winograd's filtering where that is faster."""
    fits = out != "k" and b.shape[:2] == (3, 3) and stride == padding == 1
    C, D = b.shape[2:]
    tiles = a.shape[0] * -(-a.shape[1] // 2) * -(-a.shape[2] // 2)
    if fits and C * D >= WIDE * (C + D) and tiles >= TILES and a.dtype == b.dtype == jnp.float32:
        return winograd.output(a, b) if out == "y" else winograd.input_gradient(a, b)
    return _on_cpu(a, b, out, size, stride, padding)


_conv_p = Primitive("conv2d")


@_conv_p.def_abstract_eval
def _abstract(a, b, *, out, size, stride, padding, strategy):
    if out == "k":
        return a.update(shape=(*size, a.shape[-1], b.shape[-1]))
    return a.update(shape=(a.shape[0], *size, b.shape[3 if out == "y" else 2]))


@functools.cache
def _compiled(**params):
    return jax.jit(functools.partial(_conv_p.bind, **params))


_conv_p.def_impl(lambda a, b, **params: _compiled(**params)(a, b))


def _lowering(choose):
    def lower(a, b, *, strategy, **params):
        return choose(strategy)(a, b, **params)

    return mlir.lower_fun(lower, multiple_results=False)


mlir.register_lowering(_conv_p, _lowering(lambda strategy: _by_lax))
mlir.register_lowering(
    _conv_p,
    _lowering(lambda strategy: _on_cpu_by_winograd if strategy == "winograd" else _on_cpu),
    platform="cpu",
)


def _spatial(a: Any, of: Out) -> tuple[int, int]:
    return tuple(a.aval.shape[:2] if of == "k" else a.aval.shape[1:3])


# operands of each partial derivative; the derivative by one of them is a partial derivative again
_OPERANDS: dict[Out, tuple[Out, Out]] = {"y": ("x", "k"), "x": ("y", "k"), "k": ("x", "y")}


def _transpose(place: int):
    def rule(cotangent, a, b, *, out, size, **params):
        of = _OPERANDS[out][place]
        undefined, other = (a, b) if place == 0 else (b, a)
        known = {out: cotangent, _OPERANDS[out][1 - place]: other}
        first, second = (known[name] for name in _OPERANDS[of])
        return _conv_p.bind(first, second, out=of, size=_spatial(undefined, of), **params)

    return rule


ad.defbilinear(_conv_p, _transpose(0), _transpose(1))


def _batch(args, axes, *, out, strategy, **params):
    count = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    a, b = (a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(args, axes, strict=True))
    stacked = tuple(axis is not None for axis in axes)
    one = functools.partial(_conv_p.bind, out=out, strategy=strategy, **params)
    if out != "k" and not stacked[1]:  # one kernel: the stacked axis is more batch
        flat = one(a.reshape(-1, *a.shape[2:]), b)
        return flat.reshape(count, -1, *flat.shape[1:]), 0
    if strategy in ("grouped", "matmul"):
        form = functools.partial(_by_lax if strategy == "grouped" else _by_matmul, out=out, **params)
        return jax.vmap(form, in_axes=tuple(0 if s else None for s in stacked))(a, b), 0

    def member(k):
        return one(a[k] if stacked[0] else a, b[k] if stacked[1] else b)

    if strategy == "loop":
        return jnp.stack([member(k) for k in range(count)]), 0
    return jax.lax.map(member, jnp.arange(count)), 0


batching.primitive_batchers[_conv_p] = _batch
