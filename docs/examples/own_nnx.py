"""A network of your own in flax NNX."""

import jax.numpy as jnp
from flax import nnx
from shared import code, data

import ensdiff


class Mixer(nnx.Module):
    """An MLP over all pixels and the time, beside a linear map."""

    def __init__(self, shape, width, *, rngs):
        pixels = shape[0] * shape[1] * shape[2]
        self.inside = nnx.Linear(pixels + 2, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.outside = nnx.Linear(width, pixels, rngs=rngs)

    def __call__(self, x_BHWC, t_B):
        flat = x_BHWC.reshape(len(x_BHWC), -1)
        angle_B1 = t_B[:, None] / 1000.0
        h = self.inside(jnp.concatenate([flat, jnp.sin(angle_B1), jnp.cos(angle_B1)], axis=-1))
        return self.outside(self.dropout(nnx.silu(self.norm(h)))).reshape(x_BHWC.shape)


network = ensdiff.models.nnx(Mixer, data.shape, shape=data.shape, width=32)
params = ensdiff.train(data, code, network, steps=4, batch_size=2, progress=False)
samples = ensdiff.sample(params, 0, 2, steps=3)
print(ensdiff.attribute(params, samples, "exact", units=[3, 5], top=2, null=9))
