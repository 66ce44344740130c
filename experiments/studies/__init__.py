"""The studies of `experiments.evaluate`, one module each: ``models(shop)`` trains what it needs, ``study(shop)`` "
"runs."""

from collections.abc import Callable

from experiments.studies import generative, groups, lds, planted, retraining, size
from experiments.studies.findings import Findings
from experiments.studies.workshop import Workshop

STUDIES: dict[str, Callable[[Workshop], Findings]] = {
    "generative": generative.study,
    "retraining": retraining.study,
    "size": size.study,
    "groups": groups.study,
    "planted": planted.study,
    "lds": lds.study,
}
"""By the name of its section in a config, in the order in which they run."""
