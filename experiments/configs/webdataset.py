"""WebDataset shards at 16x16 in colour, K = 16, one unit per sample, sized for a CPU.

Command: python -m experiments.train --config=webdataset --config.data.pattern=shards
Members of a sample: --config.data.label=cls --config.data.group=json:artist. On labels: --config.data.condition=label
Larger, on a GPU: --config.data.size=32 --config.model.channels=64 --config.train.batch_size=64
Hardware: a CPU with 2 cores.
Expected: no figures; they depend on the pictures.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from . import folder


def get_config() -> ConfigDict:
    """Return the config. Every field can be set with --config.section.field=value."""
    config = folder.get_config()
    config.run_dir = "runs/webdataset"
    data = {"name": "webdataset", "pattern": "shards", "image": "jpg;jpeg;png;webp", "size": 16, "mode": "RGB"}
    text = {name: placeholder(str) for name in ("label", "caption", "group", "cache")}
    config.data = ConfigDict({"held_out": 0, "condition": "", **data, **text})
    return config
