"""Settings of the gradient methods: how gradients are drawn and projected, and what the members choose among."""

import dataclasses
import itertools
from typing import Literal, NamedTuple

from ensdiff.settings import check_fields

Output = Literal["loss", "square", "output"]
"""The quantity q of (g1) whose gradient is taken: the squared error, the squared prediction, or random combinations of
the prediction's pixels."""

Levels = Literal["all", "low", "high"]
"""Which parts of the noise levels are summed: all, the half with the least noise, or the half with the most. Of an odd
number of parts, both halves contain the one in the middle."""

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""The ridges among which the members choose."""

SMALLEST_RIDGE = 1e-6
"""The smallest ridge; with a smaller one, float64 does not resolve how far a leverage (k2) is below 1."""

LEVELS: tuple[Levels, ...] = ("all", "low", "high")
"""The parts of the noise levels among which the members choose."""


class Setting(NamedTuple):
    """One way to turn projected gradients into scores.

    Args:
        ridge: lambda of (k1), as a share of the kernel's mean eigenvalue.
        levels: which parts of the noise levels are summed.
        normalize: whether each part's gradient is scaled to length 1 before it is summed.
        dimension: dimension of the gradients, a divisor of the dimension that was computed.
    """

    ridge: float
    levels: Levels = "all"
    normalize: bool = False
    dimension: int = 1024


@dataclasses.dataclass(frozen=True)
class GradientConfig:
    """How gradients are drawn, projected and compared.

    The fields that are None are chosen by the members, which judge the settings without retraining.

    Args:
        draws: draws of (t, eps) per image; their noise levels are stratified.
        parts: G, the number of equal parts into which the draws are divided by noise level. Part 0 has the least noise.
        dimension: D of the random projection.
        projection: ``"sketch"`` adds each parameter, with a random sign, to one of the D numbers; its time does not
            depend on D. ``"signs"`` multiplies by D columns of random signs. Both keep inner products on average, with
            the same error.
        seed: seed of the draws and the projection.
        ridge: lambda of (k1), as a share of the kernel's mean eigenvalue; None tries each of `RIDGES`.
        levels: which parts of the noise levels are summed; None tries ``"all"``, ``"low"`` and ``"high"``.
        normalize: whether each part's gradient is scaled to length 1 before it is summed; None tries both.
        members: whether a member's kernel uses what the member saw: it is built from these items alone, they are scored
            as removals and all others as additions. False is the plain kernel (k1) of all items.

    Raises:
        ValueError: a field of the wrong type, fewer draws or dimensions than 1, parts that do not divide the draws, or
            a ridge below `SMALLEST_RIDGE`.

    >>> config = GradientConfig(ridge=0.1, levels="all")
    >>> [setting.normalize for setting in config.settings()]
    [False, True]
    """

    draws: int = 16
    parts: int = 4
    dimension: int = 1024
    projection: Literal["sketch", "signs"] = "sketch"
    seed: int = 0
    ridge: float | None = None
    levels: Levels | None = None
    normalize: bool | None = None
    members: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.draws < 1 or self.dimension < 1:
            raise ValueError(f"draws={self.draws}, dimension={self.dimension}: expected at least 1")
        if self.parts < 1 or self.draws % self.parts:
            raise ValueError(f"parts={self.parts}: expected a divisor of draws={self.draws}, so that parts are equal")
        if self.ridge is not None and not self.ridge >= SMALLEST_RIDGE:
            raise ValueError(
                f"ridge={self.ridge}: expected a share of the mean eigenvalue, at least {SMALLEST_RIDGE:g}, or None"
            )

    def settings(self) -> tuple[Setting, ...]:
        """Return the settings among which the members choose: all combinations of what the fields leave open.

        Settings that differ only by their ridge follow one another, because one decomposition serves them all.

        >>> len(GradientConfig().settings()), len(GradientConfig(parts=1).settings())
        (24, 8)
        """
        ridges = RIDGES if self.ridge is None else (self.ridge,)
        levels = (LEVELS if self.parts > 1 else LEVELS[:1]) if self.levels is None else (self.levels,)
        normalize = (False, True) if self.normalize is None else (self.normalize,)
        return tuple(
            Setting(ridge, which, scaled, self.dimension)
            for which, scaled, ridge in itertools.product(levels, normalize, ridges)
        )
