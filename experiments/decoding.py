"""Decoders of latents on the command line: --decode, or the decoder that the file of the training latents names."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from absl import flags

from . import building, runs


class Codec(NamedTuple):
    """An encoder and decoder of latents.

    Args:
        path: where it was read.
        encode: from pictures to latents.
        decode: from latents to pictures in [0, 1].
        encoder: its description, as the space of latents records it.
        factor: pixels per latent pixel, in each direction.
        grey: whether the pictures are grey, and not in colours.
    """

    path: pathlib.Path
    encode: Callable
    decode: Callable
    encoder: str
    factor: int
    grey: bool

    def made(self, space: Any) -> bool:
        """Return whether this encoder made the latents of a space, by the digest in its description."""
        return self.encoder in (space.encoder or "")


@functools.lru_cache(maxsize=1)
def open_codec(path: str | pathlib.Path) -> Codec:
    """Open the folder of an AutoencoderKL, or the file of components that experiments.encode --pca wrote.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is something else.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        from ensdiff.interop import vae

        found = vae(path)
        return Codec(
            path, lambda images: found.encode(images).mean, found.decode, str(found.space.encoder), found.factor, False
        )
    from ensdiff.data import pca

    parts = pca.load(path)
    return Codec(
        path, parts.encode, parts.decode, str(parts.space.encoder), parts.patch, len(parts.mean_D) == parts.patch**2
    )


def codec_of(params: Any) -> Codec | None:
    """Return the decoder of --decode, or the one that the file of the run's latents names; None if there is none.

    Raises:
        ValueError: --decode for members that generate pixels, or it is not the decoder of the run's latents.
    """
    from ensdiff.models.space import Pixels

    given = flags.FLAGS.decode
    if isinstance(params.space, Pixels):
        if given:
            raise ValueError(f"--decode={given}: the members generate pixels, which need no decoder; leave it out")
        return None
    if given:
        found = open_codec(given)
        if params.space.encoder is not None and not found.made(params.space):
            raise ValueError(
                f"--decode={given} is {found.encoder}, but the latents were made by {params.space.encoder}: give the "
                "decoder of the training latents"
            )
        return found
    for path in named():
        try:
            found = open_codec(path)
        except (OSError, ValueError, ImportError) as error:
            print(f"decoder: {path} is left out: {error}")
            continue
        if found.made(params.space):
            return found
        print(f"decoder: {path} is left out: the latents were made by another, {params.space.encoder}")
    return None


def named() -> Iterator[pathlib.Path]:
    """Yield the existing decoders that the file of latents in the config of --run names, which are beside it."""
    from ensdiff.files.npy import npz_names, read_npz

    run = runs.run_folder()
    if not (run / "config.json").exists():
        return
    for section in building.data_sections(run, building.read_run_config(run)):
        path = pathlib.Path(str(section.get("path")))
        if (
            section["name"] != "latents"
            or path.suffix != ".npz"
            or not path.is_file()
            or "decoder" not in npz_names(path)
        ):
            continue
        decoder = pathlib.Path(os.path.normpath(path.parent / str(read_npz(path, ["decoder"])["decoder"])))
        if decoder.exists():
            yield decoder


def decoder_of(params: Any, like: Any) -> Callable | None:
    """Return the function that shows images of the members as pictures; None if these are pixels.

    Without a decoder, latents are shown roughly, and a line says so.

    Args:
        params: the ensemble.
        like: latents (n, H, W, C) whose range is that of a rough view.
    """
    from ensdiff.data.viewing import viewer
    from ensdiff.models.space import Pixels

    found = codec_of(params)
    if isinstance(params.space, Pixels):
        return None
    if found is not None:
        print(f"decoder: {found.path}")
        return found.decode
    print("decoder: none found, so pictures show the first channels of the latents; --decode=... names one")
    return viewer(params.space, like=like)


def needed(params: Any, what: str) -> Codec:
    """Return the encoder and decoder of latents.

    Raises:
        ValueError: there is none.
    """
    found = codec_of(params)
    if found is None:
        raise ValueError(
            f"{what} needs the encoder and decoder of the run's latents: pass --decode=..., the folder of an "
            "AutoencoderKL or the .pca.npz file that experiments.encode wrote"
        )
    return found
