"""Encode pictures to latents, by the autoencoder of a latent diffusion model or by principal components of patches.

It writes an uncompressed .npz file for the reader "latents": the latents, their scale, which encoder made them, and the
groups, labels, conditions and file names of the pictures.
With --vae, training uses the mean of each picture's latents; their standard deviations are kept in the file too.

Pictures are a folder, or a reader and its options, such as fashion_mnist,size=28 or webdataset,pattern=shards.

--pca fits the components to the pictures in --fit, which must not be training pictures: statistics of these would let
every picture influence every member, so that removing a unit would no longer remove all that it did. The components
are written beside the latents, to a file that ends with .pca.npz; ensdiff.data.pca.load(file).decode shows latents.

Examples:
  python -m experiments.encode --vae=models/vae --images=my_images --size=256 --out=latents.npz
  python -m experiments.encode --pca=4 --patch=4 --fit=others --images=my_images --size=32 --out=latents.npz
  python -m experiments.encode --pca=4 --patch=2 --fit=fashion_mnist,split=test --images=fashion_mnist --out=latents.npz
"""

import contextlib
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments import common

flags.adopt_module_key_flags(common)
IMAGES = flags.DEFINE_string("images", None, "The pictures: a folder, or a reader and its options.")
OUT = flags.DEFINE_string("out", "latents.npz", "The file to write.")
VAE = flags.DEFINE_string("vae", None, "Folder of an AutoencoderKL that diffusers saved.")
PCA = flags.DEFINE_integer("pca", None, "Channels of latents by principal components of patches, instead of --vae.")
PATCH = flags.DEFINE_integer("patch", 4, "Height and width of a patch, with --pca.")
FIT = flags.DEFINE_string("fit", None, "Pictures to fit the components to: a folder, or a reader and its options.")
FIT_ON_TRAINING = flags.DEFINE_bool("fit_on_training", False, "Fit the components to --images. This breaks isolation.")
SIZE = flags.DEFINE_integer("size", None, "Crop pictures of folders to their centre square, and resize to this side.")
BATCH = flags.DEFINE_integer("batch", 8, "Pictures at a time.")
ISOLATION = (
    "statistics of the training pictures let every picture influence every member, so that removing a unit no longer "
    "removes all that it did"
)


def main() -> None:
    """Encode all pictures and write the file."""
    import numpy as np

    if not IMAGES.value or (VAE.value is None) == (PCA.value is None):
        raise ValueError("pass --images=... and one of --vae=... and --pca=...")
    data, out = _read(IMAGES.value), pathlib.Path(OUT.value)
    if PCA.value is not None:
        encode, decode, space = _components(data, out, PCA.value)
    else:
        encode, decode, space = _autoencoder(VAE.value)
    arrays = about(data) | {
        "mean": np.array(space.mean), "scale": np.array(space.scale), "encoder": np.array(space.encoder),
        "images_digest": np.array(data.digest()),
        # relative, so that both may be moved together
        "decoder": np.array(os.path.relpath(VAE.value or out.with_suffix(".pca.npz"), out.parent)),
    }  # fmt: skip
    print(f"{data}")
    shape = write(out, data.images, encode, arrays, BATCH.value)
    few = data.images[: BATCH.value]
    again = decode(encode(few)[0])
    error = float(np.sqrt(np.mean((again.astype(np.float64) - few.astype(np.float64) / 255) ** 2)))
    print(f"{out}: {data.items} latents of {'x'.join(map(str, shape))}, float16, scale {space.scale}")
    print(f"encoder: {space.encoder}")
    print(f"root mean square error of the first {len(few)} pictures, decoded again: {error:.4f} (of 1)")


def _read(text: str) -> Any:
    """Return the data set of a folder, or of a reader and its options."""
    from ensdiff.models.space import Pixels
    from experiments.runs import read_data

    if pathlib.Path(text).is_dir():
        text = f"folder,path={text}" + ("" if SIZE.value is None else f",size={SIZE.value}")
    found = read_data(text, "a folder, or a reader and its options, as in fashion_mnist,size=28")
    if not isinstance(found.space, Pixels):
        raise ValueError(f"{text} holds latents: expected pictures")
    return found


def _autoencoder(folder: Any) -> tuple[Callable, Callable, Any]:
    from ensdiff.interop import vae

    found = vae(folder, batch=BATCH.value)
    return found.encode, found.decode, found.space


def _components(data: Any, out: pathlib.Path, channels: int) -> tuple[Callable, Callable, Any]:
    """Fit components to other pictures than the training data, and write them beside the latents."""
    import dataclasses

    import numpy as np

    from ensdiff.data import pca

    if (FIT.value is None) != FIT_ON_TRAINING.value:
        raise ValueError(
            f"--pca needs --fit=..., pictures that are not training data: {ISOLATION}. To do so nevertheless, pass "
            "--fit_on_training instead"
        )
    if FIT.value is None:
        print(f"warning: the components are fitted to the training pictures: {ISOLATION}")
        fitted = data.images
    else:
        others = _read(FIT.value)
        same = np.isin(others.manifest().contents, data.manifest().contents)
        if same.any():
            raise ValueError(
                f"{same.sum()} of the {others.items} pictures in --fit are also in --images, such as "
                f"{others.unit_names[int(others.unit_of_item[np.argmax(same)])]}: {ISOLATION}. Fit to other pictures"
            )
        fitted = others.images
    found = pca.fit(fitted, channels, PATCH.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    found.save(out.with_suffix(".pca.npz"))
    space = found.space
    if FIT.value is None:
        space = dataclasses.replace(space, encoder=f"{space.encoder}, fitted to the training data")
    return lambda images: (found.encode(images), None), found.decode, space


def about(data: Any) -> dict[str, Any]:
    """Return what is known about the items of a data set, as arrays of a file of latents."""
    import numpy as np

    from ensdiff.data.units import ItemNames
    from ensdiff.models.condition import flatten

    arrays: dict[str, Any] = {}
    if data.labels is not None:
        arrays["labels"] = data.labels
    if data.units < data.items:
        arrays["groups"] = np.array(list(data.unit_names))[data.unit_of_item]
    elif not isinstance(data.unit_names, ItemNames):
        names = [str(data.unit_names[int(unit)]) for unit in data.unit_of_item]
        arrays["names"] = np.array(names)
        parts = [pathlib.PurePath(name).parts for name in names]
        if all(len(part) > 1 for part in parts):
            arrays["groups"] = np.array([part[0] for part in parts])
    if data.condition is not None:
        arrays |= {
            f"condition/{path}" if path else "condition": array for path, array in flatten(data.condition).items()
        }
        named = [leaf.names for leaf in data.condition_spec.leaves if leaf.names is not None]
        if len(named) == 1 and len(data.condition_spec.leaves) == 1:
            arrays["class_names"] = np.array(named[0])
    return arrays


def write(out: pathlib.Path, images: Any, encode: Callable, arrays: dict[str, Any], batch: int) -> tuple[int, ...]:
    """Encode pictures in batches, write a file of latents, and return the shape of one latent.

    Nothing but one batch is in memory at a time.
    """
    import numpy as np

    from ensdiff import hosts
    from ensdiff.files.npy import growing_npy

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        place = pathlib.Path(folder)
        files: dict[str, Any] = {}
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(hosts.progress_bar(len(images), "encoding", "picture", shown=True))
            for start in range(0, len(images), batch):
                mean, deviation = encode(images[start : start + batch])
                for name, values in (("latents", mean), ("deviation", deviation)):
                    if values is not None:
                        if name not in files:
                            files[name] = stack.enter_context(growing_npy(place / f"{name}.npy"))
                        for row in _half(values, start):
                            files[name].append(row)
                bar.update(len(mean))
        for name, array in arrays.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(place / f"{name}.npy", array)
        with zipfile.ZipFile(place / "all.zip", "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(place.rglob("*.npy")):
                archive.write(file, file.relative_to(place).as_posix())
        (place / "all.zip").replace(out)
    return files["latents"].row[0]


def _half(values: Any, start: int) -> Any:
    import numpy as np

    with np.errstate(over="ignore"):
        half = np.asarray(values).astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"latents of the pictures {start} to {start + len(half) - 1} exceed the range of float16")
    return half


if __name__ == "__main__":
    common.run(main, __doc__)
