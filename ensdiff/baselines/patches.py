"""Nearest patches, without a model: how much of an image each training image would give to an ideal local denoiser.

(n1) The noise prediction that minimises the training loss at noise level sigma, among those that see one patch at a
time, is a weighted mean of training patches. Their weights are a softmax of ``-|z - y|^2 / (2 sigma^2)``, where z is
the noisy patch over its signal, y is a training patch and sigma is the noise over the signal. Over the noise, the
exponent is on average ``-|x - y|^2 / (2 sigma^2)`` plus a constant, x the patch without noise, and this is what is used
here: the scores are deterministic.

(n2) A training image's score is its share of the weight: the sum over its patches at the same place and a few pixels
around it, averaged over the places in the query and over pairs of a patch size and a noise level, small patches at low
noise and large ones at high noise.

The idea is that of "Nonparametric Data Attribution for Diffusion Models" (arXiv 2510.14269). This is our own reading of
it, not their algorithm.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

BLOCK_BYTES = 2**26
"""Bytes of one intermediate array."""


def default_sizes(height: int, width: int) -> tuple[int, int, int]:
    """Return the sides of small, middle and large patches: 3 pixels, half of the image, and the whole image.

    >>> default_sizes(8, 8), default_sizes(32, 48)
    ((3, 4, 8), (3, 16, 32))
    """
    side = min(height, width)
    return min(3, side), max(1, side // 2), side


def patch_scores(
    query_BHWC: Float[np.ndarray, "B H W C"],
    train_nHWC: Float[np.ndarray, "n H W C"],
    sizes: tuple[int, ...],
    noise: tuple[float, ...],
    shift: int,
) -> Float[np.ndarray, "B n"]:
    """Return each training image's share (n2) of every query, in [0, 1]; the shares of a query sum to 1.

    Args:
        query_BHWC: the queries, in [-1, 1].
        train_nHWC: the training images, in [-1, 1].
        sizes: sides of the patches; larger than the image means the image's side.
        noise: sigma that belongs to each size, in units of [-1, 1].
        shift: the most pixels by which a training patch may be shifted in each direction.

    >>> images = np.stack([np.full((4, 4, 1), value) for value in (-1.0, 0.0, 1.0)])
    >>> patch_scores(images[:1] + 0.1, images, (2,), (1.0,), 0).round(3).tolist()
    [[0.832, 0.168, 0.001]]
    """
    H, W = query_BHWC.shape[1:3]
    shares = [
        [share(x_HWC, train_nHWC, (min(size, H), min(size, W)), sigma, shift) for x_HWC in query_BHWC]
        for size, sigma in zip(sizes, noise, strict=True)
    ]
    return np.mean(shares, axis=0)


def share(
    x_HWC: np.ndarray, train_nHWC: np.ndarray, size: tuple[int, int], sigma: float, shift: int
) -> Float[np.ndarray, " n"]:
    """Return the shares of one query for one patch size and noise level, a block of places at a time."""
    H, W = x_HWC.shape[:2]
    n, places = len(train_nHWC), H - size[0] + 1
    rows = max(1, BLOCK_BYTES // (8 * n * W) - size[0] + 1)
    total_n = np.zeros(n)
    for top in range(0, places, rows):
        shape = n, min(rows, places - top), W - size[1] + 1
        weight_nIJ = np.full(shape, -np.inf)  # the logarithm of the sum over shifts, then the share
        for square_nIJ, inside in _distances(x_HWC, train_nHWC, size, shift, range(top, top + shape[1])):
            held = weight_nIJ[:, *inside]
            np.logaddexp(held, square_nIJ / (-2 * sigma**2), out=held)
        weight_nIJ = np.exp(weight_nIJ - weight_nIJ.max(0))
        total_n += (weight_nIJ / weight_nIJ.sum(0)).sum((1, 2))
    return total_n / (places * (W - size[1] + 1))


def _distances(
    x_HWC: np.ndarray, train_nHWC: np.ndarray, size: tuple[int, int], shift: int, rows: range
) -> Iterator[tuple[np.ndarray, tuple[slice, slice]]]:
    """Yield, for each shift, the squared distances of the query's patches in some rows to the shifted training patches.

    With them come the rows and columns, within the block, of the places whose shifted patch is inside the image.
    """
    (h, w), (H, W) = size, x_HWC.shape[:2]
    for dy in range(-shift, shift + 1):
        for dx in range(-shift, shift + 1):
            top, bottom = max(rows.start, -dy), min(rows.stop, H - h + 1 - dy)
            left, right = max(0, -dx), min(W - w + 1, W - w + 1 - dx)
            if top >= bottom or left >= right:
                continue
            x = x_HWC[top : bottom + h - 1, left : right + w - 1]
            y = train_nHWC[:, top + dy : bottom + h - 1 + dy, left + dx : right + w - 1 + dx]
            difference = x - y
            square = np.einsum("nijc,nijc->nij", difference, difference)
            yield (
                _box_sums(_box_sums(square, h, 1), w, 2),
                (slice(top - rows.start, bottom - rows.start), slice(left, right)),
            )


def _box_sums(values: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Return the sums of ``length`` neighbours along an axis."""
    total = np.cumsum(np.moveaxis(values, axis, -1), -1)
    total[..., length:] -= total[..., :-length].copy()
    return np.moveaxis(total[..., length - 1 :], -1, axis)
