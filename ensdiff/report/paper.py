"""Matplotlib figures for papers: on white, in points, with the numbers that a caption needs."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

BLUE, ORANGE, GREY = "#2f6fc4", "#c4561f", "#777777"


def sheet(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure that needs no display, and its (rows, columns) axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def radius_figure(
    sizes: Int[np.ndarray, " G"] | list[int],
    radii: Float[np.ndarray, "G B"],
    slope: float | None = None,
    interval: tuple[float, float] | None = None,
    *,
    label: str = "counterfactual radius (L2)",
) -> Any:
    """Counterfactual radius against the size of the training set, both on logarithmic axes.

    Every sample is a point; the line through the large points joins the median of each size, the bar the quartiles.

    Args:
        sizes: (G,) training units N, all different.
        radii: (G, B) radius of each sample, > 0: the largest influence of a single unit. NaN where a size has fewer
            samples than others.
        slope: of log radius against log N, as fitted elsewhere; drawn through the mean of the logarithms, where every
            least-squares line goes.
        interval: (low, high) of the slope, drawn as a band about the same point.
        label: of the vertical axis.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: shapes that do not fit, sizes or radii that are not positive, an interval without its slope.

    >>> figure = radius_figure([100, 1000], np.array([[0.5, 0.7], [0.2, 0.3]]), slope=-0.39, interval=(-0.5, -0.3))
    >>> figure.axes[0].get_legend_handles_labels()[1]
    ['samples', 'slope -0.39 (-0.50 to -0.30)', 'median, quartiles']
    """
    from matplotlib.ticker import LogFormatter

    sizes_G, radii_GB = np.asarray(sizes), np.asarray(radii, float)
    if sizes_G.ndim != 1 or radii_GB.ndim != 2 or len(sizes_G) != len(radii_GB) or not radii_GB.size:
        raise ValueError(f"sizes {sizes_G.shape}, radii {radii_GB.shape}: expected (G,) sizes and (G, B) radii")
    if (sizes_G <= 0).any() or len(np.unique(sizes_G)) != len(sizes_G):
        raise ValueError(f"sizes={sizes_G.tolist()}: expected positive numbers of training units, each once")
    empty = np.flatnonzero(np.isnan(radii_GB).all(1))
    if len(empty):
        raise ValueError(f"size {sizes_G[empty[0]]} has no radius: leave it out")
    if (radii_GB <= 0).any() or np.isinf(radii_GB).any():
        raise ValueError("radii on a logarithmic axis must be positive and finite (NaN where there is no sample)")
    if interval is not None and slope is None:
        raise ValueError(f"interval={interval} without its slope: give both")

    order = np.argsort(sizes_G)
    sizes_G, radii_GB = sizes_G[order], radii_GB[order]
    figure, ((axes,),) = sheet(4.2, 3.0)
    axes.set(xscale="log", yscale="log", xlabel="training units N", ylabel=label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xticks(sizes_G, [f"{N:,}" for N in sizes_G])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter())
    every = np.broadcast_to(sizes_G[:, None], radii_GB.shape)
    axes.plot(every.ravel(), radii_GB.ravel(), ".", color=GREY, alpha=0.35, markersize=4, label="samples")
    low_G, median_G, high_G = np.nanquantile(radii_GB, (0.25, 0.5, 0.75), axis=1)
    axes.errorbar(
        sizes_G, median_G, (median_G - low_G, high_G - median_G), fmt="o-", color=BLUE, markersize=5, linewidth=1.2,
        capsize=2, label="median, quartiles",
    )  # fmt: skip
    if slope is not None:
        log_radii = np.log(radii_GB)
        seen = ~np.isnan(log_radii)
        x0, y0 = np.log(every)[seen].mean(), log_radii[seen].mean()
        x = np.log(np.geomspace(sizes_G[0], sizes_G[-1], 50))
        text = f"slope {slope:.2f}"
        if interval is not None:
            text += f" ({interval[0]:.2f} to {interval[1]:.2f})"
            ends = [np.exp(y0 + end * (x - x0)) for end in interval]
            axes.fill_between(np.exp(x), np.minimum(*ends), np.maximum(*ends), color=ORANGE, alpha=0.15, linewidth=0)
        axes.plot(np.exp(x), np.exp(y0 + slope * (x - x0)), "--", color=ORANGE, linewidth=1.2, label=text)
    axes.legend(fontsize=7, frameon=False)
    return figure
