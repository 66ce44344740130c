"""The figure of `Attribution.plot`."""

from typing import Any

import numpy as np

from ensdiff.data.drawing import sheet, show
from ensdiff.runs.identity import check_attributed


def plot_attribution(att: Any, images_BHWC: np.ndarray, data: Any, top: int) -> Any:
    """Return a figure with each sample beside its top units; see `Attribution.plot`."""
    if data is not None:
        check_attributed(att, data)
    B, T = len(att.units), min(top, att.units.shape[1])
    if len(images_BHWC) != B:
        raise ValueError(f"{len(images_BHWC)} images for an attribution of {B} samples: give the images of its samples")
    figure, axes = sheet(1.3 * (T + 1), 1.6 * B, B, T + 1)
    for b in range(B):
        _show(axes[b, 0], images_BHWC[b], f"sample {b}")
        for t in range(T):
            label = f"{att._name(att.units[b, t])}\n{att.influence[b, t]:.3g}"
            if att.q_value is not None:
                label += f", q={att.q_value[b, t]:.2g}"
            pictures: Any = ()
            if data is not None:
                unit = int(att.units[b, t]) if att.sets is None else att.sets[int(att.units[b, t])][0]
                pictures = data.pictures_of(unit)
                label += "" if len(pictures) else "\ndeleted"
            _show(axes[b, t + 1], pictures[0] if len(pictures) else None, label)
    return figure


def _show(axes: Any, picture: np.ndarray | None, label: str) -> None:
    axes.set_axis_off()
    axes.set_title(label, fontsize=7)
    if picture is not None:
        show(axes, picture)
