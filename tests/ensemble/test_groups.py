"""Functions of single members, applied in groups of every size, against a loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensdiff
from ensdiff.ensemble.members import group_size, over_members, sum_over_members, update_members
from ensdiff.ensemble.memory import count_micro_batches, least_bytes
from ensdiff.ensemble.tracing import activation_bytes
from tests.helpers import TINY


def grouped(stack):
    return dataclasses.replace(TINY, conv="loop", stack=stack)


def test_size_of_a_group():
    sizes = {stack: group_size(grouped(stack), 12) for stack in (0, 1, 2, 5, 7, 11, 12, 99)}
    assert sizes == {0: 12, 1: 1, 2: 2, 5: 4, 7: 6, 11: 6, 12: 12, 99: 12}
    assert group_size(grouped(0), 1) == group_size(grouped(5), 1) == group_size(TINY, 12) == 1


@pytest.mark.parametrize("stack", [1, 2, 3, 6])
def test_members_in_groups_against_a_loop(stack):
    model, K = grouped(stack), 6
    a = {"x": jnp.arange(12.0).reshape(6, 2), "empty": None}
    b = jnp.arange(6.0)

    def scaled(a, b):
        assert a["x"].shape == (2,)
        assert b.shape == ()
        return {"y": a["x"] * b, "squared": b * b}

    expected = [{"y": np.asarray(a["x"][k]) * k, "squared": k * k} for k in range(K)]
    found = jax.jit(lambda a, b: over_members(model, scaled, a, b))(a, b)
    total = jax.jit(lambda a, b: sum_over_members(model, scaled, a, b))(a, b)
    for name in ("y", "squared"):
        np.testing.assert_array_equal(found[name], np.stack([e[name] for e in expected]))
        np.testing.assert_array_equal(total[name], sum(e[name] for e in expected))

    def update(old, b):
        return {"x": old["x"] + b, "empty": None}, old["x"].sum() * b

    for in_place in (True, False):
        new, rest = jax.jit(lambda a, b, kept=in_place: update_members(model, update, a, b, in_place=kept))(a, b)
        np.testing.assert_array_equal(new["x"], np.asarray(a["x"]) + np.arange(6.0)[:, None])
        np.testing.assert_array_equal(rest, np.asarray(a["x"]).sum(1) * np.arange(6))


@pytest.mark.parametrize("stack", [1, 2])
def test_a_donated_state_is_replaced_in_place(stack):
    """The loop over groups needs less than one group's copy of the state beside the donated one."""

    def update(x, y):
        return jnp.cos(x) + y, y

    state, y = jnp.zeros((4, 1024)), jnp.zeros(4)
    compiled = jax.jit(lambda x, y: update_members(grouped(stack), update, x, y), donate_argnums=0).lower(state, y)
    memory = compiled.compile().memory_analysis()
    assert memory.alias_size_in_bytes >= state.nbytes
    assert memory.temp_size_in_bytes <= stack * 2 * 4096 + 1024


def test_memory_follows_the_size_of_a_group(tiny):
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:2])  # two members on each
    one = activation_bytes(TINY, (8, 8, 1))
    found = [
        least_bytes(dataclasses.replace(tiny, model=model), mesh)
        for model in (TINY, grouped(1), grouped(2), grouped(0))
    ]
    assert found == [one, one, 2 * one, 2 * one]
    big = dataclasses.replace(TINY, channels=64, multipliers=(1,))
    parts = [
        count_micro_batches(dataclasses.replace(big, conv="loop", stack=n), (64, 64, 1), 4, mesh) for n in (1, 2, 0)
    ]
    assert parts == [4, 1, 1]


@pytest.mark.slow
def test_samples_and_derivatives_in_groups_are_those_of_single_members(tiny):
    """Counterfactuals of members that each keep other states, so that the batches of a group are of unequal length."""
    sampler = ensdiff.SamplerConfig("ddim", 3)
    samples = ensdiff.sample(tiny, 0, 3, sampler=sampler)
    alone = dataclasses.replace(tiny, model=dataclasses.replace(TINY, conv="map"))
    expected = ensdiff.counterfactuals(alone, samples, [0, 3, 1]), ensdiff.jacobian(alone, samples)
    for conv, stack in (("matmul", 2), ("grouped", 4), ("loop", 1)):
        params = dataclasses.replace(tiny, model=dataclasses.replace(TINY, conv=conv, stack=stack))
        assert params.fingerprint == tiny.fingerprint
        found = ensdiff.counterfactuals(params, samples, [0, 3, 1]), ensdiff.jacobian(params, samples)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
