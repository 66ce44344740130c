"""Matplotlib figures without a display: create one, show an image in it, and write it as SVG."""

import io
from typing import Any

import numpy as np


def sheet(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """Return a figure of ``width`` by ``height`` inches and its (rows, columns) array of axes.

    The axes have no top and right lines. ``options`` are those of `matplotlib.figure.Figure.subplots`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for cell in axes.ravel():
        cell.spines[["top", "right"]].set_visible(False)
    return figure, axes


def tinted(width: float, height: float, lines: str, text: str, size: float | str = "medium") -> tuple[Any, Any]:
    """Return a figure and its axes, with one colour for frame and ticks, and another for labels and numbers."""
    figure, ((axes,),) = sheet(width, height)
    for spine in axes.spines.values():
        spine.set_color(lines)
    axes.tick_params(which="both", colors=lines, labelcolor=text, labelsize=size)
    axes.xaxis.label.set_color(text)
    axes.yaxis.label.set_color(text)
    return figure, axes


def show(axes: Any, image: np.ndarray) -> None:
    """Draw an (H, W, C) image, uint8 or in [0, 1]; small ones with sharp pixels."""
    grey = image.shape[-1] == 1
    high = 255 if image.dtype == np.uint8 else 1.0
    axes.imshow(
        image[..., 0] if grey else np.clip(image, 0, high), cmap="gray" if grey else None, vmin=0, vmax=high,
        interpolation="nearest" if max(image.shape) <= 64 else "antialiased",
    )  # fmt: skip


def svg(figure: Any, *, transparent: bool = False, settings: Any = None) -> bytes:
    """Return a figure as SVG, the same bytes every time; ``settings`` are those of `matplotlib.rc_context`."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "ensdiff"} | (settings or {})):
        figure.savefig(stream, format="svg", transparent=transparent, metadata={"Date": None})
    return stream.getvalue()
