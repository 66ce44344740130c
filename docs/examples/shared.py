"""A tiny ensemble, trained for four steps, and two of its samples: what the examples of the API reference share."""

import ensdiff

data = ensdiff.data.digits().subset(range(40))
code = ensdiff.Code.balanced(members=8, units=data.units, seed=0)
model = ensdiff.UNetConfig(channels=4, multipliers=(1,), norm_groups=2)
params = ensdiff.train(data, code, model, steps=4, batch_size=2, run_dir="runs/tiny", progress=False)
samples = ensdiff.sample(params, 0, 2, steps=3)
