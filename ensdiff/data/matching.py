"""Finding a manifest's items among others by their content, where several may be equal in every byte."""

from collections import Counter, deque
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Int

from ensdiff.data.manifest import Manifest


def match_items(
    manifest: Manifest, unit_of_item: Int[np.ndarray, " n"], sha256: np.ndarray, absent: Collection[int] = ()
) -> Int[np.ndarray, " N"]:
    """For each item of a manifest the index of an item with the same content, or -1. No item is used twice.

    Items whose content occurs once on both sides decide which unit here is which unit of the manifest. Copies then go
    to their own unit, and what is left in order: the k-th copy to the k-th copy. Where there are fewer copies here than
    in the manifest, units in ``absent`` go without.

    Args:
        manifest: whose items are looked for.
        unit_of_item: unit of each item here, in a numbering of its own.
        sha256: content hash of each item here, dtype ``S64``.
        absent: units of the manifest whose items may be missing.

    >>> manifest = Manifest((1, 1, 1), np.array([0, 1, 2]), np.array([b"a", b"b", b"a"], "S64"))
    >>> here = np.array([b"b", b"a"], "S64")
    >>> match_items(manifest, np.array([0, 1]), here, absent=[0]).tolist()
    [-1, 0, 1]
    """
    _, content, counts = np.unique(np.concatenate([manifest.sha256, sha256]), return_inverse=True, return_counts=True)
    theirs, ours = content[: manifest.items], content[manifest.items :]
    counts_here = np.bincount(ours, minlength=len(counts))
    place = np.full(len(counts), -1)
    place[ours] = np.arange(len(ours))
    copied = (counts - counts_here > 1) | (counts_here > 1)
    found = np.where(copied[theirs], -1, place[theirs])
    if copied.any():
        clear = np.flatnonzero(found >= 0)
        stock = _Stock(unit_of_item, ours, np.flatnonzero(copied[ours]))
        stock.learn(manifest.unit_of_item[clear], unit_of_item[found[clear]])
        scarce = counts_here < counts - counts_here
        last = scarce[theirs] & np.isin(manifest.unit_of_item, list(absent))
        for items in (np.flatnonzero(copied[theirs] & ~last), np.flatnonzero(copied[theirs] & last)):
            for choose in (stock.own, stock.any):
                for item in items[found[items] < 0].tolist():
                    found[item] = choose(int(manifest.unit_of_item[item]), int(theirs[item]))
    return found


SHOWN = 10
"""Items that are named where units differ."""


def unit_differences(
    manifest: Manifest, found: Int[np.ndarray, " N"], unit_of_item: Int[np.ndarray, " n"], names: Sequence[str]
) -> list[str]:
    """A line for each item that belongs together with others in the manifest and with others again here.

    Numbers and names of units may differ; which items are of one unit may not. Of more than `SHOWN` items, the last
    line says how many.

    Args:
        manifest: whose units are compared.
        found: what `match_items` returned: the index here of each of the manifest's items, or -1.
        unit_of_item: unit of each item here.
        names: of the units here.

    >>> manifest = Manifest((1, 1, 1), np.array([0, 1]), np.array([b"a", b"b"], "S64"))
    >>> unit_differences(manifest, np.array([0, 1]), np.array([1, 0]), ["ada", "bob"])
    []
    >>> unit_differences(manifest, np.array([0, 1]), np.array([0, 0]), ["ada"])
    ["item 0 is of unit 0 in the run's manifest, and of another, 'ada', in the data given"]
    """
    here = np.flatnonzero(found >= 0)
    said, given = manifest.unit_of_item[here], unit_of_item[found[here]]
    pairs, counts = np.unique(np.stack([said, given], 1), axis=0, return_counts=True)
    of_said, of_given = {}, {}  # the most frequent partner of each unit
    for (m, d), _ in sorted(zip(pairs.tolist(), counts.tolist(), strict=True), key=lambda pair: pair[1]):
        of_said[m], of_given[d] = d, m
    agree = [of_said[m] == d and of_given[d] == m for m, d in pairs.tolist()]
    if all(agree):
        return []
    wrong_pairs = {tuple(pair) for pair, good in zip(pairs.tolist(), agree, strict=True) if not good}
    wrong = [i for i, pair in enumerate(zip(said.tolist(), given.tolist(), strict=True)) if pair in wrong_pairs]
    lines = [
        f"item {here[i]} is of unit {said[i]} in the run's manifest, and of another, {str(names[int(given[i])])!r}, in "
        "the data given"
        for i in wrong[:SHOWN]
    ]
    return lines + ([f"so are {len(wrong) - SHOWN} more items"] if len(wrong) > SHOWN else [])


class _Stock:
    """Copies that are still to be given, and which unit here is taken for which of the manifest.

    A copy that is given and a unit that is taken stay so: queues only lose what is at their front.
    """

    def __init__(self, unit_of_item: np.ndarray, content: np.ndarray, items: np.ndarray):
        self.unit_of_item = unit_of_item
        self.given: set[int] = set()
        self.meant: dict[int, int] = {}
        self.taken: set[int] = set()
        self.of_unit: dict[tuple[int, int], deque[int]] = {}
        self.unclaimed: dict[int, deque[int]] = {}
        self.every: dict[int, deque[int]] = {}
        for item, c, unit in zip(items.tolist(), content[items].tolist(), unit_of_item[items].tolist(), strict=True):
            self.of_unit.setdefault((c, unit), deque()).append(item)
            self.unclaimed.setdefault(c, deque()).append(item)
            self.every.setdefault(c, deque()).append(item)

    def learn(self, theirs: np.ndarray, ours: np.ndarray) -> None:
        """Take for each unit of the manifest the unit here that most of its items are in."""
        votes = Counter(zip(theirs.tolist(), ours.tolist(), strict=True))
        for (unit, here), _ in sorted(votes.items(), key=lambda pair: (-pair[1], pair[0])):
            self.meant.setdefault(unit, here)
        self.taken.update(self.meant.values())

    def own(self, unit: int, content: int) -> int:
        """A copy in the unit that is taken for this one; -1 for none."""
        queue = self.of_unit.get((content, self.meant[unit])) if unit in self.meant else None
        return self._give(self._front(queue))

    def any(self, unit: int, content: int) -> int:
        """A copy of its own, else in a unit that is taken for no other, else any; -1 for none."""
        item = self.own(unit, content)
        if item < 0:
            queue = self.unclaimed.get(content)
            while queue and (queue[0] in self.given or int(self.unit_of_item[queue[0]]) in self.taken):
                queue.popleft()
            item = self._give(queue[0] if queue else -1)
            if item >= 0 and unit not in self.meant:
                self.meant[unit] = int(self.unit_of_item[item])
                self.taken.add(self.meant[unit])
        return item if item >= 0 else self._give(self._front(self.every.get(content)))

    def _front(self, queue: deque[int] | None) -> int:
        while queue and queue[0] in self.given:
            queue.popleft()
        return queue[0] if queue else -1

    def _give(self, item: int) -> int:
        if item >= 0:
            self.given.add(item)
        return item
