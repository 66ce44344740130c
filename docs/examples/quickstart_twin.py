"""How often the quickstart names a class, how often it is the class of the picture, and how often it names one falsely.

``python docs/examples/quickstart_twin.py`` trains the quickstart's ensemble and its twin, whose groups are not the
classes but as many random groups of the same sizes (the conditions stay the classes), and attributes 60 samples of each
to the groups, exactly, as the quickstart does. No group of the twin is a cause in any sense but chance.

Fixed before the first run: 60 samples, 6 of each class; 99 null ablations; level 0.1. The quickstart is fit to be shown
if at least half of its samples have a verdict that names a class, if the first named class is the one that a small
classifier sees in at least three of four, and if at most one in ten samples of the twin has a verdict.

Without guidance (seed 0) it missed the second of these: the classifier saw the class that was asked for in 73 %, and
the named class in 73 %. Since then the quickstart samples with a guidance of 2, chosen by how often the classifier sees
what was asked for in other samples (seed 1). What is reported is this script's, with seed 2.
"""

import numpy as np

import ensdiff
from ensdiff.metrics import fit_classifier
from ensdiff.metrics.arrays import at_most
from experiments import building
from experiments.bases import start_of
from experiments.configs import quickstart

SAMPLES, SEED = 60, 2


def main() -> None:
    """Train both ensembles, attribute their samples, and print a line for each."""
    config = quickstart.get_config()
    data = building.load_data(building.section(config, "data"))
    classifier = fit_classifier(data.images, data.labels)
    labels = np.asarray(data.labels)
    for name, groups in (("quickstart", labels), ("twin", np.random.default_rng(7).permutation(labels))):
        code = ensdiff.Code.hierarchical(16, groups)
        params = ensdiff.train(data, code, **start_of(config, data)._asdict())
        cond = np.arange(SAMPLES) % 10
        samples = ensdiff.sample(
            params, SEED, SAMPLES, steps=20, sampler="euler", cond=cond, guidance=2.0, progress=True
        )
        seen = classifier.predict(np.asarray(samples.images))
        att = ensdiff.attribute(params, samples, "exact", code=code.group_code(), null="auto", top=4, progress=True)
        assert att.q_value is not None
        assert att.q_value_of_call is not None
        named = at_most(att.q_value, att.level)
        has = named.any(1)
        first = att.units[np.arange(SAMPLES), named.argmax(1)]
        together, right = at_most(att.q_value_of_call, att.level).any(1), (first == seen)[has]
        print(
            f"{name}: the classifier sees the class that was asked for in {(seen == cond).mean():.0%}; "
            f"{has.mean():.0%} of samples have a verdict ({together.mean():.0%} with q among all samples), which names "
            f"{named.sum(1)[has].mean():.2f} groups; the first is the classifier's class in {right.mean():.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
