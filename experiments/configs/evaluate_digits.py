"""The studies of docs/results.md on handwritten digits of 8x8 (and Fashion-MNIST at 14x14 as a second data set).

Command: python -m experiments.evaluate --config=evaluate_digits
Hardware and wall time: a CPU with 2 cores; about four hours of one core in all, 11 to 70 minutes per study.
Expected: the tables of docs/results.md. Fashion-MNIST must be installed (Debian: dataset-fashion-mnist); without it,
take the set out of ``generative``.
"""

from ml_collections import ConfigDict

from . import digits


def get_config() -> ConfigDict:
    """Return the config. Every field can be set with --config.section.field=value."""
    base = digits.get_config()
    base.train.update(steps=800, ema=0.99, sample_every=0, checkpoint_every=800)
    shared = {name: base[name] for name in ("data", "model", "schedule", "train")}
    fashion = {"name": "fashion_mnist", "size": 14, "limit": 2500, "held_out": 500}
    return ConfigDict(
        {
            **shared,
            "run_dir": "runs/evaluate_digits",
            "sampler": {"sampler": "ddim", "steps": 20},
            "gradients": {"draws": 16, "parts": 4, "dimension": 1024},
            "generative": {
                "samples": 397,
                "resamples": 100,
                "sets": {
                    "digits": {"members": 16, "singles": 4, "steps": 1600},
                    "fashion_mnist": {"members": 16, "singles": 2, "steps": 1000, "data": fashion},
                },
            },
            "size": {"members": 16, "sizes": (64, 128, 256, 512, 1024), "samples": 16, "null": 64},
            "lds": {
                "units": 256,
                "members": 16,
                "alpha": 0.5,
                "subsets": 48,
                "seeds": 2,
                "queries": 24,
                "draws": 128,
                "removed": 2,
                "ablations": 200,
                "baseline_members": 8,
            },
            "judging": {
                "members": (16, 64, 32, 12),  # of single images; the number of images is that of lds
                "sizes": ((1024, 16), (64, 16), (64, 8)),  # other numbers of images, with K members
                "images": 300,  # of the groups
                "groups": (30, 10),
                "group_members": 16,
                "sets": {
                    "conditional digits": {"data": {"name": "digits", "condition": "label", "held_out": 397}},
                    "fashion_mnist": {"data": fashion},
                },
                "null": 300,  # held-out images
                "subsets": 48,
                "queries": 24,
                "draws": 128,
            },
            "groups": {
                "images": 1400,
                "groups": 10,  # the class modulo this
                "members": (20, 64),
                "seeds": 3,
                "samples": 64,
                "draws": 128,
                "gradients": {"draws": 4, "parts": 2, "dimension": 512},  # of 1,400 images under 84 members
            },
            "planted": {
                "units": 48,
                "each": 4,
                "copies": (1, 2, 4, 8),
                "members": (8, 16, 32, 64),
                "steps": 300,
                "draws": 128,
                "baseline_members": 8,
            },
            "retraining": {"units": 64, "members": 16, "removed": 3, "samples": 32, "null": 16},
        }
    )
