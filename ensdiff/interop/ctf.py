"""Counterfactual universe files (``.ctf``), which counterfactualuniverses reads and writes.

A file is an uncompressed tar of

- ``config.json``: ``Format`` (``"ONEFILE"``: each training unit is one image), ``TrainingUnits``, ``NumberGenerated``,
  and the sizes ``TrainHeight``, ``TrainWidth``, ``TrainChannel``, ``GenHeight``, ``GenWidth``, ``GenChannel``;
- ``factual.png``: the samples;
- ``training_set.png`` (one file), or ``train_{i}_{count}.png`` for each unit of ``count`` images;
- ``leave_{i}_out.png``: the samples' exact counterfactuals (4) without unit i, counted from 1.

Every PNG is a grid of 8-bit tiles, read row by row. Files written here hold the SHA-256 of each part in its extended
header (POSIX pax, which other readers ignore), and a part that does not match is rejected.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ensdiff import hosts
from ensdiff.data import Dataset
from ensdiff.ensemble.digest import digest
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.memory import Resources
from ensdiff.files.checksums import SEAL, DamagedError, read_lines, seal_line, warn
from ensdiff.files.writing import explain, lock, make_folder, remove_folder, sweep, sync_folder, write_atomically
from ensdiff.interop.universe import MANY, ONE, SIZES, SUM, Universe
from ensdiff.runs.identity import check_data
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
) -> Universe:
    """Compute the whole landscape, every sample without every unit (4), and write a counterfactual universe file.

    Pictures are written to the folder ``PATH.partial`` as they are computed, with their checksums. An interrupted write
    continues there when it is called again with the same arguments; missing or damaged pictures are recomputed. The
    file itself appears only when it is complete and has been read back.

    Args:
        path: the file, such as ``"digits.ctf"``.
        params: the ensemble.
        samples: what `ensdiff.sample` returned.
        data: the training data; its units are the code's.
        chunk: images at a time; by default from the memory budget.
        memory_budget: maximum bytes of activations per device.
        progress: show a progress bar.

    Returns:
        The file, opened.

    Raises:
        FileExistsError: the file already exists.
        ValueError: the data are not what the ensemble was trained on (`ensdiff.check_data`), items are absent
            (`Dataset.absent`), or ``PATH.partial`` belongs to another landscape.
        DamagedError: a part changed on disk while others were computed. The same call recomputes it.
        OSError: the file cannot be written. Finished parts are kept.
    """
    path = pathlib.Path(path)
    check_samples(params, samples, "a counterfactual universe")
    check_data(params, data)
    data.check_present("a counterfactual universe, which holds them,")
    folder = path.with_name(path.name + ".partial")
    ours = digest(params, samples, data.digest())
    resources = Resources(chunk, memory_budget)

    with contextlib.ExitStack() as stack:

        def begin() -> tuple[Parts, list[int]]:
            if os.path.lexists(path):
                raise FileExistsError(f"{path} exists already; choose another name, or remove it")
            make_folder(folder)
            stack.enter_context(lock(folder))
            with _explained(folder):
                parts = Parts(folder, ours)
                _write_fixed(parts, params, samples, data)
            return parts, [i for i in range(data.units) if not parts.has(_leave(i))]

        parts, missing = hosts.decide(begin)
        B = len(samples)
        block = -(-STATES // B)
        done = data.units - len(missing)
        with hosts.progress_bar(data.units, "universe", "unit", shown=progress, done=done) as bar:
            for start in range(0, len(missing), block):
                units = missing[start : start + block]
                rows = np.repeat(params.code.ablate(np.array(units)), B, axis=0)
                which = np.tile(np.arange(B), len(units))
                images = ablated(params, samples, rows, which, resources).reshape(len(units), B, *params.image_shape)
                with _explained(folder):
                    for unit, images_B in zip(units, images, strict=True) if hosts.is_writer() else ():
                        parts.write(_leave(unit), _picture(images_B))
                bar.update(len(units))
        hosts.decide(lambda: _pack(parts, path))
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


class Parts:
    """Files of a universe that is being written, each with its checksum, in a locked folder.

    Args:
        folder: the folder.
        of: digest of everything the files are computed from.

    Raises:
        ValueError: the folder holds parts of another universe.
    """

    def __init__(self, folder: pathlib.Path, of: str):
        self.folder = folder
        sweep(folder.parent, folder.name)
        mark, self._log = folder / "digest", folder / "checksums"
        begun = mark.exists()
        if begun and mark.read_bytes() != of.encode():
            raise ValueError(
                f"{folder} holds the unfinished universe of another ensemble, other samples or other data, or one by "
                f"another version of ensdiff (or its file {mark.name} is damaged); remove it, or choose another name"
            )
        write_atomically(mark, of)
        lines = read_lines(self._log) if begun and self._log.exists() else []
        self._sums: dict[str, str] = {line["name"]: line[SEAL] for line in lines if line is not None}
        for name in list(self._sums):
            if self._read(name) is None:
                warn(f"{folder / name} is damaged or missing and is recomputed")
                del self._sums[name]
        write_atomically(self._log, "".join(map(self._line, self._sums)))

    def _line(self, name: str) -> str:
        return seal_line({"name": name, SEAL: self._sums[name]}) + "\n"

    def _read(self, name: str) -> bytes | None:
        """Return the content of a part, or None if it is not what was written."""
        path = self.folder / pathlib.PurePath(name).name
        content = path.read_bytes() if path.is_file() else b""
        return content if hashlib.sha256(content).hexdigest() == self._sums[name] else None

    def has(self, name: str) -> bool:
        """Return whether a part is finished."""
        return name in self._sums

    def write(self, name: str, content: bytes) -> None:
        """Write a part, and then its checksum."""
        write_atomically(self.folder / name, content)
        self._sums[name] = hashlib.sha256(content).hexdigest()
        with open(self._log, "a") as file:
            file.write(self._line(name))

    def items(self) -> Iterator[tuple[str, bytes, str]]:
        """Yield the name, content and checksum of every part.

        Raises:
            DamagedError: a part is not what was written.
        """
        for name in sorted(self._sums, key=lambda name: (pathlib.PurePath(name).suffix, name)):
            content = self._read(name)
            if content is None:
                raise DamagedError(
                    f"{self.folder / name} was changed after it was written; the same call recomputes it"
                )
            yield name, content, self._sums[name]


def _leave(unit: int) -> str:
    return f"leave_{unit + 1}_out.png"


def _write_fixed(parts: Parts, params: Ensemble, samples: Samples, data: Dataset) -> None:
    """Write every part that is missing, except the counterfactuals."""
    single = data.units == data.items
    for count, (H, W, _), what in (
        (len(samples), params.image_shape, "samples"),
        (data.items if single else 1, data.shape, "training images"),
    ):
        if count * H * W > _MAX_PIXELS:
            raise ValueError(f"{count} {what} of {H}x{W} make a picture of more than {_MAX_PIXELS} pixels; take fewer")
    sizes = {
        part + name: n
        for part, shape in (("Train", data.shape), ("Gen", params.image_shape))
        for name, n in zip(SIZES, shape, strict=True)
    }
    config = {
        "Format": ONE if single else MANY,
        "TrainingUnits": data.units,
        "NumberGenerated": len(samples),
        **sizes,
    }

    def training(items: np.ndarray) -> Callable[[], bytes]:
        return lambda: _picture(data.images[items])

    fixed: dict[str, Callable[[], bytes]] = {
        "config.json": lambda: (json.dumps(config, indent=1) + "\n").encode(),
        "factual.png": lambda: _picture(samples.images),
    }
    if single:
        fixed["training_set.png"] = training(np.argsort(data.unit_of_item))
    else:
        for unit in range(data.units):
            items = data.items_of(unit)
            fixed[f"train_{unit + 1}_{len(items)}.png"] = training(items)
    for name, make in fixed.items():
        if not parts.has(name):
            parts.write(name, make())


def _columns(count: int) -> int:
    """Return the columns of the widest full grid that is not wider than high, because some readers count its tiles."""
    return max(n for n in range(1, math.isqrt(count) + 1) if count % n == 0)


def _picture(images_BHWC: Any) -> bytes:
    from ensdiff.data.images import grid, to_png

    return to_png(grid(images_BHWC, _columns(len(images_BHWC)), pad=0))


def _pack(parts: Parts, path: pathlib.Path) -> None:
    """Pack the parts into the file. They are deleted once the file exists and has been read back."""
    temporary = parts.folder / "packed"
    with _explained(parts.folder):
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for name, content, sum_ in parts.items():
                info = tar.gettarinfo(parts.folder / name, arcname=name)
                info.size = len(content)
                info.pax_headers = {SUM: sum_}
                tar.addfile(info, io.BytesIO(content))
        with open(temporary, "rb") as file_to_sync:
            os.fsync(file_to_sync.fileno())
        with Universe(temporary) as packed:
            packed.check()
    if os.path.lexists(path):
        raise FileExistsError(f"{path} appeared during the computation: move it away, then repeat the call to continue")
    with _explained(parts.folder):
        os.replace(temporary, path)
        sync_folder(path.parent)
    remove_folder(parts.folder)
