"""The digits of `experiments/configs/digits.py` in few steps, for `python -m experiments.quickstart`."""

from ml_collections import ConfigDict

from experiments.configs import digits


def get_config() -> ConfigDict:
    """The config; every field can be set with --config.section.field=value."""
    config = digits.get_config()
    config.run_dir = "runs/quickstart"
    config.train.update(steps=700, ema=0.99, sample_every=0, checkpoint_every=350)
    return config
