"""Autoencoders of latent diffusion models: diffusers' ``AutoencoderKL``, run by PyTorch."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ensdiff.data.images import check_images
from ensdiff.files.checksums import file_sum
from ensdiff.files.reading import installed, read_object
from ensdiff.models.space import Latents

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


class Posterior(NamedTuple):
    """The distribution of the latents of each picture: a Gaussian for every number.

    Args:
        mean: (N, h, w, C), float32.
        deviation: (N, h, w, C), its standard deviation, float32.
    """

    mean: Float[np.ndarray, "N h w C"]
    deviation: Float[np.ndarray, "N h w C"]


class Autoencoder:
    """An encoder and decoder in PyTorch, for NumPy arrays with channels last. Made by `vae`.

    Attributes:
        digest: the SHA-256 of the file of weights, as hexadecimal digits.
        shift: what is subtracted from latents for the diffusion model, one number or one per channel.
        scale: what they are multiplied by then, one number or one per channel.
        channels: C, the number of channels of the latents.
        factor: how many pixels a latent pixel stands for, in each direction.
    """

    def __init__(self, network: Any, digest: str, batch: int):
        self.digest = digest
        self._network, self._batch = network, batch
        config = network.config
        self.channels = int(config.latent_channels)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.shift, self.scale = _scaling(dict(config))

    @property
    def space(self) -> Latents:
        """The space of the latents, which names this encoder."""
        return Latents(self.shift, self.scale, _name(self.digest))

    def encode(self, images: Any) -> Posterior:
        """Return the distribution of the latents of pictures, neither shifted nor scaled.

        Args:
            images: (N, H, W, 3) or (N, H, W, 1), uint8 or floats in [0, 1]. A single channel is repeated.

        Raises:
            ValueError: the pictures have another shape or range, or H or W is no multiple of ``factor``.
        """
        images = check_images(images)
        _, H, W, c = images.shape
        wanted = int(self._network.config.in_channels)
        if c not in (1, wanted):
            raise ValueError(f"pictures with {c} channels: expected {wanted}, or 1, which is repeated")
        if H % self.factor or W % self.factor:
            raise ValueError(f"pictures of {H}x{W}: expected sides that are multiples of {self.factor}")
        means, deviations = [], []
        for part in self._parts(images):
            x = part.astype(np.float32) / np.float32(255) if part.dtype == np.uint8 else part.astype(np.float32)
            x = np.repeat(x, wanted // c, axis=-1) * 2 - 1
            posterior = self._run(lambda x: self._network.encode(x).latent_dist, x)
            means.append(_channels_last(posterior.mean))
            deviations.append(_channels_last(posterior.std))
        return Posterior(np.concatenate(means), np.concatenate(deviations))

    def decode(self, latents: Any) -> Float[np.ndarray, "N H W c"]:
        """Return pictures in [0, 1], float32, from latents as `encode` returns them; values outside are clipped.

        Raises:
            ValueError: the latents are not (N, h, w, C).
        """
        latents = np.asarray(latents, np.float32)
        if latents.ndim != 4 or latents.shape[-1] != self.channels or not len(latents):
            raise ValueError(f"latents of shape {latents.shape}: expected (N, h, w, {self.channels})")
        parts = [_channels_last(self._run(lambda z: self._network.decode(z).sample, z)) for z in self._parts(latents)]
        return np.clip((np.concatenate(parts) + 1) / 2, 0, 1)

    def _parts(self, array: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(array), self._batch):
            yield array[start : start + self._batch]

    def _run(self, function: Any, x: np.ndarray) -> Any:
        import torch

        with torch.no_grad():
            return function(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).to(self._network.device))


def vae(directory: str | os.PathLike, *, batch: int = 8, device: str | None = None) -> Autoencoder:
    """Open an autoencoder that diffusers saved. Nothing is downloaded.

    Args:
        directory: the folder with ``config.json`` and the weights, or that of a pipeline with a folder ``vae`` in it.
        batch: pictures at a time.
        device: a device of PyTorch; by default ``"cuda"`` if there is one, or else ``"cpu"``.

    Returns:
        An `Autoencoder`; its ``decode`` turns latents into pictures, and its ``space`` is that of a `Dataset` of them.

    Raises:
        FileNotFoundError: the folder, the configuration or the weights do not exist.
        ImportError: torch or diffusers is not installed.
        ValueError: it is another kind of network, or its weights cannot be read.
    """
    root, weights = _files(pathlib.Path(directory))
    with installed("an autoencoder needs PyTorch and diffusers", "vae"):
        import torch
        from diffusers import AutoencoderKL
    try:
        network = AutoencoderKL.from_pretrained(
            root,
            local_files_only=True,
            use_safetensors=weights.suffix == ".safetensors",
            low_cpu_mem_usage=False,  # otherwise diffusers recommends another package to every user
        )
    except Exception as error:  # damaged files can raise anything
        raise ValueError(f"{weights} cannot be read as an autoencoder: {error}") from error
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Autoencoder(network.to(place).eval(), file_sum(weights), batch)


def description_of(directory: str | os.PathLike) -> str:
    """Return what ``vae(directory).space.encoder`` would be, from the files alone: PyTorch is not needed.

    Raises:
        FileNotFoundError: the folder, the configuration or the weights do not exist.
        ValueError: it is another kind of network.
    """
    return _name(file_sum(_files(pathlib.Path(directory))[1]))


def _name(digest: str) -> str:
    return f"AutoencoderKL, SHA-256 of the weights {digest}"


def _files(root: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the folder of an autoencoder, which may lie in that of a pipeline, and the file of its weights."""
    if not (root / "config.json").is_file() and (root / "vae" / "config.json").is_file():
        root = root / "vae"
    kind = read_object(root / "config.json").get("_class_name")
    if kind != "AutoencoderKL":
        raise ValueError(f"{root} holds a network of the class {kind!r}: expected 'AutoencoderKL'")
    for name in WEIGHTS:
        if (root / name).is_file():
            return root, root / name
    raise FileNotFoundError(f"{root} holds no weights: expected {' or '.join(WEIGHTS)}")


def _scaling(config: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the shift and scale of a configuration. With means and deviations of channels, both are per channel."""
    factor = float(config.get("scaling_factor") or 1.0)
    means, deviations = config.get("latents_mean"), config.get("latents_std")
    if means is None or deviations is None:
        return (float(config.get("shift_factor") or 0.0),), (factor,)
    return tuple(map(float, means)), tuple(factor / float(deviation) for deviation in deviations)


def _channels_last(tensor: Any) -> np.ndarray:
    return tensor.float().cpu().numpy().transpose(0, 2, 3, 1)
