"""1,400 digits conditioned on their class, by flow matching: pictures as units inside classes, K = 16.

Single pictures and whole classes can be removed: 12 of 16 members see a class, and 6 of these a picture.

Command: python -m experiments.quickstart
Hardware and wall time: a CPU with 2 cores, 154 s, compilation included.
Expected: all of six samples, one of each of the digits 0 to 5, depend on their class.
"""

from ml_collections import ConfigDict

from .base import base_config


def get_config() -> ConfigDict:
    """Return the config. Every field can be set with --config.section.field=value."""
    data = {"name": "digits", "condition": "label", "held_out": 397}
    config = base_config("runs/quickstart", data, {"members": 16, "groups": "label", "group_names": "digit {}"})
    config.model.update(channels=16, multipliers=(1, 2), norm_groups=8, downsample="pool", upsample="nearest")
    config.schedule.update(kind="flow", prediction="flow")
    config.train.update(
        steps=700, batch_size=16, learning_rate=2e-3, warmup=100, decay="cosine", ema=0.99, sample_every=0,
        checkpoint_every=350,
    )  # fmt: skip
    config.aot = {"image_shape": (8, 8, 1), "units": 1400, "classes": 10}  # for experiments.plan and aot
    return config
