"""Convolution of one member that stays fast when an ensemble stacks its members, on every backend, forward and reverse.

A convolution is a trilinear form in its input x, its kernel k and a direction y of its output. The output, the input
gradient and the kernel gradient are its three partial derivatives, and each is linear in two arguments. One primitive
represents all three; its parameter ``out`` selects one. Derivatives of any order and mode are therefore convolutions
again, and each backend can compute each of them in its fastest way:

- Inside a loop, XLA's CPU backend computes the gradients that autodiff produces one or two hundred times slower than
  the convolution itself. On CPUs, both gradients are therefore written as plain convolutions.
- Other backends use the gradients of autodiff.

How the members of one device are computed is a dial between two ends. At one end, a compiled loop computes one member
after another: only one member's activations are alive at a time, and compiling takes as long as for one member. At the
other end, all members are computed together, by `jax.vmap`, which fills a large device with small networks. Between
them, members are computed in groups: together inside of a group, and one group after another
(`ensdiff.ensemble.members`; ``UNetConfig.stack`` is the size of a group).

The *strategy* decides what a convolution of several members becomes (its *form*), and which algorithm computes one
member:

- ``"map"``: members are always computed one by one, each with a plain convolution.
- ``"winograd"``: the same, but on CPUs `ensdiff.models.winograd` computes the 3x3 convolutions of wide layers, with 16
  products instead of 36. Compiling takes longer. The kernel gradient is the same as with ``"map"``.
- ``"grouped"``: one grouped convolution for the group, which is what `jax.vmap` makes of a plain convolution.
- ``"matmul"``: shifted copies of the input (im2col) times the kernels, one batched matrix product for the group.
- ``"loop"``: one plain convolution per member, written out.

The last three are `STACKED`, the forms for groups of any size. In a group of one, all strategies but ``"winograd"``
are the plain convolution. All strategies compute the same sums up to rounding. If only the inputs are stacked, they
become one larger batch.

``"auto"`` stands for the strategy in a table, which may differ in predictions and in training. On accelerators,
training times the candidates instead (`ensdiff.training.tuning`). ``"measure"`` is ``"auto"``, but training times them
on every platform.
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

Strategy = Literal["auto", "measure", "map", "winograd", "grouped", "matmul", "loop"]
Precision = Literal["default", "highest"]
Out = Literal["y", "x", "k"]

STACKED: tuple[Strategy, ...] = ("grouped", "matmul", "loop")
"""The strategies that can compute several members together."""

AUTO: dict[str, Strategy] = {"cpu": "map", "tpu": "map", "gpu": "map"}
"""The strategy that ``"auto"`` stands for where nothing is timed. The CPU's was chosen by measurement
(`experiments.benchmark`, table "strategies") and the TPU's from compiled programs (BUILD.md); the GPU's is not
measured."""

AUTO_PREDICTING: dict[str, Strategy] = {**AUTO, "cpu": "winograd"}
"""The same for computations without a gradient with respect to parameters: sampling, landscapes, Jacobians and losses,
which all use `apply_member`. A `UNet` applied directly uses `AUTO`. Chosen from the same table."""


def resolve(strategy: Strategy, platform: str | None = None, *, predicting: bool = False) -> Strategy:
    """Return the strategy, with ``"auto"`` and ``"measure"`` replaced by what they mean where nothing is timed.

    This depends on the platform, by default the default backend's.
    """
    check_value("conv", strategy, Strategy)
    if strategy not in ("auto", "measure"):
        return strategy
    return (AUTO_PREDICTING if predicting else AUTO).get(jax.default_backend() if platform is None else platform, "map")


def one_by_one(strategy: Strategy) -> bool:
    """Return whether a strategy always computes members one after another, in a compiled loop."""
    return resolve(strategy) not in STACKED


def lax_precision(precision: Precision) -> str | None:
    """Return a precision as JAX's products take it; ``"default"`` is None, so that JAX's own setting decides."""
    return None if precision == "default" else precision


def conv2d(
    x_BHWC: Float[ArrayLike, "B H W C"],
    kernel: Float[ArrayLike, "h w C D"],
    *,
    stride: int = 1,
    padding: int = 1,
    strategy: Strategy = "auto",
    precision: Precision = "default",
) -> Float[Array, "B I J D"]:
    """Compute a two-dimensional convolution (cross-correlation), channels last, with equal zero padding on all sides.

    Args:
        x_BHWC: the input.
        kernel: (h, w, C, D) weights.
        stride: stride in both directions.
        padding: number of rows and columns of zeros added on each side.
        strategy: how members are computed; see the module docstring.
        precision: of the products, here and in all derivatives; see `UNetConfig`.

    >>> conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()[1]
    [6.0, 9.0, 9.0, 6.0]
    """
    if kernel.shape[:2] == (1, 1) and stride == 1 and padding == 0:
        return jnp.einsum("bhwc,cd->bhwd", x_BHWC, kernel[0, 0], precision=lax_precision(precision))
    size = tuple((n + 2 * padding - k) // stride + 1 for n, k in zip(x_BHWC.shape[1:3], kernel.shape[:2], strict=True))
    how = {"strategy": resolve(strategy), "precision": lax_precision(precision)}
    return _conv_p.bind(x_BHWC, kernel, out="y", size=size, stride=stride, padding=padding, **how)


def upsampled_conv2d(
    x_BHWC: Float[Array, "B H W C"],
    kernel: Float[Array, "3 3 C D"],
    *,
    strategy: Strategy = "auto",
    precision: Precision = "default",
) -> Float[Array, "B 2*H 2*W D"]:
    """Repeat each pixel to 2x2, then apply a 3x3 convolution padded by 1, with about 4/9 of the products.

    Several of the nine taps of an output pixel meet copies of one input pixel, so their weights are added first. Each
    of the four parities (a, b) of an output pixel (2i + a, 2j + b) then needs only a 2x2 kernel. The four kernels
    become the output channels of one convolution at the lower resolution.
    """
    B, H, W, C = x_BHWC.shape
    D = kernel.shape[-1]
    wide = np.result_type(kernel.dtype, np.float32)  # weights of bfloat16 are added in float32
    merge = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], wide)  # parity, tap of 2, tap of 3
    small = jnp.einsum("apr,bqs,rscd->pqcabd", merge, merge, kernel.astype(wide), precision="highest")
    small = small.astype(kernel.dtype)
    y = conv2d(x_BHWC, small.reshape(2, 2, C, 4 * D), strategy=strategy, precision=precision)
    y = y.reshape(B, H + 1, W + 1, 2, 2, D)
    rows = [jnp.stack([y[:, a : a + H, b : b + W, a, b] for b in (0, 1)], axis=3) for a in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(B, 2 * H, 2 * W, D)


def _plain(x_BHWC: Array, kernel: Array, stride: int, padding: tuple[int, int], precision: str | None) -> Array:
    return jax.lax.conv_general_dilated(
        x_BHWC,
        kernel,
        window_strides=(stride, stride),
        padding=tuple((p, p) for p in padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _patches(x_BHWC: Array, h: int, w: int, stride: int, padding: int) -> Array:
    """Return the (B, I, J, h * w * C) windows of the input, in the order of the leading axes of a kernel."""
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


def _by_lax(
    a: Array, b: Array, out: Out, size: tuple[int, int], stride: int, padding: int, precision: str | None
) -> Array:
    """Compute what ``out`` selects with XLA's convolution, or with its transposes by autodiff."""

    def conv(x, k):
        return _plain(x, k, stride, (padding, padding), precision)

    return _by_transpose(conv, a, b, out, size)


def _by_matmul(
    a: Array, b: Array, out: Out, size: tuple[int, int], stride: int, padding: int, precision: str | None
) -> Array:
    """Compute what ``out`` selects as a matrix product with the windows of the input, or as its transpose."""

    def conv(x, k):
        h, w, C, D = k.shape
        windows = _patches(x, h, w, stride, padding)
        return jnp.einsum("bijc,cd->bijd", windows, k.reshape(h * w * C, D), precision=precision)

    return _by_transpose(conv, a, b, out, size)


def _by_transpose(conv, a: Array, b: Array, out: Out, size: tuple[int, int]) -> Array:
    if out == "y":
        return conv(a, b)
    if out == "x":  # of y and k
        x = jax.ShapeDtypeStruct((a.shape[0], *size, b.shape[2]), a.dtype)
        return jax.linear_transpose(lambda x: conv(x, b), x)(a)[0]
    k = jax.ShapeDtypeStruct((*size, a.shape[-1], b.shape[-1]), a.dtype)
    return jax.linear_transpose(lambda k: conv(a, k), k)(b)[0]


def _on_cpu(
    a: Array, b: Array, out: Out, size: tuple[int, int], stride: int, padding: int, precision: str | None
) -> Array:
    """Compute what ``out`` selects with convolutions that XLA's CPU backend runs at full speed even inside loops."""
    if out == "y":
        return _plain(a, b, stride, (padding, padding), precision)
    if stride > 1:
        return _by_matmul(a, b, out, size, stride, padding, precision)
    if out == "x":
        h, w = b.shape[:2]
        return _plain(a, jnp.flip(b, (0, 1)).swapaxes(2, 3), 1, (h - 1 - padding, w - 1 - padding), precision)
    if b.shape[1] > a.shape[1] or b.shape[2] > a.shape[2]:  # else XLA swaps input and kernel
        a, padding = jnp.pad(a, ((0, 0), (padding, padding), (padding, padding), (0, 0))), 0

    # sum_bij x[b, i + p, j + q, c] y[b, i, j, d]: channels are the batch, images are channels, y is the kernel
    k = _plain(a.transpose(3, 1, 2, 0), b.transpose(1, 2, 0, 3), 1, (padding, padding), precision)
    return k.transpose(1, 2, 0, 3)


WIDE = 20
"""Smallest ``C D / (C + D)`` of a layer for which Winograd's filtering is used: the ratio of saved products to
transformed values. Below it, a CPU gains nothing and compiling takes longer (`experiments.benchmark`, table
"layers")."""

TILES = 64
"""Smallest number of 2x2 output tiles for which it is used. Transforming a kernel takes 144 multiply-adds per entry,
and each tile saves 20. Layers with this many tiles (16 images of 4x4) gained when measured; smaller layers were not
measured."""


def _on_cpu_by_winograd(
    a: Array, b: Array, out: Out, size: tuple[int, int], stride: int, padding: int, precision: str | None
) -> Array:
    """Compute the form as `_on_cpu` does, but use Winograd's filtering for "y" and "x" if it is faster."""
    fits = out != "k" and b.shape[:2] == (3, 3) and stride == padding == 1
    C, D = b.shape[2:]
    tiles = a.shape[0] * -(-a.shape[1] // 2) * -(-a.shape[2] // 2)
    if fits and C * D >= WIDE * (C + D) and tiles >= TILES and a.dtype == b.dtype == jnp.float32:
        return (winograd.output if out == "y" else winograd.input_gradient)(a, b, precision)
    return _on_cpu(a, b, out, size, stride, padding, precision)


_conv_p = Primitive("conv2d")


@_conv_p.def_abstract_eval
def _abstract(a, b, *, out, size, **_):
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


# operands of each partial derivative; its derivative with respect to either operand is one of the three again
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
    if out != "k" and not stacked[1]:  # one kernel: the stacked axis joins the batch
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
