"""A sampler of your own: one step from a noise level to the next."""

import jax.numpy as jnp
from shared import params

import ensdiff


def ddim(x_B, eps_B, z_B, level):
    """DDIM without noise: predict the image, and noise it again to the next level."""
    x0_B = jnp.clip((x_B - level.sigma * eps_B) / level.signal, -1.0, 1.0)
    eps_B = (x_B - level.signal * x0_B) / level.sigma
    return level.next_signal * x0_B + level.next_sigma * eps_B


samples = ensdiff.sample(params, 0, 2, steps=5, sampler=ddim)
built_in = ensdiff.sample(params, 0, 2, steps=5, sampler="ddim")
print("largest difference from the built-in DDIM:", float(jnp.abs(samples.images - built_in.images).max()))

print(ensdiff.counterfactuals(params, samples, [3]).shape)  # works with this sampler too
print(ensdiff.attribute(params, samples, "screen", top=3, null=9))
