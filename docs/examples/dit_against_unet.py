"""Compare a DiT and a U-Net of equal floating-point operations on Fashion-MNIST 14x14.

Run it as it is, or with another number of steps: ``python docs/examples/dit_against_unet.py 300``.

Fixed before the first run: both are trained by the config ``fashion_dit`` (flow matching, K = 6, 700 steps of 32
images per member); the U-Net has its usual learning rate of 2e-3, the DiT 1e-3. The figure of merit is the Frechet
distance between 500 samples (25 Euler steps) and the 500 held-out images, in the features of a small classifier. The
DiT passes if its distance is at most 1.2 times that of the U-Net.
"""

import sys

import numpy as np

import ensdiff
from ensdiff.metrics import fit_classifier, frechet_distance, frechet_floor
from ensdiff.planning.flops import network_flops
from experiments import building
from experiments.configs import fashion_dit


def main(steps: int) -> None:
    """Train both, and print their operations and distances."""
    config = fashion_dit.get_config()
    config.train.steps = steps
    values = building.section(config, "data")
    data, held_out = building.load_data(values), building.load_held_out(values)
    code = building.build_code(building.section(config, "code"), data)
    dit, schedule, train = building.settings(config, 1)
    unet = ensdiff.UNetConfig(channels=16, multipliers=(1, 2), norm_groups=8)
    classifier = fit_classifier(data.images, data.labels)
    real = classifier.features(held_out.images)
    print(f"floor: {frechet_floor(classifier.features(data.images), len(real)):.2f}", flush=True)
    for name, model, rate in (("U-Net", unet, 2e-3), ("DiT", dit, 1e-3)):
        params = ensdiff.train(
            data,
            code,
            model,
            train,
            schedule=schedule,
            learning_rate=rate,
            run_dir=f"runs/{name}_{steps}",
            progress=False,
        )
        images = np.asarray(ensdiff.sample(params, 0, len(real), sampler="euler", steps=25).images)
        found = frechet_distance(classifier.features(images), real).value
        flops = network_flops(model, data.shape).train
        print(f"{name}: {flops / 1e6:.1f} MFLOP per image and step, distance {found:.2f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 700)
