"""CIFAR-10 at the scale of the paper: 50,000 images of 32x32x3, K = 20 members of 36 million parameters each.

The U-Net of Ho et al. 2020 for CIFAR-10: 128 channels, multipliers 1, 2, 2, 2, two blocks per level, attention at
16x16, dropout 0.1, batches of 128 per member, mirrored images. Activations are bfloat16, parameters float32.

Command: python -m experiments.train --config=cifar10_paper --config.data.path=cifar10.npz
(an .npz with the array images, uint8 (50000, 32, 32, 3)); K = 256 with --config.code.members=256
Hardware: sized for TPU pods and GPU hosts. Compiled ahead of time (python -m experiments.aot, figures in BUILD.md);
not trained for this version.
Expected: no figures yet.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from .base import base_config


def get_config() -> ConfigDict:
    """Return the config. Every field can be set with --config.section.field=value."""
    data = {"name": "npz", "path": "cifar10.npz", "groups": placeholder(str)}
    config = base_config("runs/cifar10_paper", data, {"members": 20})
    config.aot = {"image_shape": (32, 32, 3), "units": 50_000}  # what experiments.aot cannot read from data
    config.model.update(
        channels=128,
        multipliers=(1, 2, 2, 2),
        blocks=2,
        attention_levels=(1,),
        norm_groups=32,
        dropout=0.1,
        compute_dtype="bfloat16",
    )
    config.train.update(
        steps=200_000, batch_size=128, learning_rate=2e-4, warmup=5000, ema=0.9999, flip=True, sample_every=5000
    )
    return config
