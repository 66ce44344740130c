"""Gradient methods: projected gradients of images under each member, and kernels that know what a member saw.

Gradients are computed when they are needed, or read from a store on the disk (`write_gradients`).
"""

from ensdiff.attribution.gradients.config import RIDGES, GradientConfig, Setting
from ensdiff.attribution.gradients.features import projected_gradients, stream_gradients
from ensdiff.attribution.gradients.kernels import (
    OUTPUTS,
    MemberScores,
    member_scores,
    over_units,
    stream_scores,
)
from ensdiff.attribution.gradients.member_kernel import MemberKernel
from ensdiff.attribution.gradients.reduction import reduce
from ensdiff.attribution.gradients.store import open_gradients, store_bytes, write_gradients
from ensdiff.attribution.gradients.stored import GradientStore

__all__ = [
    "OUTPUTS",
    "RIDGES",
    "GradientConfig",
    "GradientStore",
    "MemberKernel",
    "MemberScores",
    "Setting",
    "member_scores",
    "open_gradients",
    "over_units",
    "projected_gradients",
    "reduce",
    "store_bytes",
    "stream_gradients",
    "stream_scores",
    "write_gradients",
]
