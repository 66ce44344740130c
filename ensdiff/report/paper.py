"""Matplotlib figures for papers: on white, sized in points, with the numbers that a caption needs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ensdiff.data.drawing import sheet, show
from ensdiff.metrics.bootstrap import mean
from ensdiff.report.page import Table
from ensdiff.typing import ArrayLike

BLUE, ORANGE, GREY = "#2f6fc4", "#c4561f", "#777777"


def radius_figure(
    sizes: ArrayLike | list[int],
    radii: ArrayLike,
    slope: float | None = None,
    interval: tuple[float, float] | None = None,
    *,
    label: str = "counterfactual radius (L2)",
) -> Any:
    """Plot the counterfactual radius against the size of the training set, both on logarithmic axes.

    Each sample is a small point. The mean at each size is a large point, with a bar from the lower to the upper
    quartile.

    Args:
        sizes: (G,) numbers of training units N, all different.
        radii: (G, B) radius of each sample, > 0: the largest influence of a single unit. Use NaN to fill up a size with
            fewer samples than others.
        slope: the slope of the logarithm of the mean radius against the logarithm of N, as `ensdiff.metrics.power_law`
            fits it. The line passes through the mean of the points, as every least-squares line does.
        interval: (low, high) of the slope, drawn as a band about the same point.
        label: the label of the vertical axis.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: shapes do not fit, sizes or radii are not positive, or an interval is given without a slope.

    >>> figure = radius_figure([100, 1000], np.array([[0.5, 0.7], [0.2, 0.3]]), slope=-0.39, interval=(-0.5, -0.3))
    >>> figure.axes[0].get_legend_handles_labels()[1]
    ['samples', 'mean, and quartiles', 'slope -0.39 (-0.50 to -0.30)']
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

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
        raise ValueError(f"interval={interval} without a slope: pass both")

    order = np.argsort(sizes_G)
    sizes_G, radii_GB = sizes_G[order], radii_GB[order]
    figure, ((axes,),) = sheet(4.2, 3.0)
    axes.set(xscale="log", yscale="log", xlabel="training units N", ylabel=label)
    axes.set_xticks(sizes_G, [f"{N:,}" for N in sizes_G])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    every = np.broadcast_to(sizes_G[:, None], radii_GB.shape)
    axes.plot(every.ravel(), radii_GB.ravel(), ".", color=GREY, alpha=0.35, markersize=4, label="samples")
    mean_G = np.nanmean(radii_GB, axis=1)
    axes.vlines(sizes_G, *np.nanquantile(radii_GB, (0.25, 0.75), axis=1), color=BLUE, linewidth=1.2)
    axes.plot(sizes_G, mean_G, "o", color=BLUE, markersize=5, label="mean, and quartiles")
    if slope is not None:
        x0, y0 = np.log(sizes_G).mean(), np.log(mean_G).mean()
        x = np.log(np.geomspace(sizes_G[0], sizes_G[-1], 50))
        text = f"slope {slope:.2f}"
        if interval is not None:
            text += f" ({interval[0]:.2f} to {interval[1]:.2f})"
            ends = [np.exp(y0 + end * (x - x0)) for end in interval]
            axes.fill_between(np.exp(x), np.minimum(*ends), np.maximum(*ends), color=ORANGE, alpha=0.15, linewidth=0)
        axes.plot(np.exp(x), np.exp(y0 + slope * (x - x0)), "--", color=ORANGE, linewidth=1.2, label=text)
    axes.legend(fontsize=7, frameon=False)
    return figure


def landscape_figure(
    images_BHWC: ArrayLike,
    counterfactuals_MBHWC: ArrayLike,
    names: Sequence[str] | None = None,
    *,
    influence_MB: ArrayLike | None = None,
    pictures_MHWC: np.ndarray | None = None,
) -> Any:
    """Draw a sheet of counterfactuals with one row per sample: first as generated, then without each unit.

    Args:
        images_BHWC: the samples, in [0, 1].
        counterfactuals_MBHWC: what `ensdiff.counterfactuals` returned for M units.
        names: the names of the M units; by default their positions in the list.
        influence_MB: the influences to write below the counterfactuals.
        pictures_MHWC: a training image of each unit, to show in a row above.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: shapes do not fit.

    >>> figure = landscape_figure(np.zeros((2, 4, 4, 1)), np.ones((3, 2, 4, 4, 1)), ["a", "b", "c"])
    >>> len(figure.axes)
    8
    """
    images, without = np.asarray(images_BHWC), np.asarray(counterfactuals_MBHWC)
    if images.ndim != 4 or without.shape != (len(without), *images.shape) or not without.size:
        raise ValueError(
            f"images {images.shape}, counterfactuals {without.shape}: expected (B, H, W, C) and (M, B, H, W, C)"
        )
    M, B = without.shape[:2]
    labels = [f"unit {i}" for i in range(M)] if names is None else list(names)
    if len(labels) != M:
        raise ValueError(f"{M} units, but {len(labels)} names: expected one per unit")
    if pictures_MHWC is not None and len(pictures_MHWC) != M:
        raise ValueError(f"{M} units, but {len(pictures_MHWC)} pictures: expected one per unit")
    if influence_MB is not None and np.shape(influence_MB) != (M, B):
        raise ValueError(f"influence_MB has shape {np.shape(influence_MB)}: expected {(M, B)}")
    above = int(pictures_MHWC is not None)
    figure, axes = sheet(0.9 * (M + 1), 1.05 * (B + above), B + above, M + 1)
    for cell in axes.ravel():
        cell.set_axis_off()
    for i in range(M):
        if pictures_MHWC is not None:
            show(axes[0, i + 1], pictures_MHWC[i])
        axes[0, i + 1].set_title(labels[i], fontsize=7, parse_math=False)
    axes[above, 0].set_title("generated", fontsize=7)
    for b in range(B):
        show(axes[b + above, 0], images[b])
        for i in range(M):
            cell = axes[b + above, i + 1]
            show(cell, without[i, b])
            if influence_MB is not None:
                cell.text(0.5, -0.04, f"{influence_MB[i, b]:.3g}", transform=cell.transAxes, ha="center", va="top",
                          fontsize=6)  # fmt: skip
    return figure


def comparison_figure(
    values: Mapping[str, ArrayLike],
    label: str,
    costs: Mapping[str, float] | None = None,
    *,
    cost: str = "network calls",
) -> Any:
    """Plot one measure of several methods: a point per sample, and the mean with its interval over samples.

    Args:
        values: (B,) values of each method, such as rank correlations with exact influences. NaN is left out.
        label: the label of the measure.
        costs: the cost of each method, > 0, shown in a second panel on a logarithmic axis.
        cost: the label of that panel.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: there are no methods, a method has no values or no cost, or a cost is not positive.

    >>> figure = comparison_figure({"differential": [0.97, 0.95], "loss": [0.1, -0.1]}, "Spearman with exact")
    >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    ['differential', 'loss']
    """
    kept = _by_method(values)
    if costs is not None and (set(costs) != set(kept) or min(costs.values()) <= 0):
        raise ValueError(f"costs of {sorted(costs)}: expected a positive cost for each of {sorted(kept)}")
    figure, (row,) = sheet(6.4 if costs else 4.4, 0.7 + 0.35 * len(kept), 1, 2 if costs else 1)
    places = np.arange(len(kept))
    for y, value_B in zip(places, kept.values(), strict=True):
        row[0].plot(value_B, np.full(len(value_B), y), "|", color=GREY, alpha=0.6, markersize=7)
        estimate = mean(value_B)
        row[0].plot([estimate.low, estimate.high], [y, y], color=BLUE, linewidth=2)
        row[0].plot([estimate.value], [y], "o", color=BLUE, markersize=5)
    row[0].set(xlabel=label, yticks=places, yticklabels=list(kept))
    if costs is not None:
        row[1].barh(places, [costs[name] for name in kept], color=GREY, height=0.5)
        row[1].set(xscale="log", xlabel=cost, yticks=[])
    for axes in row:
        axes.set_ylim(len(kept) - 0.5, -0.5)
    return figure


def comparison_table(measures: Mapping[str, Mapping[str, ArrayLike]], title: str = "Methods", note: str = "") -> Table:
    """Compare methods by several measures in a table for `write_page` (or for ``tabulate``).

    Args:
        measures: for each measure, the (B,) values of each method. A method may lack some measures.
        title: the title of the table.
        note: how to read the table, put before the explanation of its cells.

    Returns:
        A `Table` of the means over samples with their 95 % intervals.

    >>> comparison_table({"top-1": {"screen": [1, 1, 1], "loss": [0, 0, 0]}}).rows
    [('screen', '1.00 (1.00 to 1.00)'), ('loss', '0.00 (0.00 to 0.00)')]
    """
    kept = {measure: _by_method(values) for measure, values in measures.items()}
    if not kept:
        raise ValueError("no measures: expected at least one")
    methods = list(dict.fromkeys(name for values in kept.values() for name in values))
    rows = []
    for method in methods:
        cells = []
        for values in kept.values():
            if method in values:
                estimate = mean(values[method])
                cells.append(f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})")
            else:
                cells.append("")
        rows.append((method, *cells))
    about = "Mean over samples, and its 95 % interval by resampling them."
    return Table(title, ("method", *kept), rows, f"{note} {about}".strip())


def _by_method(values: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    out = {name: np.asarray(value, float).ravel() for name, value in values.items()}
    out = {name: value[~np.isnan(value)] for name, value in out.items()}
    empty = [name for name, value in out.items() if not len(value)]
    if empty or not out:
        raise ValueError(f"no values of {', '.join(empty) or 'any method'}: expected some values for every method")
    return out
