"""Figures of the studies."""

from collections.abc import Mapping, Sequence

import numpy as np

from ensdiff.data.drawing import sheet, svg
from ensdiff.metrics import Estimate


def interval_figure(panels: Mapping[str, Mapping[str, Estimate]], label: str, line: float | None = None) -> bytes:
    """Plot estimates with their intervals, one row per name and one panel per title, with a dashed line at ``line``."""
    names = list(next(iter(panels.values())))
    figure, (axes,) = sheet(2.2 + 2.4 * len(panels), 0.6 + 0.28 * len(names), 1, len(panels), sharey=True)
    for ax, (title, estimates) in zip(axes, panels.items(), strict=True):
        rows = [(y, estimates[name]) for y, name in enumerate(names) if name in estimates]
        values = np.array([e.value for _, e in rows])
        low, high = (np.array([getattr(e, end) for _, e in rows]) for end in ("low", "high"))
        reach = np.nan_to_num(np.maximum([values - low, high - values], 0))
        ax.errorbar(values, [y for y, _ in rows], xerr=reach, fmt="o", markersize=4, capsize=2)
        if line is not None:
            ax.axvline(line, color="#888888", linewidth=0.8, linestyle="--")
        ax.set(title=title, xlabel=label)
        ax.set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    return svg(figure)


def scatter_figure(x: np.ndarray, y: np.ndarray, labels: Sequence[str]) -> bytes:
    """Plot points and the diagonal."""
    figure, ((ax,),) = sheet(3.4, 3.2)
    ax.plot(x, y, ".", markersize=4, alpha=0.6)
    end = 1.05 * max(np.max(x), np.max(y))
    ax.plot([0, end], [0, end], color="#888888", linewidth=0.8, linestyle="--")
    ax.set(xlabel=labels[0], ylabel=labels[1], xlim=(0, end), ylim=(0, end))
    return svg(figure)
