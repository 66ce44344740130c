"""Which items the members drew, recomputed over all steps from the pure function `data.batch_indices`."""

import hashlib
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from ensdiff.codes import Code
from ensdiff.data import Dataset, Manifest, Splits, batch_indices

DRAWS = 2**20
"""Number of draws of all members that are computed at a time."""


class Streams(NamedTuple):
    """The result of reading the streams of some members.

    Args:
        sha256: the hash of each member's item indices over all steps, as little-endian int64.
        violations: the first draw of each member from a unit that the member must not have seen.
    """

    sha256: dict[int, str]
    violations: list[str]


def read_streams(
    code: Code,
    manifest: Manifest,
    units: Collection[int],
    members: Collection[int],
    *,
    seed: int,
    batch: int,
    steps: int,
) -> Streams:
    """Hash the draws of members, and find draws from the given units or from units that the code forbids.

    Args:
        code: the code over all members that were trained.
        manifest: the manifest of the training data.
        units: the units that must not be drawn.
        members: the members whose draws are read.
        seed: the seed of the training.
        batch: draws per member and step.
        steps: number of steps.
    """
    splits = Splits.build(_without_images(manifest, code.units), code)
    hashes = {k: hashlib.sha256() for k in members}
    found: dict[int, str] = {}
    forbidden = np.zeros(code.units, bool)
    forbidden[list(units)] = True
    for position, index_KP in _draws(splits, seed, batch, steps):
        for k, state in hashes.items():
            items = index_KP[k]
            state.update(items.astype("<i8").tobytes())
            drawn = manifest.unit_of_item[items]
            allowed = splits.mask(items[None], slice(k, k + 1))[0] == 1
            bad = np.flatnonzero(forbidden[drawn] | ~allowed)
            if len(bad) and k not in found:
                step, place = divmod(position + int(bad[0]), batch)
                found[k] = (
                    f"member {k} draws item {items[bad[0]]} of unit {drawn[bad[0]]} at step {step}, place {place}"
                )
    return Streams({k: state.hexdigest() for k, state in hashes.items()}, [found[k] for k in sorted(found)])


def _draws(splits: Splits, seed: int, batch: int, steps: int) -> Iterator[tuple[int, Int[np.ndarray, "K P"]]]:
    """Yield the draws of all members in order, many steps at a time, with the position of the first draw.

    A draw depends only on its position ``step * batch + place``, so c steps of ``batch`` equal one of ``c * batch``.
    """
    at_once = max(1, DRAWS // (batch * splits.code.members))
    whole = steps // at_once
    for part in range(whole):
        yield part * at_once * batch, batch_indices(splits, seed, part, at_once * batch)
    for step in range(whole * at_once, steps):
        yield step * batch, batch_indices(splits, seed, step, batch)


def _without_images(manifest: Manifest, units: int) -> Dataset:
    """Return a data set of which only the units are used."""
    images = np.broadcast_to(np.uint8(0), (manifest.items, 1, 1, 1))
    return Dataset(images, manifest.unit_of_item, range(units))  # type: ignore[arg-type]
