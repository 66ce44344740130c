"""The figures of the report, as data URIs."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Bytes as a ``data:`` URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _svg_bytes(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", transparent=True)
    return stream.getvalue()


def _svg(figure: Any) -> str:
    return data_uri(_svg_bytes(figure), "image/svg+xml")


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    grey = "#888888"  # reads on light and on dark
    axes.tick_params(colors=grey)
    for spine in axes.spines.values():
        spine.set_color(grey)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(grey)
    return figure, axes


def loss_figure(metrics: Sequence[dict]) -> str:
    """Training loss of each member (thin) and their mean (thick) against the step, as an SVG data URI."""
    figure, axes = _axes(6.0, 2.6)
    steps = [line["step"] for line in metrics]
    losses = np.array([line["loss_K"] for line in metrics])
    axes.plot(steps, losses, color="#888888", alpha=0.35, linewidth=0.6)
    axes.plot(steps, losses.mean(1), color="#3b7dd8", linewidth=2)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    return _svg(figure)


def null_figure(null: np.ndarray, influences: np.ndarray) -> str:
    """Histogram of null influences with the attributed units marked, as an SVG data URI."""
    figure, axes = _axes(4.0, 1.6)
    axes.hist(null, bins=20, color="#999999", alpha=0.6)
    for influence in influences:
        axes.axvline(influence, color="#d8603b", linewidth=1.2)
    axes.set(xlabel="distance moved", ylabel="null ablations")
    return _svg(figure)


def capacity_figure(members: Sequence[int], removals: Sequence[int]) -> bytes:
    """SVG of the share of members that survives m removals against the share of the data that each member sees.

    One line a number of members and of removals; every weight is a point of it.
    """
    from ensdiff.codes import deletion_capacity

    figure, axes = _axes(6.0, 3.6)
    for i, m in enumerate(removals):
        for j, K in enumerate(members):
            weights = [w for w in range(1, K) if math.comb(K, w) >= m]
            share = [deletion_capacity(K, w, m).expected / K for w in weights]
            style = ("-", "--", ":", "-.")[j % 4]
            axes.plot(np.array(weights) / K, share, style, color=f"C{i % 10}", label=f"K = {K}, m = {m}")
    axes.set(xlabel="share of the units that a member sees, w / K", ylabel="expected share of survivors")
    axes.legend(fontsize=6, ncols=max(1, len(removals) // 2), frameon=False, labelcolor="#888888")
    return _svg_bytes(figure)
