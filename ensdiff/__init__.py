"""Encoded ensembles of diffusion models: which training data does this sample depend on?

Every training unit has a binary code word; member k trains only on the units whose word has a 1 at k; the members'
noise predictions are averaged. Dropping the members that saw a unit and regenerating from the same noise gives the
image that would have been generated had the unit never existed (Dai & Gifford, arXiv 2306.02174).
"""

from ensdiff import baselines, data, metrics, models
from ensdiff.attribution import (
    Attribution,
    GradientConfig,
    Judgement,
    LossConfig,
    attribute,
    contrast,
    gram,
    group_values,
    jacobian,
    judge,
    loss_matrix,
    predicted_counterfactuals,
)
from ensdiff.certificate import Certificate, Verification, certify, forget
from ensdiff.codes import Code, CodeWarning, NoSurvivorError
from ensdiff.data import DataWarning
from ensdiff.diffusion.samplers import SamplerConfig
from ensdiff.diffusion.schedule import Schedule
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.members import predict
from ensdiff.ensemble.mesh import make_mesh
from ensdiff.files.checksums import DamagedError, DamageWarning
from ensdiff.files.version import __version__
from ensdiff.files.writing import FolderInUseError
from ensdiff.models.dit import DiTConfig
from ensdiff.models.unet import UNet, UNetConfig
from ensdiff.runs.checking import check_run
from ensdiff.runs.identity import check_data, training_data
from ensdiff.runs.loading import load, save
from ensdiff.runs.logs import read_metrics
from ensdiff.sampling.sample import Samples, counterfactuals, sample
from ensdiff.training.loop import DivergedError, TrainConfig, train
from ensdiff.training.preemption import Preempted

__all__ = [
    "Attribution",
    "Certificate",
    "Code",
    "CodeWarning",
    "DamageWarning",
    "DamagedError",
    "DataWarning",
    "DiTConfig",
    "DivergedError",
    "Ensemble",
    "FolderInUseError",
    "GradientConfig",
    "Judgement",
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
    "judge",
    "load",
    "loss_matrix",
    "make_mesh",
    "metrics",
    "models",
    "predict",
    "predicted_counterfactuals",
    "read_metrics",
    "sample",
    "save",
    "train",
    "training_data",
]
