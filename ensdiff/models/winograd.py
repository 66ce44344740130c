"""3x3 convolutions with fewer products: Winograd's minimal filtering F(2x2, 3x3) (Lavin & Gray, arXiv 1509.09308).

In one dimension, two neighbouring outputs of a three-tap filter take six products; written as
``A^T [(G k) * (B^T x)]`` they take four. In two dimensions, a tile of 2x2 outputs takes 16 products instead of 36. Each
of the 16 is one matrix product over the channels, for all tiles at once.

The terms are summed in another order, with coefficients 0, 1 and 1/2, and some are added and then subtracted again.
The rounding error of an output is therefore a few units in the last place of the largest input in its 4x4 window times
the sum of the kernel's absolute values, even if that input has weight 0 in the plain convolution. An infinite input
gives NaN. For inputs of one scale, such as those of a normalised layer, the result is as exact as the plain
convolution's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from ensdiff.typing import Array, ArrayLike

_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # B^T
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # G
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])  # A^T

CACHED = 2**19
"""Largest number of bytes of images processed at once; their 16 transforms take four times as much, and so do the
products. Measured on a CPU, with 28x28 images of 32 and 64 channels."""

OVERHEAD = 0.5
"""Fixed cost of a part, in units of the cost of one image."""

Grid = list[list[Array]]


def output(
    x_BHWC: Num[ArrayLike, "B H W C"], kernel: Num[ArrayLike, "3 3 C D"], precision: str | None = None
) -> Float[Array, "B H W D"]:
    """Return the cross-correlation of images with a 3x3 kernel, at stride 1, with one pixel of zeros around each image.

    Args:
        x_BHWC: images of any size.
        kernel: weights of the same floating-point dtype, in which all sums are computed.
        precision: of the matrix products, as JAX takes it.

    Raises:
        TypeError: the dtypes differ, or are not floating-point.

    >>> output(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()[1]
    [6.0, 9.0, 9.0, 6.0]
    """
    if x_BHWC.dtype != kernel.dtype or not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise TypeError(f"an input of {x_BHWC.dtype} and a kernel of {kernel.dtype}: expected one floating-point dtype")
    B, H, W, C = x_BHWC.shape
    both = jnp.asarray(np.kron(_KERNEL, _KERNEL), kernel.dtype)
    kernels = jnp.matmul(both, kernel.reshape(9, -1), precision="highest").reshape(4, 4, *kernel.shape[2:])
    size = _part(B, H * W * C * x_BHWC.dtype.itemsize)
    number = -(-B // size)
    if number <= 1:
        return _filter(x_BHWC, kernels, precision)
    x = jnp.pad(x_BHWC, ((0, number * size - B), (0, 0), (0, 0), (0, 0)))
    parts = jax.lax.map(lambda x: _filter(x, kernels, precision), x.reshape(number, size, H, W, C))
    return parts.reshape(number * size, *parts.shape[2:])[:B]


def _part(images: int, image_bytes: int) -> int:
    """Return the number of images per part that minimises the total cost; the last part is padded to this size."""
    most = max(1, min(images, CACHED // max(1, image_bytes)))
    return min(range(most, 0, -1), key=lambda size: -(-images // size) * (size + OVERHEAD))


def input_gradient(
    y_BHWD: Num[ArrayLike, "B H W D"], kernel: Num[ArrayLike, "3 3 C D"], precision: str | None = None
) -> Float[Array, "B H W C"]:
    """Return the gradient of `output` with respect to its input for the cotangent ``y_BHWD``, again a convolution.

    Raises:
        TypeError: the dtypes differ, or are not floating-point.
    """
    return output(y_BHWD, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), precision)


def _filter(x_BHWC: ArrayLike, kernels: Array, precision: str | None) -> Array:
    """Compute `output` from the transformed kernels (4, 4, C, D)."""
    B, H, W, C = x_BHWC.shape
    h, w = -(-H // 2), -(-W // 2)  # tiles
    x = jnp.pad(x_BHWC, ((0, 0), (1, 1 + H % 2), (1, 1 + W % 2), (0, 0)))

    def tap(i: int, j: int) -> Array:
        return jax.lax.slice(x, (0, i, j, 0), (B, i + 2 * h - 1, j + 2 * w - 1, C), (1, 2, 2, 1))

    tiles = _mix(_INPUT, [[tap(i, j) for j in range(4)] for i in range(4)])
    product = functools.partial(jnp.einsum, "bhwc,cd->bhwd", precision=precision)
    products = [[product(tiles[i][j], kernels[i, j]) for j in range(4)] for i in range(4)]
    parities = _mix(_OUTPUT, products)
    y = jnp.stack([jnp.stack(row, 3) for row in parities], 2)
    return y.reshape(B, 2 * h, 2 * w, kernels.shape[-1])[:, :H, :W]


def _mix(matrix: np.ndarray, grid: Grid) -> Grid:
    """Return ``matrix grid matrix^T``, with each entry as one sum."""
    flat = [a for row in grid for a in row]
    return [[_combine(np.outer(p, q).ravel(), flat) for q in matrix] for p in matrix]


def _combine(coefficients: np.ndarray, arrays) -> Array:
    """Return the linear combination of the arrays with non-zero coefficients."""
    terms = [a if c == 1 else a * jnp.asarray(c, a.dtype) for c, a in zip(coefficients, arrays, strict=True) if c]
    return sum(terms[1:], start=terms[0])
