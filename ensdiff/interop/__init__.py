"""Ensembles from other implementations' checkpoints; torch is imported only when one is read."""

from ensdiff.interop import diffusers, genens

__all__ = ["diffusers", "genens"]
