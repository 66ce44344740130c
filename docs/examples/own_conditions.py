"""Class-conditional digits: train, sample a class with guidance, and ask what a sample of it depends on."""

import ensdiff

digits = ensdiff.data.digits().subset(range(60))
data = digits.with_condition(digits.labels, classes=10)
code = ensdiff.Code.balanced(members=8, units=data.units, seed=0)
model = ensdiff.UNetConfig(channels=4, multipliers=(1,), norm_groups=2, classes=10)
flow = ensdiff.Schedule(kind="flow", prediction="flow")
params = ensdiff.train(data, code, model, schedule=flow, steps=4, batch_size=4, progress=False)

samples = ensdiff.sample(params, 0, 2, cond=[3, 5], guidance=2.0, sampler="heun", steps=3)
print(params.condition.captions(samples.cond))
print(ensdiff.attribute(params, samples, "differential", top=3))  # of each sample under its own class
few = ensdiff.LossConfig(draws=8, block=4)
print(ensdiff.attribute(params, digits.images[:2], "loss", top=3, cond=digits.labels[:2], loss=few))
