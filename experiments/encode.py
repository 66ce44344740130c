"""Encode pictures to latents, by the autoencoder of a latent diffusion model or by principal components of patches.

It writes an uncompressed .npz file for the reader "latents": the latents, their scale, which encoder made them, and the
groups, labels, conditions and file names of the pictures.
With --vae, training uses the mean of each picture's latents; their standard deviations are kept in the file too.

--pipeline=DIR is a saved StableDiffusionPipeline: its autoencoder encodes the pictures, and its text encoder their
captions, for a model that is conditioned on text. The folder of pictures then has a file metadata.jsonl with a line for
each picture, such as {"file_name": "a.png", "text": "a red cat", "artist": "ada"}. --text=DIR instead takes only the
text encoder from there.

Pictures are a folder, or a reader and its options, such as fashion_mnist,size=28 or webdataset,pattern=shards.

--pca fits the components to the pictures in --fit, which must not be training pictures: statistics of these would let
every picture influence every member, so that removing a unit would no longer remove all that it did. The components
are written beside the latents, to a file that ends with .pca.npz; ensdiff.data.pca.load(file).decode shows latents.

Examples:
  python -m experiments.encode --vae=models/vae --images=my_images --size=256 --out=latents.npz
  python -m experiments.encode --pipeline=models/sd --images=my_images --size=512 --groups=artist --out=latents.npz
  python -m experiments.encode --pca=4 --patch=4 --fit=others --images=my_images --size=32 --out=latents.npz
  python -m experiments.encode --pca=4 --patch=2 --fit=fashion_mnist,split=test --images=fashion_mnist --out=latents.npz
"""

import contextlib
import os
import pathlib
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

from absl import flags

from . import common

flags.adopt_module_key_flags(common)
IMAGES = flags.DEFINE_string("images", None, "The pictures: a folder, or a reader and its options.")
OUT = flags.DEFINE_string("out", "latents.npz", "The file to write.")
VAE = flags.DEFINE_string("vae", None, "Folder of an AutoencoderKL that diffusers saved.")
PIPELINE = flags.DEFINE_string(
    "pipeline", None, "Folder of a saved StableDiffusionPipeline: its autoencoder and text encoder."
)
TEXT = flags.DEFINE_string(
    "text", None, "Folder with the folders text_encoder and tokenizer, to embed captions with; by default --pipeline."
)
CAPTION = flags.DEFINE_string("caption", "text", "Column of captions in metadata.jsonl, with --pipeline or --text.")
GROUPS = flags.DEFINE_string(
    "groups", None, "Column of groups in metadata.jsonl, such as artist; by default groups are subfolders."
)
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

    from ensdiff.files.reading import printable

    vae, text = VAE.value or PIPELINE.value, TEXT.value or PIPELINE.value
    if not IMAGES.value or (vae is None) == (PCA.value is None) or (VAE.value and PIPELINE.value):
        raise ValueError("pass --images=... and one of --vae=..., --pipeline=... and --pca=...")
    check_models()
    facts = captions(IMAGES.value, text) if text is not None or GROUPS.value else {}
    with warnings.catch_warnings():
        if facts:  # which were read from it
            warnings.filterwarnings("ignore", r".*left out 1 file: 1 \.jsonl \(such as metadata\.jsonl\)")
        data, out = _read(IMAGES.value), pathlib.Path(OUT.value)
    if PCA.value is not None:
        encode, decode, space = _components(data, out, PCA.value)
    else:
        encode, decode, space = _autoencoder(vae)
    arrays = about(data) | told(facts, data, text, out) | {
        "mean": np.array(space.mean), "scale": np.array(space.scale), "encoder": np.array(space.encoder),
        "images_digest": np.array(data.digest()),
        # relative, so that both may be moved together
        "decoder": np.array(os.path.relpath(vae or out.with_suffix(".pca.npz"), out.parent)),
    }  # fmt: skip
    print(f"{data}")
    shape = write(out, data.images, encode, arrays, BATCH.value)
    few = data.images[: BATCH.value]
    again = decode(encode(few)[0])
    error = float(np.sqrt(np.mean((again.astype(np.float64) - few.astype(np.float64) / 255) ** 2)))
    print(f"{out}: {data.items} latents of {'x'.join(map(str, shape))}, float16, scale {space.scale}")
    print(f"encoder: {space.encoder}")
    if "groups" in arrays:
        names, counts = np.unique(arrays["groups"], return_counts=True)
        few = [printable(f"{name} ({count})") for name, count in zip(names[:5], counts[:5], strict=True)]
        print(f"groups: {len(names)}, with their pictures: " + ", ".join(few) + (", ..." if len(names) > 5 else ""))
    if "condition_encoder" in arrays:
        tokens = "x".join(map(str, arrays["condition"].shape[1:]))
        print(f"captions: {len(arrays['condition'])} distinct ones of {tokens}, float16")
        print(f"text encoder: {arrays['condition_encoder']}")
    print(f"root mean square error of the first {len(few)} pictures, decoded again: {error:.4f} (of 1)")


def check_models() -> None:
    """Check that the folders of models exist, before pictures are read.

    Raises:
        FileNotFoundError: a folder does not exist, or that of a pipeline lacks one of its parts.
    """
    for flag in (VAE, PIPELINE, TEXT):
        if flag.value and not pathlib.Path(flag.value).is_dir():
            raise FileNotFoundError(f"--{flag.name}={flag.value}: there is no such folder")
    parts = ["vae", *([] if TEXT.value else ["text_encoder", "tokenizer"])] if PIPELINE.value else []
    missing = [part for part in parts if not (pathlib.Path(PIPELINE.value or "") / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"--pipeline={PIPELINE.value} has no folder {missing[0]}: expected the folder of a StableDiffusionPipeline "
            "that diffusers saved"
        )


def _read(text: str) -> Any:
    """Return the data set of a folder, or of a reader and its options."""
    from ensdiff.models.space import Pixels

    from .runs import read_data

    if pathlib.Path(text).is_dir():
        text = f"folder,path={text}" + ("" if SIZE.value is None else f",size={SIZE.value}")
    found = read_data(text, "a folder, or a reader and its options, as in fashion_mnist,size=28")
    if not isinstance(found.space, Pixels):
        raise ValueError(f"{text} holds latents: expected pictures")
    return found


def captions(folder: str, text: str | None) -> dict[str, list[Any]]:
    """Return the captions and groups of a folder's pictures, from its ``metadata.jsonl``.

    Raises:
        ValueError: it is no folder, or the pictures and lines do not belong together.
    """
    from ensdiff.data.metadata import NAME, read_metadata
    from ensdiff.data.pictures import find_pictures

    if not pathlib.Path(folder).is_dir():
        raise ValueError(f"--text, --pipeline and --groups need --images to be a folder with {NAME}, and not {folder}")
    columns: dict[str, type] = {} if text is None else {CAPTION.value: str}
    columns |= {} if GROUPS.value is None else {GROUPS.value: object}
    found = read_metadata(folder, find_pictures(folder), columns)
    uses = {"captions": CAPTION.value if text is not None else None, "groups": GROUPS.value}
    return {use: found[column] for use, column in uses.items() if column is not None}


def told(facts: dict[str, list[Any]], data: Any, text: str | None, out: pathlib.Path) -> dict[str, Any]:
    """Return captions, their embeddings and groups as arrays of a file of latents. Equal captions are stored once."""
    import numpy as np

    arrays: dict[str, Any] = {}
    if "groups" in facts:
        from ensdiff.data.categories import categories

        arrays["groups"] = categories(facts["groups"], data.items, "group")
    if text is None:
        return arrays
    from ensdiff.interop import text_encoder

    encoder, lines = text_encoder(text), facts["captions"]
    place = {caption: row for row, caption in enumerate(dict.fromkeys(lines))}
    names = [str(data.unit_names[int(unit)]) for unit in data.unit_of_item]
    return arrays | {
        "captions": np.array(lines), "names": np.array([f"{n}: {line}" for n, line in zip(names, lines, strict=True)]),
        "condition": _half(encoder.encode(list(place)), "captions"),
        "condition_rows": np.array([place[caption] for caption in lines]),
        "condition_null": encoder.null, "condition_encoder": np.array(encoder.describe()),
        "text": np.array(os.path.relpath(text, out.parent)),
    }  # fmt: skip


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
    """Return labels, groups, names and conditions of a data set, as arrays to store with its latents."""
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
                        for row in _half(values, f"latents of the pictures {start} to {start + len(mean) - 1}"):
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


def _half(values: Any, what: str) -> Any:
    import numpy as np

    with np.errstate(over="ignore"):
        half = np.asarray(values).astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"{what} exceed the range of float16")
    return half


if __name__ == "__main__":
    common.run(main, __doc__)
