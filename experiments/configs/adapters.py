"""Adapters on Stable Diffusion: a fine-tune of which whole artists can be removed. K = 32 adapters of rank 8.

Units are pictures inside artists, so that single pictures and whole artists can be removed. Needed are the folder of
a pipeline (base.diffusers) and a folder of pictures with metadata.jsonl, one line per picture:
{"file_name": "a.png", "text": "a red cat", "artist": "ada"}

Commands:
  python -m experiments.encode --pipeline=models/sd --images=pictures --size=512 --groups=artist --out=latents.npz
  python -m experiments.train --config=adapters
  python -m experiments.sample --run=runs/adapters --prompt="a red cat" --groups --remove=ada
Any base: --config.base.diffusers=models/mine, or a run: --config.base.diffusers=None --config.base.run=runs/mine
One unit per artist: --config.data.groups=groups --config.code.groups=None (more members then see each picture)
Smaller steps: --config.train.batch_size=1, --config.model.remat=True
Hardware: one GPU with 80 GB for Stable Diffusion 1.5; python -m experiments.plan --config=adapters says why.
Expected: no figures; they depend on the pictures.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from .base import base_config

STABLE_DIFFUSION_1 = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
"""The arguments of the U-Net of Stable Diffusion 1.x, for programs that plan without its files."""


def get_config() -> ConfigDict:
    """Return the config. Every field can be set with --config.section.field=value."""
    data = {"name": "latents", "path": "latents.npz", "groups": placeholder(str), "labels": "groups"}
    config = base_config("runs/adapters", data, {"members": 32, "groups": "label"})
    # one "down" for all members and a longer mean: docs/results/adapters.md says why
    config.combine, config.scale = "parameters", 1.25
    config.base = ConfigDict(
        {
            "diffusers": "models/sd",
            "run": placeholder(str),
            "member": placeholder(int),
            "dtype": "bfloat16",
        }
    )
    config.adapters = {
        "rank": 8,
        "alpha": placeholder(float),
        "down_seed": placeholder(int),
        "targets": "kernel$",
        "train_also": placeholder(str),
        "stack": 1,
    }
    config.adapters.down_seed = 0
    # the network and its schedule are the base's; this says only how it is computed
    config.model = ConfigDict(
        {"compute_dtype": "bfloat16", "remat": False, "attention": "auto", "precision": "default"}
    )
    config.schedule = ConfigDict()
    config.train.update(
        steps=2000, batch_size=4, learning_rate=1e-4, warmup=100, decay="cosine", checkpoint_every=500, keep=1
    )
    # for experiments.plan and aot, which read no data: 2,000 pictures of 512x512
    config.aot = {
        "image_shape": (64, 64, 4),
        "units": 2000,
        "latents": True,
        "context_width": 768,
        "context_length": 77,
        "unet": STABLE_DIFFUSION_1,
    }
    return config
