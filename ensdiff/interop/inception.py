"""Inception features from a TorchScript file. With them, the Frechet and kernel distances are FID and KID.

No package ships the weights. The published scripts (of the original TensorFlow network) take uint8 pictures of any
size, channels first, resize them internally, and return 2,048 features when called with ``return_features=True``.

A TorchScript file is a program: load only files that you trust.
"""

import os
import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from ensdiff.data.images import check_images, to_uint8
from ensdiff.files.reading import installed


def inception(path: str | os.PathLike, *, batch: int = 64) -> Callable[[np.ndarray], Float[np.ndarray, "N F"]]:
    """Return a feature function for `ensdiff.metrics.frechet_distance` and `kernel_distance`.

    Args:
        path: a TorchScript file. It is called with (n, 3, H, W) uint8 pictures, and with ``return_features=True`` if
            it has that argument. It must return (n, F) or (n, F, 1, 1) features.
        batch: pictures at a time.

    Returns:
        A function of (N, H, W, C) pictures, uint8 or in [0, 1], with 1 or 3 channels (a single one is repeated). It
        raises ValueError for pictures or features of another shape.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: torch is not installed.
        ValueError: the file is not a TorchScript file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected the TorchScript file of an Inception network")
    with installed("Inception features need PyTorch", "torch"):
        import torch
    try:
        network = torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as error:  # a damaged file can raise anything
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is not a TorchScript file: {first}") from error
    names = [argument.name for argument in network.forward.schema.arguments]
    options = {"return_features": True} if "return_features" in names else {}

    def features(images: np.ndarray) -> Float[np.ndarray, "N F"]:
        pictures = _pictures(images)
        parts = []
        with torch.no_grad():
            for start in range(0, len(pictures), batch):
                part = network(torch.from_numpy(pictures[start : start + batch]), **options)
                parts.append(np.asarray(part.cpu().numpy(), np.float64).reshape(len(part), -1))
        out = np.concatenate(parts)
        if len(out) != len(pictures):
            raise ValueError(
                f"{path} returned features of {len(out)} pictures for {len(pictures)}: expected one row per picture"
            )
        return out

    return features


def _pictures(images: np.ndarray) -> np.ndarray:
    """Return pictures as (N, 3, H, W) uint8."""
    images = to_uint8(check_images(images))
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"the images have {images.shape[-1]} channels: expected 1 or 3, channels last")
    return np.ascontiguousarray(np.repeat(images, 3 // images.shape[-1], axis=-1).transpose(0, 3, 1, 2))
