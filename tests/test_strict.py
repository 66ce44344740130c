"""The strict settings that all tests run under are in force."""

import importlib
import pkgutil

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

import ensdiff
from ensdiff.codes.combinations import unrank
from ensdiff.codes.permute import mix
from ensdiff.models.conv import conv2d
from tests.conftest import SMOKE
from tests.helpers import ROOT


def test_no_promotion():
    with pytest.raises(ValueError, match="dtype promotion"):
        jnp.ones(2, jnp.int32) + jnp.ones(2)
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((3, 2)) + jnp.ones(2)


def test_shapes_are_checked():
    with pytest.raises(TypeCheckError, match="Expected type: .*h w C D"):
        conv2d(jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 1, 1)))  # 3 channels and 1
    with pytest.raises(TypeCheckError, match="Expected type: .*B H W C"):
        conv2d(jnp.ones((2, 4, 4, 1), jnp.int32), jnp.ones((3, 3, 1, 1)))


def test_every_module_is_hooked():
    names = [found.name for found in pkgutil.walk_packages(ensdiff.__path__, "ensdiff.")]
    unhooked = [name for name in names if type(importlib.import_module(name).__loader__).__name__ != "_JaxtypingLoader"]
    assert unhooked == []
    assert unrank.__wrapped__.__module__ == unrank.__module__
    assert not hasattr(mix, "__wrapped__")  # has no annotation to check, so no call of it pays for one


def test_what_is_smoke_exists():
    assert [path for path in SMOKE if not (ROOT / path).exists()] == []
