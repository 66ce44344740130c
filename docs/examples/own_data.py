"""A data set of your own: an array of images, and the group of each."""

import numpy as np

import ensdiff


def sketches(artists: int = 10, each: int = 4, seed: int = 0) -> ensdiff.data.Dataset:
    """Drawings of 8x8, one unit per artist. Read your files here, and return the result of `from_images`."""
    rng = np.random.default_rng(seed)
    style = rng.random((artists, 1, 8, 8))
    images = (0.8 * style + 0.2 * rng.random((artists, each, 8, 8))).reshape(-1, 8, 8)
    groups = np.repeat([f"artist {a}" for a in range(artists)], each)
    return ensdiff.data.from_images(images, groups, name="sketches")


data = sketches()
print(data)

code = ensdiff.Code.balanced(members=6, units=data.units, seed=0)
model = ensdiff.UNetConfig(channels=4, multipliers=(1,), norm_groups=2)
params = ensdiff.train(data, code, model, steps=3, batch_size=4, progress=False)
print(params)
