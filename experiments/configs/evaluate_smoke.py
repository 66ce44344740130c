"""A tiny version of all studies of `evaluate_digits`, to check that they run. The numbers mean nothing.

Command: python -m experiments.evaluate --config=evaluate_smoke
Hardware and wall time: a CPU with 2 cores, under 3 minutes with an empty compilation cache.
"""

from ml_collections import ConfigDict

from . import evaluate_digits


def get_config() -> ConfigDict:
    """Return the config. Every field can be set with --config.section.field=value."""
    config = evaluate_digits.get_config()
    config.run_dir = "runs/evaluate_smoke"
    config.model.update(channels=8, norm_groups=4, multipliers=(1,), middle_attention=False)
    config.train.update(steps=8, checkpoint_every=8, batch_size=8)
    config.sampler.steps = 4
    config.gradients.update(draws=4, dimension=64)
    config.data.held_out = 1740  # 57 digits are left; 8 members have 70 code words
    # eight members everywhere: what is compiled for one study serves the others
    config.generative.update(samples=24, resamples=5)
    config.generative.sets = ConfigDict({"digits": {"members": 8, "singles": 1, "steps": 8}})
    config.size.update(sizes=(12, 18), members=8, samples=4, null=2)
    config.lds.update(units=18, members=8, subsets=4, queries=4, draws=8, baseline_members=2, ablations=6, removed=1)
    config.groups.update(images=57, groups=3, members=(8,), seeds=2, samples=4, draws=8)
    config.groups.gradients.update(parts=4, dimension=64)
    config.judging.update(members=(8,), sizes=((12, 8),), images=57, groups=(10,), group_members=8)
    held_out = {"name": "digits", "condition": "label", "held_out": 1740}
    config.judging.sets = ConfigDict({"conditional digits": {"data": held_out}})
    config.judging.update(null=20, subsets=8, queries=4, draws=8)
    config.planted.update(units=10, each=1, copies=(1, 2), members=(8,), steps=8, draws=8, baseline_members=2)
    config.retraining.update(units=18, members=8, removed=1, samples=4)
    return config
