"""Flow matching with a DiT on latents that principal components of patches make; distances are between latents."""

import numpy as np

import ensdiff
from ensdiff.data import pca

pictures = ensdiff.data.fashion_mnist(size=14, limit=200)
encoder = pca.fit(pictures.images[100:], channels=4, patch=2)  # on other pictures: no unit may change it
data = ensdiff.data.arrays(encoder.encode(pictures.images[:100]), labels=pictures.labels[:100], space=encoder.space)
code = ensdiff.Code.balanced(members=10, units=data.units, seed=0)
model = ensdiff.models.dit(ensdiff.models.DiTConfig(image_channels=4, patch=1, width=16, depth=2, heads=2))
flow = ensdiff.Schedule(kind="flow", prediction="flow")
params = ensdiff.train(data, code, model, schedule=flow, steps=4, batch_size=4, progress=False)

samples = ensdiff.sample(params, 0, 2, sampler="dpm++2m", steps=3)
pixels = encoder.decode(np.asarray(samples.images))
print(f"latents {samples.images.shape[1:]}, pictures {pixels.shape[1:]}")
print(ensdiff.attribute(params, samples, "exact", top=3))
