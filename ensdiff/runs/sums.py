"""Checksums of members: one SHA-256 for each member's part of a stacked pytree.

With these, part of an ensemble can be checked without reading the rest. `ensdiff.runs.checkpoints` compares them.
"""

import concurrent.futures
import hashlib
import os
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from ensdiff import hosts


def member_sums(tree: Any) -> dict[int, str]:
    """Return the SHA-256 of each member's part of a stacked pytree.

    It covers the names, shapes, dtypes and bytes of all leaves, in the order of their names.

    Args:
        tree: arrays with a leading member axis, on this host or on devices. For a global array, only the members that
            this process holds are hashed (see `all_sums`).

    Returns:
        Hexadecimal digits by member.
    """
    rows: dict[int, list[tuple[str, np.ndarray]]] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        # a NamedTuple is read back as a dictionary
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for first, block in hosts.member_blocks(leaf).items():
            for k, row in enumerate(block, start=first):
                rows.setdefault(k, []).append((name, row))
    # hashing releases Python's global lock, so threads use all cores
    with concurrent.futures.ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        return dict(zip(rows, pool.map(_sum_rows, rows.values()), strict=True))


def _sum_rows(rows: Iterable[tuple[str, np.ndarray]]) -> str:
    state = hashlib.sha256()
    for name, row in sorted(rows, key=lambda named: named[0]):
        row = np.ascontiguousarray(row)
        state.update(f"{name} {row.shape} {row.dtype.str} ".encode())
        state.update(row.reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def all_sums(tree: Any) -> list[str]:
    """Return the `member_sums` of all members in order, from all processes. All processes must call it."""
    found: dict[int, str] = {}
    for part in hosts.exchange(member_sums(tree)):
        found |= part
    return [found[k] for k in sorted(found)]
