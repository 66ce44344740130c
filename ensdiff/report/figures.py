"""Small pictures as PNG bytes and data URIs, grids of them, and the figures of the report."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8


def to_uint8(image: Any) -> UInt8[np.ndarray, "..."]:
    """Images as uint8: floats in [0, 1] are clipped and rounded, uint8 is returned as it is."""
    image = np.asarray(image)
    return image if image.dtype == np.uint8 else np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def grid(images_BHWC: Any, columns: int | None = None, pad: int = 1) -> UInt8[np.ndarray, "H W C"]:
    """Images side by side, row by row, with a grey line of ``pad`` pixels between them.

    >>> grid(np.zeros((5, 8, 8, 1)), columns=3).shape
    (17, 26, 1)
    """
    images = to_uint8(images_BHWC)
    B, H, W, C = images.shape
    columns = int(np.ceil(np.sqrt(B))) if columns is None else columns
    rows = -(-B // columns)
    sheet = np.full((rows * (H + pad) - pad, columns * (W + pad) - pad, C), 128, np.uint8)
    for b, image in enumerate(images):
        top, left = b // columns * (H + pad), b % columns * (W + pad)
        sheet[top : top + H, left : left + W] = image
    return sheet


def to_png(image_HWC: Any, scale: int = 1) -> bytes:
    """A PNG of one image (grey or RGB), every pixel enlarged to ``scale`` x ``scale``."""
    from PIL import Image

    pixels = to_uint8(image_HWC)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    pixels = np.repeat(np.repeat(pixels, scale, axis=0), scale, axis=1)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Bytes as a ``data:`` URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _svg(figure: Any) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", transparent=True)
    return data_uri(stream.getvalue(), "image/svg+xml")


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
