"""Reading a store of gradients: arrays on the disk, of which only what is indexed is read."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import numpy as np
from jaxtyping import Float16, Float32

from ensdiff.attribution.gradients.config import GradientConfig, Output
from ensdiff.attribution.gradients.table import Table, rows_of
from ensdiff.data import Dataset

HELD_OUT = "_held_out"
"""Suffix of the names of tables of held-out items."""


@dataclasses.dataclass(frozen=True, eq=False)
class StoredRows:
    """The gradients of n items under one member, on the disk: an array that is read and decoded where it is indexed.

    Args:
        values_nGD: the stored numbers, a memory map.
        scales_n: what they are multiplied by.
    """

    values_nGD: Float16[np.ndarray, "n G D"]
    scales_n: Float32[np.ndarray, " n"]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, G, D)."""
        return self.values_nGD.shape

    @property
    def dtype(self) -> np.dtype:
        """Float32, the type of what is read."""
        return np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        """3."""
        return 3

    def __len__(self) -> int:
        return len(self.values_nGD)

    def __getitem__(self, items: Any) -> Float32[np.ndarray, "..."]:
        """Return the gradients of items, which are indexed as in NumPy: a slice, indices, a mask, or one item."""
        values = np.asarray(self.values_nGD[items], np.float32)
        return values * self.scales_n[items][..., None, None]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class StoredGradients:
    """The gradients of n items under K members: ``stored[k]`` is an (n, G, D) array, read where it is indexed.

    Args:
        members_K: the gradients under each member.
    """

    members_K: tuple[StoredRows, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(K, n, G, D)."""
        return (len(self.members_K), *self.members_K[0].shape)

    @property
    def dtype(self) -> np.dtype:
        """Float32, the type of what is read."""
        return np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        """4."""
        return 4

    def __len__(self) -> int:
        return len(self.members_K)

    def __getitem__(self, member: int) -> StoredRows:
        return self.members_K[member]

    def __iter__(self) -> Iterator[StoredRows]:
        return iter(self.members_K)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.stack([np.asarray(rows, dtype) for rows in self.members_K])


@dataclasses.dataclass(frozen=True, eq=False)
class GradientStore:
    """The gradients in a folder, opened by `open_gradients`.

    Args:
        folder: the folder.
        config: draws and projection of the gradients; its other fields have their default values.
        tables: all tables by name.
    """

    folder: pathlib.Path
    config: GradientConfig
    tables: Mapping[str, Table]

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The outputs whose gradients of all training items are stored."""
        return tuple(output for output in get_args(Output) if self._complete(output))

    @property
    def held_out_outputs(self) -> tuple[Output, ...]:
        """The outputs whose gradients of held-out items are stored."""
        return tuple(output for output in get_args(Output) if self._complete(output + HELD_OUT))

    def holds(self, held_out: Dataset) -> bool:
        """Return whether the held-out items of the store, if it has any, are these."""
        tables = [self.tables[output + HELD_OUT] for output in self.held_out_outputs]
        return all(table.settings.data == held_out.digest() for table in tables)

    def train(self, output: Output) -> StoredGradients:
        """Return the gradients of the training items, (K, N, G, D).

        Raises:
            ValueError: they are not stored, or not all of them.
            DamagedError: a file is missing, or its size is wrong.
        """
        return self._stored(output)

    def held_out(self, output: Output) -> StoredGradients:
        """Return the gradients of the held-out items, (K, n, G, D). It raises the same errors as `train`."""
        return self._stored(output + HELD_OUT)

    def member(self, output: Output, k: int) -> StoredRows:
        """Return the gradients of the training items under member k, (N, G, D). It raises the errors of `train`."""
        return self.train(output)[k]

    def _complete(self, name: str) -> bool:
        return name in self.tables and self.tables[name].complete

    def _stored(self, name: str) -> StoredGradients:
        if not self._complete(name):
            output, which = name.removesuffix(HELD_OUT), "held-out" if name.endswith(HELD_OUT) else "training"
            table = self.tables.get(name)
            finished = "no" if table is None else f"only {table.finished} of {table.settings.items}"
            raise ValueError(
                f"{self.folder} has {finished} gradients of {output!r} of {which} items: write them with "
                f"python -m experiments.gradients --outputs={output}, or with write_gradients"
            )
        *members, scales_nK = rows_of(self.folder / name, self.tables[name].settings).values()
        return StoredGradients(tuple(StoredRows(v, np.array(s)) for v, s in zip(members, scales_nK.T, strict=True)))

    def __repr__(self) -> str:
        items = {name: f"{table.finished} of {table.settings.items} items" for name, table in self.tables.items()}
        return f"GradientStore({self.folder}: {', '.join(f'{name} {count}' for name, count in items.items())})"
