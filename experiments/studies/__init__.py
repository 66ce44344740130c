"""The studies of `experiments.evaluate`, one module each: ``models(shop)`` trains the models, ``study(shop)`` runs."""

from collections.abc import Callable

from . import generative, groups, judging, lds, planted, retraining, size
from .findings import Findings
from .workshop import Workshop

STUDIES: dict[str, Callable[[Workshop], Findings]] = {
    "generative": generative.study,
    "retraining": retraining.study,
    "size": size.study,
    "groups": groups.study,
    "planted": planted.study,
    "lds": lds.study,
    "judging": judging.study,
}
"""The studies by the name of their section in a config, in the order in which they run."""
