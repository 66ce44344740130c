"""A file of latents that `experiments.encode` wrote, K = 16, one unit per item, sized for a CPU and small latents.

Command: python -m experiments.train --config=latents --config.data.path=latents.npz
One unit per group of the file: --config.data.groups=groups. On its labels: --config.data.condition=label
Larger, on a GPU: --config.model.channels=128 --config.model.multipliers="(1,2,2)" --config.train.batch_size=64
Hardware: a CPU with 2 cores, for latents of up to 16x16.
Expected: no figures; they depend on the pictures.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from . import folder


def get_config() -> ConfigDict:
    """Return the config. Every field can be set with --config.section.field=value."""
    config = folder.get_config()
    config.run_dir = "runs/latents"
    data = {
        "groups": placeholder(str),
        "labels": placeholder(str),
        "mean": placeholder(float),
        "scale": placeholder(float),
    }
    config.data = ConfigDict({"held_out": 0, "condition": "", "name": "latents", "path": "latents.npz", **data})
    # for experiments.plan and aot, which read no data
    config.aot = ConfigDict({"image_shape": placeholder(tuple), "units": placeholder(int), "latents": True})
    return config
