"""Fashion-MNIST at 14x14 by flow matching with a DiT: 2,000 images, K = 6, one unit per class; 500 more are held out.

The network takes as many floating-point operations per image as `ensdiff.UNetConfig` with 16 channels and two levels.

Command: python -m experiments.train --config=fashion_dit
Hardware and wall time: a CPU with 2 cores; about 10 minutes beside other work.
Expected: docs/results.md compares its samples with those of the U-Net.
"""

import dataclasses

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ensdiff.models import DiTConfig

from .base import base_config


def get_config() -> ConfigDict:
    """Return the config. Every field can be set with --config.section.field=value."""
    data = {"name": "fashion_mnist", "size": 14, "limit": 2500, "held_out": 500, "groups": "class"}
    config = base_config("runs/fashion_dit", data, {"members": 6})
    model = {"kind": "dit", **dataclasses.asdict(DiTConfig(patch=2, width=64, depth=4, heads=4))}
    model.pop("image_channels")  # from the data
    for name in ("classes", "condition_width"):
        model[name] = placeholder(int)
    config.model = ConfigDict(model)
    config.schedule.update(kind="flow", prediction="flow")
    config.train.update(
        steps=700, batch_size=32, learning_rate=1e-3, warmup=100, decay="cosine", ema=0.995, checkpoint_every=350
    )
    return config
