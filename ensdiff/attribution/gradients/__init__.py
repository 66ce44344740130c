"""Gradient methods: projected gradients of images under each member, and kernels that know what a member saw."""

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

__all__ = [
    "OUTPUTS",
    "RIDGES",
    "GradientConfig",
    "MemberKernel",
    "MemberScores",
    "Setting",
    "member_scores",
    "over_units",
    "projected_gradients",
    "reduce",
    "stream_gradients",
    "stream_scores",
]
