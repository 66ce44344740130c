"""The figures of the report, as data URIs."""

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ensdiff.data.drawing import svg, tinted


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Return bytes as a ``data:`` URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


GREY = "#888888"
"""A colour that is readable on both light and dark backgrounds."""


def _uri(figure: Any) -> str:
    return data_uri(svg(figure, transparent=True), "image/svg+xml")


def loss_figure(metrics: Sequence[dict]) -> str:
    """Plot each member's training loss (thin) and the mean (thick) against the step, as an SVG data URI."""
    figure, axes = tinted(6.0, 2.6, GREY, GREY)
    steps = [line["step"] for line in metrics]
    losses = np.array([line["loss_K"] for line in metrics])
    axes.plot(steps, losses, color=GREY, alpha=0.35, linewidth=0.6)
    axes.plot(steps, losses.mean(1), color="#3b7dd8", linewidth=2)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    return _uri(figure)


def null_figure(null: np.ndarray, influences: np.ndarray) -> str:
    """Plot a histogram of null influences with the attributed units marked, as an SVG data URI."""
    figure, axes = tinted(4.0, 1.6, GREY, GREY)
    axes.hist(null, bins=20, color="#999999", alpha=0.6)
    for influence in influences:
        axes.axvline(influence, color="#d8603b", linewidth=1.2)
    axes.set(xlabel="distance moved", ylabel="null ablations")
    return _uri(figure)


def capacity_figure(members: Sequence[int], removals: Sequence[int]) -> bytes:
    """Plot the share of members that survive m removals against the share of units that each member sees, as SVG.

    There is one line per pair of a number of members and a number of removals, with one point per weight.
    """
    from ensdiff.codes import deletion_capacity

    figure, axes = tinted(6.0, 3.6, GREY, GREY)
    for i, m in enumerate(removals):
        for j, K in enumerate(members):
            weights = [w for w in range(1, K) if math.comb(K, w) >= m]
            share = [deletion_capacity(K, w, m).expected / K for w in weights]
            style = ("-", "--", ":", "-.")[j % 4]
            axes.plot(np.array(weights) / K, share, style, color=f"C{i % 10}", label=f"K = {K}, m = {m}")
    axes.set(xlabel="share of the units that a member sees, w / K", ylabel="expected share of survivors")
    axes.legend(fontsize=6, ncols=max(1, len(removals) // 2), frameon=False, labelcolor=GREY)
    return svg(figure, transparent=True)
