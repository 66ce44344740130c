"""Counterfactual universe files (``.ctf``), which counterfactualuniverses reads and writes.

A file is an uncompressed tar of

- ``config.json``: ``Format`` (``"ONEFILE"``: each training unit is one image), ``TrainingUnits``, ``NumberGenerated``,
  and the sizes ``TrainHeight``, ``TrainWidth``, ``TrainChannel``, ``GenHeight``, ``GenWidth``, ``GenChannel``;
- ``factual.png``: the samples;
- ``training_set.png`` (one file), or ``train_{i}_{count}.png`` for each unit of ``count`` images;
- ``leave_{i}_out.png``: the samples' exact counterfactuals (4) without unit i, counted from 1;
- ``conditions.json``, which other readers ignore, if the members are conditional: the ``captions`` of the samples,
  their ``guidance``, their ``conditions``, the rows of each array of the condition tree by its path, and ``null``, the
  row of each that stands for no condition;
- ``units.json``, which other readers ignore, if the training units have names: ``names``, in the units' order.

Every PNG is a grid of 8-bit tiles, read row by row. Files written here hold the SHA-256 of each part in its extended
header (POSIX pax, which other readers ignore), and a part that does not match is rejected.
"""

import contextlib
import functools
import hashlib
import io
import json
import math
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ensdiff import hosts
from ensdiff.codes.unit_names import UnitNames
from ensdiff.data import Dataset
from ensdiff.data.viewing import Decode, viewer
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.memory import Resources
from ensdiff.files.writing import explain, sync_folder
from ensdiff.interop.universe import CONDITIONS, MANY, ONE, SIZES, SUM, UNITS, Universe
from ensdiff.models.condition import flatten
from ensdiff.runs.identity import check_data
from ensdiff.runs.pieces import pieces
from ensdiff.sampling.captions import captions_of
from ensdiff.sampling.sample import Samples, ablated, check_samples

STATES = 4096
"""Number of images computed before they are written: enough to fill chunks, and few enough to lose little work."""
_MAX_PIXELS = 178_000_000
"""Pixels of the largest grid that is written. Pillow rejects larger ones as decompression bombs."""


def read(path: str | os.PathLike) -> Universe:
    """Open a counterfactual universe file (see `Universe`)."""
    return Universe(path)


def write(
    path: str | os.PathLike,
    params: Ensemble,
    samples: Samples,
    data: Dataset,
    *,
    chunk: int | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
    decode: Decode | None = None,
) -> Universe:
    """Compute the whole landscape, every sample without every unit (4), and write a counterfactual universe file.

    Pictures are kept in the folder ``PATH.partial`` as they are computed, with their checksums. An interrupted write
    continues there when it is called again with the same arguments; missing or damaged pictures are recomputed. The
    file itself appears only when it is complete and has been read back; then the kept pictures are removed.

    Args:
        path: the file, such as ``"digits.ctf"``.
        params: the ensemble.
        samples: what `ensdiff.sample` returned.
        data: the training data; its units are the code's.
        chunk: images at a time; by default from the memory budget.
        memory_budget: maximum bytes of activations per device.
        progress: show a progress bar.
        decode: for latents, a function from latents (n, H, W, C) to pictures (n, h, w, c) in [0, 1]. The file holds
            the pictures of samples and of training items.

    Returns:
        The file, opened.

    Raises:
        FileExistsError: the file already exists.
        ValueError: the data are not what the ensemble was trained on (`ensdiff.check_data`), items are absent
            (`Dataset.absent`), a picture would be too large, or ``decode`` is missing for latents.
        FolderInUseError: another process writes this file.
        DamagedError: what was read back is not what was written.
        OSError: the file cannot be written. Finished parts are kept.
    """
    path = pathlib.Path(path)
    check_samples(params, samples, "a counterfactual universe")
    check_data(params, data)
    view = viewer(params.space, decode)
    data.check_present("a counterfactual universe, which holds them,")
    if hosts.decide(lambda: os.path.lexists(path)):
        raise FileExistsError(f"{path} exists already; choose another name, or remove it")
    folder = path.with_name(path.name + ".partial")
    resources = Resources(chunk, memory_budget)
    B = len(samples)
    block = -(-STATES // B)

    def pictures_without(units: np.ndarray) -> dict[str, np.ndarray]:
        rows, which = np.repeat(params.code.ablate(units), B, axis=0), np.tile(np.arange(B), len(units))
        images = ablated(params, samples, rows, which, resources).reshape(len(units), B, *params.image_shape)
        parts = zip(units, images, strict=True)
        return {f"leave_{unit + 1}_out.png": np.frombuffer(_picture(view(some)), np.uint8) for unit, some in parts}

    decoder = () if decode is None else (hashlib.sha256(_picture(view(samples.images))).hexdigest(),)
    with pieces(folder, params, samples, data.digest(), *decoder) as kept:
        packed = folder / "packed"
        with _explained(folder), _archive(packed) as add:
            hosts.decide(lambda: add(_fixed_parts(params, samples, data, view)))
            with hosts.progress_bar(data.units, "universe", "unit", shown=progress) as bar:
                for start in range(0, data.units, block):
                    units = np.arange(start, min(start + block, data.units))
                    pictures = kept.get_all(functools.partial(pictures_without, units), units)
                    hosts.decide(functools.partial(add, pictures))
                    bar.update(len(units))
        hosts.decide(lambda: _finish(packed, path))
    return Universe(path)


@contextlib.contextmanager
def _explained(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{folder} could not be written to: {explain(error, folder)}; finished parts are kept, and the same call "
            "continues from them"
        ) from error


@contextlib.contextmanager
def _archive(path: pathlib.Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Write a tar file while a ``with`` block runs; yield the function that adds parts to it, for process 0 only."""

    def add(parts: Mapping[str, Any]) -> None:
        for name, part in parts.items():
            content = bytes(part)
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(content), {SUM: hashlib.sha256(content).hexdigest()}
            tar.addfile(info, io.BytesIO(content))

    if not hosts.is_writer():
        yield add
        return
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        yield add
    with open(path, "rb") as file_to_sync:
        os.fsync(file_to_sync.fileno())


def _fixed_parts(params: Ensemble, samples: Samples, data: Dataset, view: Callable) -> dict[str, bytes]:
    """Return every part except the counterfactuals, by name."""
    generated = view(samples.images)
    shapes = {"Train": view(data.images[:1]).shape[1:], "Gen": generated.shape[1:]}
    single = data.units == data.items
    for count, (H, W, _), what in (
        (len(samples), shapes["Gen"], "samples"),
        (data.items if single else 1, shapes["Train"], "training images"),
    ):
        if count * H * W > _MAX_PIXELS:
            raise ValueError(f"{count} {what} of {H}x{W} make a picture of more than {_MAX_PIXELS} pixels; take fewer")
    sizes = {part + name: n for part, shape in shapes.items() for name, n in zip(SIZES, shape, strict=True)}
    config = {
        "Format": ONE if single else MANY,
        "TrainingUnits": data.units,
        "NumberGenerated": len(samples),
        **sizes,
    }

    parts = {"config.json": (json.dumps(config, indent=1) + "\n").encode(), "factual.png": _picture(generated)}
    if params.condition is not None:
        rows = {path: array.tolist() for path, array in flatten(samples.cond).items()}
        null = {path: array[0].tolist() for path, array in flatten(params.condition.null(1)).items()}
        told = {
            "captions": captions_of(params, samples.cond, samples.captions),
            "guidance": samples.guidance, "conditions": rows, "null": null,
        }  # fmt: skip
        parts[CONDITIONS] = (json.dumps(told, indent=1) + "\n").encode()
    names = UnitNames.of(data.unit_names) or params.names_of()
    if names is not None:
        parts[UNITS] = (json.dumps({"names": list(names)}, indent=1) + "\n").encode()
    if single:
        return parts | {"training_set.png": _picture(view(data.images[np.argsort(data.unit_of_item)]))}
    items = enumerate(map(data.items_of, range(data.units)), start=1)
    return parts | {f"train_{i}_{len(some)}.png": _picture(view(data.images[some])) for i, some in items}


def _columns(count: int) -> int:
    """Return the columns of the widest full grid that is not wider than high, because some readers count its tiles."""
    return max(n for n in range(1, math.isqrt(count) + 1) if count % n == 0)


def _picture(images_BHWC: Any) -> bytes:
    from ensdiff.data.images import grid, to_png

    return to_png(grid(images_BHWC, _columns(len(images_BHWC)), pad=0))


def _finish(packed: pathlib.Path, path: pathlib.Path) -> None:
    """Read the file back, and give it its name."""
    with _explained(packed.parent), Universe(packed) as universe:
        universe.check()
    if os.path.lexists(path):
        raise FileExistsError(f"{path} appeared during the computation: move it away, then repeat the call to continue")
    with _explained(packed.parent):
        os.replace(packed, path)
        sync_folder(path.parent)
