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


def labelled_scatter(panels: Mapping[str, Mapping[str, np.ndarray]], xlabel: str, ylabel: str) -> bytes:
    """Plot (n, 2) points of several groups with the diagonal, three panels per row; the legend is in the first."""
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure, grid = sheet(3.1 * across, 3.0 * down, down, across)
    markers = "osv^D*xP+"
    for ax, (title, groups) in zip(grid.ravel(), panels.items(), strict=False):
        for marker, (name, points) in zip(markers, groups.items(), strict=False):
            ax.plot(points[:, 0], points[:, 1], marker, markersize=3.5, alpha=0.7, label=name, zorder=1)
        ax.set_rasterization_zorder(1.5)  # one picture of all points: thousands of paths would be a megabyte
        ends = [np.min([p.min() for p in groups.values()]), np.max([p.max() for p in groups.values()])]
        ax.plot(ends, ends, color="#888888", linewidth=0.8, linestyle="--")
        ax.set_title(title, fontsize=8)
        ax.set(xlabel=xlabel, ylabel=ylabel)
    for ax in grid.ravel()[len(panels) :]:
        ax.set_axis_off()
    grid.ravel()[0].legend(fontsize=6)
    return svg(figure)
