"""Settings of every test: four CPU devices, a compilation cache, and shape checks by jaxtyping's import hook."""

import os
import pathlib

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
# tiny programs spend their time in the compiler: let it optimise less
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

from jaxtyping import install_import_hook

# modules that compute with arrays; in the others a type check would come before the error that a user sees
HOOKED = [
    "ensemble",
    "attribution.differential",
    "attribution.exact",
    "attribution.score",
    "images",
    "report.figures",
]
with install_import_hook([f"ensdiff.{name}" for name in HOOKED], "beartype.beartype"):
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


@pytest.fixture(scope="session")
def tiny():
    """An untrained ensemble of four members for 8x8 images."""
    from tests.helpers import random_ensemble

    return random_ensemble()
