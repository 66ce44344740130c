"""The part that all configs share: every field of the settings, so that each can be set on the command line."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ensdiff import Schedule, TrainConfig, UNetConfig


def base_config(run_dir: str, data: dict[str, Any], code: dict[str, Any]) -> ConfigDict:
    """Return a config with the library's defaults; ``data`` holds the name and options of a reader."""
    model = {"kind": "unet", **dataclasses.asdict(UNetConfig())}
    model.pop("image_channels")  # from the data
    for name in ("attention_levels_up", "heads"):
        model[name] = placeholder(tuple)
    for name in ("head_channels", "classes", "condition_width", "context_width", "context_length"):
        model[name] = placeholder(int)
    return ConfigDict(
        {
            "run_dir": run_dir,
            "resume": False,
            "log": "tensorboard",
            "data": {"held_out": 0, "condition": "", **data},
            "code": {
                "members": 16,
                "weight": placeholder(int),
                "groups": placeholder(str),
                "group_weight": placeholder(int),
                "seed": 0,
                **code,
            },
            "model": model,
            "schedule": dataclasses.asdict(Schedule()),
            "train": dataclasses.asdict(TrainConfig()),
        }
    )
