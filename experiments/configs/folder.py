"""Your own folder of pictures at 16x16 in colour, K = 16, one unit per picture, sized for a CPU.

Command: python -m experiments.train --config=folder --config.data.path=my_images
One unit per subfolder (a class, an artist): --config.data.groups=folder. Grey pictures: --config.data.mode=L
Pictures that cannot be read are an error that lists them; --config.data.skip_bad=True leaves them out.
Larger, on a GPU: --config.data.size=32 --config.model.channels=64 --config.train.batch_size=64
Hardware: a CPU with 2 cores.
Expected: no figures; they depend on the pictures.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from .base import base_config


def get_config() -> ConfigDict:
    """Return the config. Every field can be set with --config.section.field=value."""
    data = {
        "name": "folder",
        "path": "my_images",
        "size": 16,
        "groups": placeholder(str),
        "mode": "RGB",
        "skip_bad": False,
    }
    config = base_config("runs/folder", data, {"members": 16})
    config.model.update(channels=16, multipliers=(1, 2), norm_groups=8, downsample="pool", upsample="nearest")
    config.train.update(
        steps=3000, batch_size=16, learning_rate=2e-3, warmup=100, decay="cosine", ema=0.995, sample_every=500
    )
    return config
