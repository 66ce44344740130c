"""Metrics: functions of arrays that return an `Estimate` with its 95 % interval, or a NamedTuple of these."""

from ensdiff.metrics.bootstrap import Estimate, bootstrap, proportion
from ensdiff.metrics.classifier import Classifier, fit_classifier
from ensdiff.metrics.counterfactual import (
    PowerLaw,
    Radius,
    RemovalEffect,
    false_attribution,
    power_law,
    published_scale,
    radius,
    removal,
    unattributable,
)
from ensdiff.metrics.datamodel import lds, lds_ceiling, loo, of_many
from ensdiff.metrics.frechet import frechet_distance, frechet_floor
from ensdiff.metrics.kernel import kernel_distance
from ensdiff.metrics.retrieval import GroupRetrieval, PlantedRetrieval, group_retrieval, planted

__all__ = [
    "Classifier",
    "Estimate",
    "GroupRetrieval",
    "PlantedRetrieval",
    "PowerLaw",
    "Radius",
    "RemovalEffect",
    "bootstrap",
    "false_attribution",
    "fit_classifier",
    "frechet_distance",
    "frechet_floor",
    "group_retrieval",
    "kernel_distance",
    "lds",
    "lds_ceiling",
    "loo",
    "of_many",
    "planted",
    "power_law",
    "proportion",
    "published_scale",
    "radius",
    "removal",
    "unattributable",
]
