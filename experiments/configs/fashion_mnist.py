"""60,000 Fashion-MNIST images of 28x28, K = 20, one unit per image.

Command: python -m experiments.train --config=fashion_mnist
(the files come with Debian's dataset-fashion-mnist; elsewhere --config.data.dir=FOLDER)
Hardware: sized for one GPU or a TPU host. Not run to the end for this version.
Expected: no figures yet.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from .base import base_config


def get_config() -> ConfigDict:
    """Return the config. Every field can be set with --config.section.field=value."""
    data = {"name": "fashion_mnist", "dir": placeholder(str), "split": "train", "size": 28, "limit": placeholder(int)}
    config = base_config("runs/fashion_mnist", {**data, "groups": placeholder(str)}, {"members": 20})
    config.model.update(channels=64, multipliers=(1, 2, 2), blocks=1, attention_levels=(2,), dropout=0.1)
    config.train.update(steps=50_000, batch_size=128, learning_rate=3e-4, ema=0.999, flip=True, sample_every=5000)
    return config
