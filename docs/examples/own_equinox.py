"""A network of your own in equinox, through two functions; this works for any other library."""

import equinox as eqx
import jax
import jax.numpy as jnp
from shared import code, data

import ensdiff


class Perceptron(eqx.Module):
    """An MLP for one image and its time."""

    layers: eqx.nn.MLP

    def __init__(self, pixels, key):
        self.layers = eqx.nn.MLP(pixels + 1, pixels, width_size=32, depth=2, activation=jax.nn.silu, key=key)

    def __call__(self, x_HWC, t):
        return self.layers(jnp.append(x_HWC.reshape(-1), t / 1000.0)).reshape(x_HWC.shape)


PIXELS = data.shape[0] * data.shape[1] * data.shape[2]
SHAPES = eqx.filter_eval_shape(Perceptron, PIXELS, jax.random.key(0))
REST = eqx.filter(SHAPES, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct), inverse=True)  # the activation function


def init(key):
    """Return the parameters of one member."""
    return eqx.filter(Perceptron(PIXELS, key), eqx.is_array)


def apply(params, x_BHWC, t_B, cond, key_B):
    """Return the prediction for a batch."""
    return jax.vmap(eqx.combine(params, REST))(x_BHWC, t_B)


network = ensdiff.models.functions(init, apply, name="perceptron")
params = ensdiff.train(data, code, network, steps=4, batch_size=2, progress=False)
samples = ensdiff.sample(params, 0, 2, steps=3)
print(ensdiff.attribute(params, samples, "loss", top=3, null=9, loss=ensdiff.LossConfig(draws=64)))
