"""A network of your own in flax linen, with classes: train it, load it again, and ask what a sample depends on."""

import flax.linen as nn
import jax.numpy as jnp

import ensdiff


class Small(nn.Module):
    """Three convolutions with group normalisation; time and class are added in between."""

    classes: int
    width: int = 8

    @nn.compact
    def __call__(self, x_BHWC, t_B, cond_B):
        angle_BD = t_B[:, None] / jnp.array([[1.0, 10.0, 100.0, 1000.0]])
        time_BD = nn.Dense(self.width)(jnp.concatenate([jnp.sin(angle_BD), jnp.cos(angle_BD)], axis=-1))
        told_BD = time_BD + nn.Embed(self.classes + 1, self.width)(cond_B)  # the last row is "no class"
        h = nn.Conv(self.width, (3, 3))(x_BHWC)
        for _ in range(2):
            y = nn.swish(nn.GroupNorm(2, epsilon=1e-5)(h)) + told_BD[:, None, None]
            h = h + nn.Conv(self.width, (3, 3))(y)
        return nn.Conv(x_BHWC.shape[-1], (3, 3))(nn.swish(h))


data = ensdiff.data.digits().subset(range(40))
data = data.with_condition(data.labels, classes=10)
code = ensdiff.Code.balanced(members=8, units=data.units, seed=0)
network = ensdiff.models.linen(Small(classes=10), data.shape, data.condition_spec)

ensdiff.train(data, code, network, steps=4, batch_size=2, run_dir="runs/own", progress=False)
params = ensdiff.load("runs/own", model=network)  # the run holds no code: pass the network again
samples = ensdiff.sample(params, 0, 2, steps=3, cond=[3, 7], guidance=2.0)
print(ensdiff.attribute(params, samples, "differential", top=3, null=9))

try:
    ensdiff.load("runs/own", model=ensdiff.models.linen(Small(classes=10, width=4), data.shape, data.condition_spec))
except ValueError as error:
    print("refused:", error)
