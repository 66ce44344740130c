"""A DiT by flow matching on a file of latents that `experiments.encode` wrote, K = 16, one unit per item.

Command: python -m experiments.train --config=latents_dit --config.data.path=latents.npz
One unit per group of the file: --config.data.groups=groups. On its labels: --config.data.condition=label
Larger, on a GPU: --config.model.width=384 --config.model.depth=12 --config.model.heads=6 --config.train.batch_size=64
Hardware: a CPU with 2 cores, for latents of up to 16x16.
Expected: no figures; they depend on the pictures.
"""

from ml_collections import ConfigDict

from . import fashion_dit, latents


def get_config() -> ConfigDict:
    """Return the config. Every field can be set with --config.section.field=value."""
    config = latents.get_config()
    dit = fashion_dit.get_config()
    config.run_dir = "runs/latents_dit"
    config.model, config.schedule, config.train = dit.model, dit.schedule, dit.train
    config.train.steps = 2000
    return config
