"""Other implementations' checkpoints and files; torch is imported only when one of theirs is read or written."""

from ensdiff.interop import ctf, diffusers, genens
from ensdiff.interop.inception import inception
from ensdiff.interop.matrices import read_code
from ensdiff.interop.tensors import channels_last

SAMPLERS = {"genens": genens.SAMPLER, "diffusers": diffusers.SAMPLER}
"""The references' samplers, by name."""

__all__ = ["SAMPLERS", "channels_last", "ctf", "diffusers", "genens", "inception", "read_code"]
