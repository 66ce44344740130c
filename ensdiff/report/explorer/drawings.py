"""Matplotlib drawings inside the page. Their text and axes use the page's colours in its light and dark themes."""

import html
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ensdiff.data.drawing import svg, tinted

INK, GREY, UNITS, NULL, MARK = "#010203", "#040506", "#0708aa", "#0a0baa", "#0d0eaa"
"""Colours that no other element uses. The page's own colours replace them."""
_THEME = {
    INK: "var(--ink)",
    GREY: "var(--soft)",
    UNITS: "var(--seen)",
    NULL: "var(--null)",
    MARK: "var(--mark)",
}


def inline_svg(figure: Any, label: str) -> str:
    """Return an ``<svg>`` to put into HTML: with the page's theme, an accessible name, and no ids that clash."""
    settings = {"svg.fonttype": "none", "font.family": "sans-serif"}
    text = svg(figure, transparent=True, settings=settings).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href=", "href=")
    for colour, variable in _THEME.items():
        text = text.replace(colour, variable)
    text = re.sub(r"font: (\d+(\.\d+)?)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: _identity(m.group(1), used), text)
    return re.sub(r"<svg[^>]*>", lambda m: _opening(m.group(0), label), text, count=1)


def _identity(name: str, used: set[str]) -> str:
    """Return the attribute that replaces an id: the id itself if it is used, a class for a member's curve, or none."""
    if name in used:
        return f' id="{name}"'
    return f' class="curve" data-member="{name[7:]}"' if name.startswith("member-") else ""


def _opening(tag: str, label: str) -> str:
    box = re.search(r'viewBox="[^"]*"', tag)
    assert box is not None
    return f'<svg {box.group(0)} role="img" aria-label="{html.escape(label)}">'


def distribution(
    influences: Float[np.ndarray, " N"], null: Float[np.ndarray, " L"] | None, marks: Sequence[float], what: str
) -> str:
    """Draw the densities of all units' influences and of the null's on one scale, with some units marked."""
    figure, axes = tinted(6.4, 2.6, GREY, INK, 9)
    groups = [influences] if null is None else [influences, null]
    low, high = min(g.min() for g in groups), max(*(g.max() for g in groups), *marks)
    # as many bins as the smaller group can fill
    bins = np.linspace(low, high if high > low else low + 1e-6, 1 + int(np.clip(min(map(len, groups)) / 3, 8, 40)))
    axes.hist(influences, bins, density=True, color=UNITS, alpha=0.55, label=f"{len(influences):,} {what}")
    if null is not None:
        axes.hist(
            null, bins, density=True, histtype="step", color=NULL, linewidth=1.8, label=f"{len(null):,} null ablations"
        )
    for i, mark in enumerate(marks):
        axes.plot([mark, mark], [0, 0.12], transform=axes.get_xaxis_transform(), color=MARK, linewidth=1.5,
                  label="most influential" if i == 0 else None)  # fmt: skip
    axes.set(xlabel="distance that the sample moves", ylabel="density", yticks=[])
    axes.legend(fontsize=9, frameon=False, labelcolor=INK)
    shape = f"Distribution of {len(influences):,} influences, median {np.median(influences):.3g}"
    shape += f", largest {influences.max():.3g}"
    if null is not None:
        shape += f"; of {len(null):,} null ablations, median {np.median(null):.3g}, largest {null.max():.3g}"
    return inline_svg(figure, shape)


def training(metrics: Sequence[dict]) -> str:
    """Draw the training loss of every member against the step, with each curve identified by its member."""
    figure, axes = tinted(6.4, 3.0, GREY, INK, 9)
    steps = [line["step"] for line in metrics]
    loss_SK = np.array([line["loss_K"] for line in metrics])
    for k, losses in enumerate(loss_SK.T):
        axes.plot(steps, losses, color=GREY, linewidth=0.8, gid=f"member-{k}")
    axes.plot(steps, loss_SK.mean(1), color=UNITS, linewidth=2, label="mean")
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.legend(fontsize=9, frameon=False, labelcolor=INK)
    last = loss_SK[-1]
    label = (
        f"Training loss of {len(last)} members to step {steps[-1]:,}: {last.min():.3g} to {last.max():.3g} at the end"
    )
    return inline_svg(figure, label)
