"""Denoising networks of one member, behind one seam (`Denoiser`); their conditions; pixels and latents."""

from ensdiff.models.adapters import Adapted, adapted
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.denoiser import Denoiser, check_inputs
from ensdiff.models.describing import fingerprint_of, model_from_dict
from ensdiff.models.dit import DiTConfig, dit
from ensdiff.models.own import functions, linen, nnx
from ensdiff.models.space import Latents, Pixels
from ensdiff.models.unet import UNetConfig, unet

__all__ = [
    "Adapted",
    "ConditionSpec",
    "Denoiser",
    "DiTConfig",
    "Latents",
    "Pixels",
    "UNetConfig",
    "adapted",
    "check_inputs",
    "dit",
    "fingerprint_of",
    "functions",
    "linen",
    "model_from_dict",
    "nnx",
    "unet",
]
