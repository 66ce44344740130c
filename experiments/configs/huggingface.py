"""A Hugging Face data set on disk at 16x16 in colour, K = 16, one unit per image, sized for a CPU.

Command: python -m experiments.train --config=huggingface --config.data.path=my_dataset
Its columns: --config.data.label=label --config.data.group=artist. On its labels: --config.data.condition=label
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
    config.run_dir = "runs/huggingface"
    data = {"name": "huggingface", "path": "my_dataset", "image": "image", "size": 16, "mode": "RGB"}
    text = {name: placeholder(str) for name in ("label", "caption", "group", "split", "cache")}
    config.data = ConfigDict({"held_out": 0, "condition": "", **data, **text})
    return config
