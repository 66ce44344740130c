"""A run that takes seconds: four members, 8x8 images from an .npz file, a checkpoint every three steps."""

from ml_collections.config_dict import placeholder

from experiments.configs.base import base_config


def get_config():
    config = base_config("runs/faults", {"name": "npz", "path": placeholder(str)}, {"members": 4})
    config.model.update(channels=4, multipliers=(1,), norm_groups=2, middle_attention=False)
    config.schedule.update(timesteps=20, beta_start=1e-3, beta_end=0.3)
    config.train.update(steps=200, batch_size=2, learning_rate=1e-2, warmup=1, ema=0.9, log_every=1, checkpoint_every=3)
    return config
