"""Settings of every test: two to four CPU devices, a compilation cache, and shape checks by jaxtyping's import hook."""

import os
import pathlib

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")

from jaxtyping import install_import_hook

with install_import_hook(["ensdiff.schedule", "ensdiff.ensemble", "ensdiff.codes", "ensdiff.data"], "beartype.beartype"):
    import ensdiff  # noqa: F401

import jax
import numpy as np
import pytest
from hypothesis import settings

CACHE = pathlib.Path(__file__).parent.parent / ".jax_cache"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

settings.register_profile("ensdiff", deadline=None, max_examples=30)
settings.load_profile("ensdiff")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
