"""The figure of an attribution: each sample beside its most influential units."""

from typing import Any

import numpy as np

from ensdiff.data.drawing import sheet, show
from ensdiff.data.viewing import Decode, viewer
from ensdiff.models.space import PIXELS, Latents
from ensdiff.runs.identity import check_attributed

LONGEST = 28
"""Most characters of a name in a figure."""


def draw(att: Any, images: Any, data: Any, *, top: int, decode: Decode | None) -> Any:
    """Implement `Attribution.plot`."""
    if data is not None:
        check_attributed(att, data)
        att = att.named(data.unit_names) if att.names is None else att
    images = getattr(images, "images", images)
    B, T = len(att.units), min(top, att.units.shape[1])
    if len(images) != B:
        raise ValueError(f"{len(images)} images for an attribution of {B} samples: give the images of its samples")
    latents = att.settings.get("space") == "latents"
    view = viewer(Latents() if latents else PIXELS, decode, like=images if latents else None)
    shown, captions = view(images), att.settings.get("captions")
    figure, axes = sheet(1.3 * (T + 1), 1.6 * B, B, T + 1)
    for b in range(B):
        _show(axes[b, 0], shown[b], f"sample {b}" + ("" if captions is None else f"\n{captions[b]}"))
        for t in range(T):
            label = f"{_short(att.label(att.units[b, t]))}\n{att.influence[b, t]:.3g}"
            if att.q_value is not None:
                label += f", q={att.q_value[b, t]:.2g}"
            pictures: Any = ()
            if data is not None:
                unit = int(att.units[b, t]) if att.sets is None else att.sets[int(att.units[b, t])][0]
                pictures = view(data.pictures_of(unit)[:1])
                label += "" if len(pictures) else "\ndeleted"
            _show(axes[b, t + 1], pictures[0] if len(pictures) else None, label)
    return figure


def _short(name: str) -> str:
    """Return a name without its middle if it is long, because file names differ in their ends."""
    half = (LONGEST - 3) // 2
    return name if len(name) <= LONGEST else f"{name[:half]}...{name[-half:]}"


def _show(axes: Any, picture: np.ndarray | None, label: str) -> None:
    axes.set_axis_off()
    axes.set_title(label.replace("$", r"\$"), fontsize=7)  # not a formula
    if picture is not None:
        show(axes, picture)
