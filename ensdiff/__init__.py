"""Encoded ensembles of diffusion models: which training data does this sample depend on?

Every training unit has a binary code word; member k trains only on the units whose word has a 1 at k; the members'
noise predictions are averaged. Dropping the members that saw a unit, and regenerating from the same noise, gives what
would have been made had the unit never existed (Dai & Gifford, arXiv 2306.02174).
"""

from ensdiff import baselines, data, metrics
from ensdiff._version import __version__
from ensdiff.attribution import (
    Attribution,
    LossConfig,
    attribute,
    contrast,
    gram,
    group_values,
    jacobian,
    loss_matrix,
    predicted_counterfactuals,
)
from ensdiff.certificate import Certificate, Verification, certify, forget
from ensdiff.checkpoint import check_run, load, read_metrics, save
from ensdiff.codes import Code, CodeWarning, NoSurvivorError
from ensdiff.data import DataWarning
from ensdiff.ensemble import Ensemble, make_mesh, predict
from ensdiff.identity import check_data, training_data
from ensdiff.integrity import DamagedError, DamageWarning
from ensdiff.preempt import Preempted
from ensdiff.sample import Samples, counterfactuals, sample
from ensdiff.schedule import SamplerConfig, Schedule
from ensdiff.storage import FolderInUseError
from ensdiff.train import DivergedError, TrainConfig, train
from ensdiff.unet import UNet, UNetConfig

__all__ = [
    "Attribution",
    "Certificate",
    "Code",
    "CodeWarning",
    "DamageWarning",
    "DamagedError",
    "DataWarning",
    "DivergedError",
    "Ensemble",
    "FolderInUseError",
    "LossConfig",
    "NoSurvivorError",
    "Preempted",
    "SamplerConfig",
    "Samples",
    "Schedule",
    "TrainConfig",
    "UNet",
    "UNetConfig",
    "Verification",
    "__version__",
    "attribute",
    "baselines",
    "certify",
    "check_data",
    "check_run",
    "contrast",
    "counterfactuals",
    "data",
    "forget",
    "gram",
    "group_values",
    "jacobian",
    "load",
    "loss_matrix",
    "make_mesh",
    "metrics",
    "predict",
    "predicted_counterfactuals",
    "read_metrics",
    "sample",
    "save",
    "train",
    "training_data",
]
