"""Adapters on a frozen base: a network of the digits 0 to 4, adapted to 5 to 9; K = 16 adapters of rank 4.

Units are the thirds of each digit, by different writers: 15 units, such as "7 (second third)", inside 5 groups, such as
"digit 7". Single thirds and whole digits can be removed. The generator has the members' averaged parameters
(combine=parameters), so that a sample costs one network, and not 16.

The base is trained first, into base.run, unless it is there already. It knows the ids of ten classes, of which its data
have the first five: the embeddings of the others are untrained, and the adapters train them as whole rows.

Command: python -m experiments.train --config=adapters_digits
Then: python -m experiments.sample --run=runs/adapters_digits --cond=7 --sampler=ddim --groups --remove="digit 7"
Hardware: a CPU with 2 cores. The base takes about a minute, and the adapters as long.
Expected: mean loss 0.11 at the end. For one sample of each digit (--cond=5,6,7,8,9 --sampler=ddim --steps=25),
attribution to the groups by exact, differential and loss puts its own digit first in 5 of 5, with q of at most 0.05.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from .base import base_config


def get_config() -> ConfigDict:
    """Return the config. Every field can be set with --config.section.field=value."""
    data = {"name": "digits", "groups": "third", "condition": "label", "only": (5, 6, 7, 8, 9)}
    # of the seeds 0 to 59, the one with which the members' numbers of units differ least: 6 to 10 of 15
    code = {"members": 16, "weight": 8, "groups": "label", "group_names": "digit {}", "seed": 53}
    config = base_config("runs/adapters_digits", data, code)
    config.combine, config.scale = "parameters", 1.0
    config.adapters = {
        "rank": 4,
        "alpha": placeholder(float),
        "down_seed": placeholder(int),
        "targets": "kernel$",
        "train_also": "condition/table$",
        "stack": placeholder(int),
    }
    config.base = {
        "run": "runs/adapters_digits_base",
        "data": {"name": "digits", "condition": "label", "only": (0, 1, 2, 3, 4), "held_out": 0},
        "train": {
            "steps": 800,
            "batch_size": 32,
            "learning_rate": 2e-3,
            "warmup": 50,
            "checkpoint_every": 800,
            "keep": 1,
        },
        "dtype": "float32",
    }
    config.model.update(channels=16, multipliers=(1, 2), norm_groups=8, downsample="pool", upsample="nearest")
    config.train.update(
        steps=300, batch_size=16, learning_rate=2e-3, warmup=50, decay="cosine", ema=0.99, checkpoint_every=150
    )
    config.aot = {"image_shape": (8, 8, 1), "units": 15, "classes": 10}  # for experiments.plan and aot
    return config
