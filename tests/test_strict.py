"""The strict settings that all tests run under are in force."""

import jax
import jax.numpy as jnp
import pytest

from tests.conftest import SMOKE
from tests.helpers import ROOT


def test_no_promotion():
    with pytest.raises(jax.dtypes.TypePromotionError):
        jnp.ones(2, jnp.int32) + jnp.ones(2)
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((3, 2)) + jnp.ones(2)


def test_what_is_smoke_exists():
    assert [path for path in SMOKE if not (ROOT / path).exists()] == []
