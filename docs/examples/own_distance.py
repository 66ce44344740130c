"""A distance of your own between a sample and its counterfactual."""

import jax.numpy as jnp
from shared import params, samples

import ensdiff


def edges(one, other):
    """L1 between horizontal differences: one number >= 0 for each pair of images (P, H, W, C) in [0, 1]."""
    return jnp.abs(jnp.diff(one, axis=2) - jnp.diff(other, axis=2)).mean(axis=(1, 2, 3))


print(ensdiff.attribute(params, samples, "screen", top=3, null=9, distance=edges))


def blurred(images):
    """Features; the L2 between them is the distance, and `differential` can use them as well."""
    B, H, W, C = images.shape
    return images.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))


print(ensdiff.attribute(params, samples, "differential", top=3, null=9, features=blurred))
