"""Checkpoints and files of other implementations. torch is imported only when one of them is read or written."""

from ensdiff.interop import ctf, diffusers, genens, lora
from ensdiff.interop.inception import inception
from ensdiff.interop.matrices import read_code
from ensdiff.interop.tensors import channels_last
from ensdiff.interop.text import text_encoder
from ensdiff.interop.vae import vae

SAMPLERS = {"genens": genens.SAMPLER, "diffusers": diffusers.SAMPLER}
"""The samplers of the reference implementations, by name."""

__all__ = [
    "SAMPLERS",
    "channels_last",
    "ctf",
    "diffusers",
    "genens",
    "inception",
    "lora",
    "read_code",
    "text_encoder",
    "vae",
]
