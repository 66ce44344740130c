"""Principal components of patches as an encoder and decoder without a neural network.

A picture is cut into patches of ``patch`` x ``patch`` pixels; each patch, flattened to D numbers in [0, 1], becomes

    z = V (p - m),    p ~ V^T z + m,                                                          (1)

with the mean m and the leading eigenvectors V (C x D) of the covariance of the patches that it was fitted to. Latents
have H / patch rows, W / patch columns and C channels, and decoding is the best linear reconstruction.

Fit it to pictures that are not training data: statistics of the training data would let every picture influence every
member.
"""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from ensdiff.data.images import check_images
from ensdiff.files.npy import read_npz
from ensdiff.models.space import Latents

ROWS = 1024
"""Pictures that are fitted at a time."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pca:
    """Principal components of patches.

    Args:
        mean_D: the mean patch, float32.
        basis_CD: the components, orthonormal rows.
        variance_C: the variance of each channel of the latents of the pictures that it was fitted to.
        patch: height and width of a patch.
    """

    mean_D: Float[np.ndarray, " D"]
    basis_CD: Float[np.ndarray, "C D"]
    variance_C: Float[np.ndarray, " C"]
    patch: int

    @property
    def channels(self) -> int:
        """C, the number of channels of the latents."""
        return len(self.basis_CD)

    @property
    def space(self) -> Latents:
        """The space of the latents: one scale for all channels, with which their mean variance is 1."""
        scale = 1 / np.sqrt(max(float(self.variance_C.mean()), 1e-12))
        return Latents(scale=(float(scale),), encoder=f"PCA of {self.patch}x{self.patch} patches, {self.digest()}")

    def encode(self, images: Any) -> Float[np.ndarray, "N h w C"]:
        """Return the latents of pictures, (N, H, W, c) uint8 or in [0, 1], by equation (1), float32.

        Raises:
            ValueError: the number of channels differs from that of the fitted pictures, or a side is no multiple of
                ``patch``.
        """
        patches = _patches(images, self.patch)
        if patches.shape[-1] != len(self.mean_D):
            channels = len(self.mean_D) // self.patch**2
            raise ValueError(f"pictures with {np.shape(images)[-1]} channels: expected {channels}, as fitted")
        return np.einsum("nhwd,cd->nhwc", patches - self.mean_D, self.basis_CD, optimize=True)

    def decode(self, latents: Any) -> Float[np.ndarray, "N H W c"]:
        """Return pictures in [0, 1], float32, from latents as `encode` returns them; values outside are clipped.

        Raises:
            ValueError: the number of channels is not C.
        """
        latents = np.asarray(latents, np.float32)
        if latents.ndim != 4 or latents.shape[-1] != self.channels:
            raise ValueError(f"latents of shape {latents.shape}: expected (N, h, w, {self.channels})")
        patches = np.einsum("nhwc,cd->nhwd", latents, self.basis_CD, optimize=True) + self.mean_D
        n, h, w, D = patches.shape
        c = D // self.patch**2
        tiles = patches.reshape(n, h, w, self.patch, self.patch, c).transpose(0, 1, 3, 2, 4, 5)
        return np.clip(tiles.reshape(n, h * self.patch, w * self.patch, c), 0, 1)

    def digest(self) -> str:
        """Return the SHA-256 of the mean, the components and the size of a patch, as hexadecimal digits."""
        found = hashlib.sha256(f"ensdiff pca 1: {self.patch} {self.basis_CD.shape}\n".encode())
        for array in (self.mean_D, self.basis_CD):
            found.update(np.ascontiguousarray(array, "<f4").tobytes())
        return found.hexdigest()

    def save(self, path: str | os.PathLike) -> None:
        """Write it to an ``.npz`` file, for `load`."""
        np.savez(path, mean=self.mean_D, basis=self.basis_CD, variance=self.variance_C, patch=self.patch)


def fit(images: Any, channels: int, patch: int = 4) -> Pca:
    """Return the principal components of the patches of pictures.

    Args:
        images: (N, H, W, c), uint8 or floats in [0, 1], possibly a memory map. Not the training data.
        channels: C, the number of components, at most patch * patch * c.
        patch: height and width of a patch; H and W must be multiples of it.

    Raises:
        ValueError: there are more channels than numbers in a patch, or a side is no multiple of ``patch``.

    >>> digits = ensdiff.data.digits()
    >>> pca = fit(digits.images[:500], channels=8, patch=4)
    >>> latents = pca.encode(digits.images[500:600])
    >>> latents.shape, pca.decode(latents).shape
    ((100, 2, 2, 8), (100, 8, 8, 1))
    """
    images = images if isinstance(images, np.ndarray) else np.asarray(images)
    total: Any = 0.0
    moment: Any = 0.0
    count = 0
    for start in range(0, len(images), ROWS):
        patches = _patches(images[start : start + ROWS], patch)
        rows = patches.reshape(-1, patches.shape[-1]).astype(np.float64)
        total, moment, count = total + rows.sum(0), moment + rows.T @ rows, count + len(rows)
    mean_D = total / count
    if not 1 <= channels <= len(mean_D):
        raise ValueError(f"{channels} channels: expected 1 .. {len(mean_D)}, the numbers in a patch of {patch}x{patch}")
    variance_D, vectors_DD = np.linalg.eigh(moment / count - np.outer(mean_D, mean_D))
    basis_CD = vectors_DD[:, ::-1][:, :channels].T
    # an eigenvector's sign is arbitrary: its largest entry is made positive
    largest_C = np.take_along_axis(basis_CD, np.abs(basis_CD).argmax(1)[:, None], axis=1)
    basis_CD = basis_CD * np.where(largest_C < 0, -1.0, 1.0)
    variance_C = np.maximum(variance_D[::-1][:channels], 0)
    return Pca(mean_D.astype(np.float32), basis_CD.astype(np.float32), variance_C.astype(np.float32), patch)


def load(path: str | os.PathLike) -> Pca:
    """Return what `Pca.save` wrote.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged or holds other arrays.
    """
    path = pathlib.Path(path)
    file = read_npz(path, ["mean", "basis", "variance", "patch"])
    mean_D, basis_CD, variance_C, patch = (file[name] for name in ("mean", "basis", "variance", "patch"))
    right = basis_CD.shape == (len(variance_C), len(mean_D)) and patch.shape == () and patch.dtype.kind == "i"
    if not right or patch < 1 or len(mean_D) % patch**2:
        raise ValueError(f"{path} does not hold the components of patches: the shapes of its arrays do not match")
    return Pca(mean_D.astype(np.float32), basis_CD.astype(np.float32), variance_C.astype(np.float32), int(patch))


def _patches(images: Any, patch: int) -> Float[np.ndarray, "N h w D"]:
    """Return the flattened patches of pictures, float32 in [0, 1]."""
    images = check_images(images)
    N, H, W, c = images.shape
    if patch < 1 or H % patch or W % patch:
        raise ValueError(
            f"pictures of {H}x{W}, patches of {patch}x{patch}: expected sides that are multiples of a patch"
        )
    x = images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images.astype(np.float32)
    tiles = x.reshape(N, H // patch, patch, W // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(N, H // patch, W // patch, patch * patch * c)
