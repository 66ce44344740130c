"""Stores of projected gradients on the disk, for data sets whose gradients do not fit in memory or are used often.

A store is a folder with one table (`ensdiff.attribution.gradients.table`) per output and set of items:

```
gradients/
  loss/              gradients of the loss of the training items
  loss_held_out/     the same of items that no member saw, for p-values
  square/ ...        gradients of other outputs
```
N items take ``N * K * (2 * G * D + 4)`` bytes per output: 3.3 GB for N = 50,000, K = 16, G * D = 2,048 and one output.
Tables can be added later; all of a store are of one ensemble and have the same draws and projection.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
from tqdm import tqdm

from ensdiff import hosts
from ensdiff.attribution.gradients.config import GradientConfig, Output
from ensdiff.attribution.gradients.features import projected_gradients
from ensdiff.attribution.gradients.stored import HELD_OUT, GradientStore
from ensdiff.attribution.gradients.table import Table, TableSettings, damaged_chunks, describe, read_table
from ensdiff.attribution.gradients.writer import TableWriter, check_space, format_size
from ensdiff.attribution.pictures import Pictures
from ensdiff.data import Dataset, DataWarning
from ensdiff.data.conditions import describe_spec
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.files.checksums import DamagedError
from ensdiff.files.writing import lock, make_folder
from ensdiff.runs.identity import check_data
from ensdiff.settings import check_value

CHUNK = 64
"""Items per chunk: an interruption loses at most the work of one chunk."""
SHARED = ("draws", "parts", "dimension", "projection", "seed")
"""Fields of `GradientConfig` that gradients depend on. The others say how to make scores of them."""


def store_bytes(config: GradientConfig, members: int, items: int, outputs: int = 1) -> int:
    """Return the bytes that the gradients of a number of items take on the disk.

    >>> store_bytes(GradientConfig(parts=1, draws=16, dimension=2048), members=16, items=50_000)
    3280000000
    """
    settings = TableSettings("", "", "", items, members, **{name: getattr(config, name) for name in SHARED})
    return outputs * settings.nbytes


def write_gradients(
    folder: str | os.PathLike,
    params: Ensemble,
    data: Dataset,
    outputs: Sequence[Output] = ("loss",),
    config: GradientConfig | None = None,
    *,
    held_out: Dataset | None = None,
    chunk: int = CHUNK,
    memory_budget: int | None = None,
    progress: bool = False,
    say: Callable[[str], Any] | None = None,
) -> GradientStore:
    """Compute the projected gradients of all items under all members, and store them in a folder.

    After an interruption, the same call continues: finished chunks are compared with their checksums and kept. On the
    same devices, the result has the same bits as without an interruption. Outputs and held-out items may be added to a
    store by a later call. With several processes, all must call it; their devices share the work, and process 0 writes.

    Args:
        folder: the folder of the store.
        params: the ensemble.
        data: its training data.
        outputs: the quantities whose gradients are stored: "trak" needs ``"loss"``, "d-trak" ``"square"``, and "das"
            ``"loss"`` and ``"output"``.
        config: draws and projection; the other fields have no influence.
        held_out: items that no member saw, whose gradients are stored too.
        chunk: items that are computed and written together.
        memory_budget: bytes of gradients that a device may hold.
        progress: whether to show a progress bar.
        say: called with lines about the size of the store and the expected time, such as `print`.

    Returns:
        The store, opened.

    Raises:
        ValueError: unknown outputs, data that are not those of the ensemble (`ensdiff.check_data`), held-out items of
            another shape, or a folder with gradients of another ensemble, other data, draws or projections.
        DamagedError: the settings of an existing table are damaged.
        FolderInUseError: another process writes into the folder.
        OSError: the disk has not enough space, or cannot be written to. Finished chunks are kept.

    Warns:
        DamageWarning: finished chunks do not match their checksums, and are recomputed.

    >>> config = GradientConfig(draws=4, parts=2, dimension=32)
    >>> store = write_gradients("gradients", params, data, ["loss"], config)
    >>> store.train("loss").shape, store.member("loss", 3)[:5].shape
    ((8, 40, 2, 32), (5, 2, 32))
    """
    config = GradientConfig() if config is None else config
    for output in outputs:
        check_value("output", output, Output)
    if not outputs or len(set(outputs)) < len(outputs):
        raise ValueError(f"outputs={tuple(outputs)}: expected one or more different outputs")
    check_value("chunk", chunk, int)
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: expected at least 1 item")
    check_data(params, data)
    _check_held_out(data, held_out)
    folder = pathlib.Path(folder)
    sources = [(data, "")] if held_out is None else [(data, ""), (held_out, HELD_OUT)]
    for source, _ in sources:
        source.check_present("a store of gradients")
    tables = [(source, output, which) for source, which in sources for output in outputs]
    writers = [
        TableWriter(folder / f"{output}{which}", _settings(params, source, output, config), chunk)
        for source, output, which in tables
    ]
    items, size = sum(writer.settings.items for writer in writers), sum(writer.settings.nbytes for writer in writers)
    say = say if say is not None and hosts.is_writer() else _silent
    counts = " and ".join(f"{source.items:,}{which.replace('_', ' ')}" for source, which in sources)
    say(
        f"{folder}: gradients of {' and '.join(outputs)} of {counts} items under {params.members} members, "
        f"{config.parts} x {config.dimension} numbers each: {format_size(size)}"
    )
    with contextlib.ExitStack() as stack:

        def begin() -> list[tuple[int, list[int]]]:
            make_folder(folder)
            stack.enter_context(lock(folder))
            _check_others(folder, writers[0].settings)
            check_space(folder, writers)
            found = [writer.begin() for writer in writers]
            return [(writer.chunk, todo) for writer, todo in zip(writers, found, strict=True)]

        jobs = [
            _Job(writer, number, output, source, slice(number * rows, min((number + 1) * rows, source.items)))
            for writer, (source, output, _), (rows, todo) in zip(writers, tables, hosts.decide(begin), strict=True)
            for number in todo
        ]
        left = sum(job.size for job in jobs)
        if left < items:
            say(f"{items - left:,} of {items:,} gradients are finished and kept")
        with hosts.progress_bar(items, "gradients", "item", shown=progress, done=items - left) as bar:
            for j, job in enumerate(jobs):
                began = time.monotonic()
                pictures = Pictures(job.source.images[job.items], job.source.conditions_of(job.items))
                phi_KnGD = projected_gradients(params, pictures, job.output, config, memory_budget=memory_budget)
                hosts.decide(functools.partial(job.writer.write, job.number, phi_KnGD))
                bar.update(job.size)
                left -= job.size
                if j < 2 and left:
                    with bar.external_write_mode():  # not on the line of the progress bar
                        say(_expectation(job.size, time.monotonic() - began, left, compiled=j == 0))
    return open_gradients(folder, params, data, held_out=held_out, check=False)


class _Job(NamedTuple):
    """The items of one chunk: the table to write to, the number of the chunk, the output, and which items they are."""

    writer: TableWriter
    number: int
    output: Output
    source: Dataset
    items: slice

    @property
    def size(self) -> int:
        """Number of items."""
        return self.items.stop - self.items.start


def _silent(_: str) -> None:
    pass


def _expectation(count: int, seconds: float, left: int, *, compiled: bool) -> str:
    """Return how long the remaining gradients will take, if they take as long as the last ones did."""
    about = "at most" if compiled else "about"
    took = f"{count} items took {seconds:.3g} s{', compilation included' if compiled else ''}"
    return f"{took}: {about} {tqdm.format_interval(seconds / count * left)} for the other {left:,}"


def open_gradients(
    folder: str | os.PathLike,
    params: Ensemble,
    data: Dataset,
    *,
    held_out: Dataset | None = None,
    check: bool = True,
) -> GradientStore:
    """Open a store of the gradients of an ensemble and its training data.

    Args:
        folder: the folder that `write_gradients` wrote.
        params: the ensemble.
        data: its training data.
        held_out: the held-out items, to compare them with those of the store.
        check: whether to compare all numbers with their checksums, which reads the whole store once.

    Raises:
        FileNotFoundError: the folder holds no gradients.
        ValueError: the gradients are of another ensemble or other items, or a newer version wrote them.
        DamagedError: a file is missing or was changed. The message names it.

    >>> config = GradientConfig(draws=4, parts=2, dimension=32)
    >>> _ = write_gradients("gradients", params, data, ["loss"], config)
    >>> open_gradients("gradients", params, data).outputs
    ('loss',)
    """
    folder = pathlib.Path(folder)
    tables = hosts.decide(lambda: _read_tables(folder))
    if not tables:
        raise FileNotFoundError(
            f"{folder} holds no gradients: write them with python -m experiments.gradients or write_gradients"
        )
    check_data(params, data)
    configs = {}
    for name, table in tables.items():
        source = held_out if name.endswith(HELD_OUT) else data
        configs[name] = GradientConfig(**{field: getattr(table.settings, field) for field in SHARED})
        output: Any = table.settings.output
        expected = (
            _settings(params, source, output, configs[name])
            if source is not None
            else dataclasses.replace(table.settings, fingerprint=params.fingerprint, members=params.members)
        )
        if different := expected.differences(table.settings):
            raise ValueError(f"{folder / name} holds other gradients than those asked for: {different}")
    if len(set(configs.values())) > 1:
        raise ValueError(f"{folder} is a mixture of gradients with different draws or projections: delete it")
    if check:
        hosts.decide(lambda: _check_tables(folder, tables))
    return GradientStore(folder, next(iter(configs.values())), tables)


def _settings(params: Ensemble, data: Dataset, output: Output, config: GradientConfig) -> TableSettings:
    shared = {name: getattr(config, name) for name in SHARED}
    return TableSettings(params.fingerprint, data.digest(), output, data.items, params.members, **shared)


def _read_tables(folder: pathlib.Path) -> dict[str, Table]:
    names = [output + which for which in ("", HELD_OUT) for output in get_args(Output)]
    found = {name: read_table(folder / name) for name in names}
    return {name: table for name, table in found.items() if table is not None}


def _check_tables(folder: pathlib.Path, tables: Mapping[str, Table]) -> None:
    for name, (settings, chunk, sums, complete) in tables.items():
        if complete and (damaged := damaged_chunks(folder / name, settings, chunk, sums)):
            raise DamagedError(
                f"{describe(folder / name, damaged, chunk, settings.items)}; writing the gradients again, with the "
                "same settings, recomputes only these items"
            )


def _check_held_out(data: Dataset, held_out: Dataset | None) -> None:
    if held_out is None:
        return
    if held_out.shape != data.shape:
        raise ValueError(f"the held-out items are images of {held_out.shape}: expected {data.shape}, as the data")
    if held_out.condition_spec != data.condition_spec:
        ours, theirs = (
            "none" if d.condition_spec is None else describe_spec(d.condition_spec) for d in (data, held_out)
        )
        raise ValueError(
            f"the conditions of the held-out items are {theirs}, those of the data {ours}: expected the same"
        )
    seen = np.isin(held_out.manifest().sha256, data.manifest().sha256)
    if seen.all():
        raise ValueError("all held-out items are training items: expected items that no member saw")
    if seen.any():
        what = f"{seen.sum()} of the {len(seen)} held-out items are copies of training items in every byte"
        hosts.warn(f"{what}: p-values become too large", DataWarning, stacklevel=3)


def _check_others(folder: pathlib.Path, wanted: TableSettings) -> None:
    """Check that all tables of the folder, also those that are not asked for, have the settings of the new ones."""
    for name, table in _read_tables(folder).items():
        own = table.settings
        same = dataclasses.replace(wanted, output=own.output, data=own.data, items=own.items)
        if different := same.differences(table.settings):
            raise ValueError(
                f"{folder / name} holds other gradients: {different}. Choose another folder, or delete {folder}"
            )
