"""Find the items of a manifest in a data set by their content, even if several items are equal in every byte."""

from collections import Counter, deque
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Int

from ensdiff.data.manifest import Manifest


def match_items(
    manifest: Manifest, unit_of_item: Int[np.ndarray, " n"], sha256: np.ndarray, absent: Collection[int] = ()
) -> Int[np.ndarray, " N"]:
    """Return, for each item of a manifest, the index of a given item with the same content, or -1.

    No given item is used twice. Items whose content occurs once on both sides determine which given unit corresponds to
    which unit of the manifest. Copies are then assigned within corresponding units, and the remaining copies of each
    content in order: the first to the first, the second to the second. If there are fewer given copies than in the
    manifest, the units in ``absent`` get none.

    Args:
        manifest: the manifest whose items are looked for.
        unit_of_item: unit of each given item; the numbering may differ from the manifest's.
        sha256: content hash of each given item, dtype ``S64``.
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
"""Most items that are listed when units differ."""


def unit_differences(
    manifest: Manifest, found: Int[np.ndarray, " N"], unit_of_item: Int[np.ndarray, " n"], names: Sequence[str]
) -> list[str]:
    """Return one line for each item whose unit contains different items in the manifest than in the given data.

    Only the grouping of items into units is compared: numbers and names of units may differ. If there are more than
    `SHOWN` such items, the last line gives the number of the remaining ones.

    Args:
        manifest: the manifest whose units are compared.
        found: the result of `match_items`: for each item of the manifest, the index of the given item, or -1.
        unit_of_item: unit of each given item.
        names: names of the given units.

    >>> manifest = Manifest((1, 1, 1), np.array([0, 1]), np.array([b"a", b"b"], "S64"))
    >>> unit_differences(manifest, np.array([0, 1]), np.array([1, 0]), ["ada", "bob"])
    []
    >>> unit_differences(manifest, np.array([0, 1]), np.array([0, 0]), ["ada"])
    ["item 0 belongs to unit 0 in the run's manifest, but to another, 'ada', in the data given"]
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
        f"item {here[i]} belongs to unit {said[i]} in the run's manifest, but to another, "
        f"{str(names[int(given[i])])!r}, in the data given"
        for i in wrong[:SHOWN]
    ]
    return lines + ([f"the same holds for {len(wrong) - SHOWN} more items"] if len(wrong) > SHOWN else [])


class _Stock:
    """Copies that are not yet assigned, and the correspondence between units of the manifest and given units.

    Assignments are never undone, so queues only lose entries at their front.
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
        """Let each unit of the manifest correspond to the given unit that contains most of its items."""
        votes = Counter(zip(theirs.tolist(), ours.tolist(), strict=True))
        for (unit, here), _ in sorted(votes.items(), key=lambda pair: (-pair[1], pair[0])):
            self.meant.setdefault(unit, here)
        self.taken.update(self.meant.values())

    def own(self, unit: int, content: int) -> int:
        """Assign and return a copy in the unit that corresponds to this one; -1 if there is none."""
        queue = self.of_unit.get((content, self.meant[unit])) if unit in self.meant else None
        return self._give(self._front(queue))

    def any(self, unit: int, content: int) -> int:
        """Assign and return a copy: in the corresponding unit, else in a free unit, else any; -1 if there is none."""
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
