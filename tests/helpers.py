"""Small ensembles and data that the tests share."""

import dataclasses
import os
import pathlib
import sys

import jax
import numpy as np

import ensdiff

ROOT = pathlib.Path(__file__).parent.parent


def command(program, *args):
    """Return the command line of a program."""
    return [sys.executable, "-m", f"experiments.{program}", *map(str, args)]


def environment():
    """Return the environment variables for a program in a separate process."""
    return {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "PYTHONUNBUFFERED": "1"}


def blobs(items: int = 6, seed: int = 0) -> np.ndarray:
    """Return random 8x8 uint8 images."""
    return np.random.default_rng(seed).integers(0, 256, (items, 8, 8, 1), dtype=np.uint8)


# all tests that are not about networks use one network, so that they share compiled programs
TINY = ensdiff.UNetConfig(channels=4, norm_groups=2, multipliers=(1,))
DEEP = dataclasses.replace(TINY, multipliers=(1, 2))  # also downsamples and upsamples images
SHORT = ensdiff.Schedule(timesteps=20, beta_start=1e-3, beta_end=0.3)
CODE = ensdiff.Code.balanced(members=4, units=6, seed=0)


def random_ensemble(code=CODE, model=TINY, schedule=SHORT, image_shape=(8, 8, 1), seed=0, scale=0.2, condition=None):
    """Return an untrained ensemble with no zeros in its parameters, so that members differ."""
    shapes = ensdiff.ensemble.members.abstract_params(model, image_shape, code.members, condition)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    params = tree.unflatten([jax.numpy.asarray(scale * rng.normal(size=a.shape), a.dtype) for a in leaves])
    return ensdiff.Ensemble(params, code, model, schedule, image_shape, condition=condition)
