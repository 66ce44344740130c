"""3x3 convolutions with fewer products: Winograd's minimal filtering F(2x2, 3x3) (Lavin & Gray, arXiv 1509.09308).

In one dimension two neighbouring outputs of a filter of three taps are six products; written as
``A^T [(G k) * (B^T x)]`` they are four. In two dimensions a tile of 2x2 outputs takes 16 products instead of 36, and
each of the 16 is one matrix product over the channels, of all tiles at once.

The terms are added with coefficients 0, 1 and 1/2 in another order, and some of them are added and taken away again.
So the rounding error of an output is a few units in the last place of the largest input of its 4x4 window times the
sum of the kernel's absolute values, also where a weight of 0 would keep that input out of the plain convolution; and
what is infinite becomes NaN. On inputs of one scale, such as those of a normalised layer, it is as exact as the plain
convolution.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from ensdiff.typing import Array, ArrayLike

_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # B^T
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # G
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])  # A^T

CACHED = 2**19
"""Most bytes of the images that are worked off at once: their 16 transforms are four times as large, and so are the
products. Measured on a CPU, with 28x28 images of 32 and 64 channels."""

OVERHEAD = 0.5
"""What a part costs beside its images, in images."""

Grid = list[list[Array]]


def output(x_BHWC: Num[ArrayLike, "B H W C"], kernel: Num[ArrayLike, "3 3 C D"]) -> Float[Array, "B H W D"]:
    """The cross-correlation of stride 1 with one row and column of zeros around the input.

    Args:
        x_BHWC: images of any size.
        kernel: weights of the same floating-point type, which all sums are in.

    Raises:
        TypeError: the types differ, or are not floating-point ones.

    >>> output(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()[1]
    [6.0, 9.0, 9.0, 6.0]
    """
    if x_BHWC.dtype != kernel.dtype or not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise TypeError(f"an input of {x_BHWC.dtype} and a kernel of {kernel.dtype}: expected one floating-point type")
    B, H, W, C = x_BHWC.shape
    both = jnp.asarray(np.kron(_KERNEL, _KERNEL), kernel.dtype)
    kernels = jnp.matmul(both, kernel.reshape(9, -1), precision="highest").reshape(4, 4, *kernel.shape[2:])
    size = _part(B, H * W * C * x_BHWC.dtype.itemsize)
    number = -(-B // size)
    if number <= 1:
        return _filter(x_BHWC, kernels)
    x = jnp.pad(x_BHWC, ((0, number * size - B), (0, 0), (0, 0), (0, 0)))
    parts = jax.lax.map(lambda x: _filter(x, kernels), x.reshape(number, size, H, W, C))
    return parts.reshape(number * size, *parts.shape[2:])[:B]


def _part(images: int, image_bytes: int) -> int:
    """Images of a part: the size for which the equal parts, the last one filled up, cost least."""
    most = max(1, min(images, CACHED // max(1, image_bytes)))
    return min(range(most, 0, -1), key=lambda size: -(-images // size) * (size + OVERHEAD))


def input_gradient(y_BHWD: Num[ArrayLike, "B H W D"], kernel: Num[ArrayLike, "3 3 C D"]) -> Float[Array, "B H W C"]:
    """`output`'s derivative by its input in the direction ``y_BHWD`` of the output: it is a convolution again.

    Raises:
        TypeError: as `output`.
    """
    return output(y_BHWD, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))


def _filter(x_BHWC: ArrayLike, kernels: Array) -> Array:
    """`output` by transformed kernels (4, 4, C, D)."""
    B, H, W, C = x_BHWC.shape
    h, w = -(-H // 2), -(-W // 2)  # tiles
    x = jnp.pad(x_BHWC, ((0, 0), (1, 1 + H % 2), (1, 1 + W % 2), (0, 0)))

    def tap(i: int, j: int) -> Array:
        return jax.lax.slice(x, (0, i, j, 0), (B, i + 2 * h - 1, j + 2 * w - 1, C), (1, 2, 2, 1))

    tiles = _mix(_INPUT, [[tap(i, j) for j in range(4)] for i in range(4)])
    products = [[jnp.einsum("bhwc,cd->bhwd", tiles[i][j], kernels[i, j]) for j in range(4)] for i in range(4)]
    parities = _mix(_OUTPUT, products)
    y = jnp.stack([jnp.stack(row, 3) for row in parities], 2)
    return y.reshape(B, 2 * h, 2 * w, kernels.shape[-1])[:, :H, :W]


def _mix(matrix: np.ndarray, grid: Grid) -> Grid:
    """``matrix grid matrix^T``, each entry as one sum."""
    flat = [a for row in grid for a in row]
    return [[_combine(np.outer(p, q).ravel(), flat) for q in matrix] for p in matrix]


def _combine(coefficients: np.ndarray, arrays) -> Array:
    """The linear combination, of the arrays whose coefficients are not 0."""
    terms = [a if c == 1 else a * jnp.asarray(c, a.dtype) for c, a in zip(coefficients, arrays, strict=True) if c]
    return sum(terms[1:], start=terms[0])
