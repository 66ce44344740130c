"""Members in groups: every form and size of a group predicts and trains as the loop over members does."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import ensdiff
from ensdiff.data import Splits
from ensdiff.ensemble.mesh import on_mesh
from ensdiff.models.conv import STACKED
from ensdiff.planning.lowering import read_lowered
from ensdiff.training.config import TrainConfig, seed_of
from ensdiff.training.host import make_batch
from ensdiff.training.step import init_state, make_train_step
from tests.helpers import CODE, DEEP, SHORT, TINY, blobs

pytestmark = pytest.mark.slow

CONFIG = TrainConfig(batch_size=2, learning_rate=1e-2, warmup=1, ema=0.9)


def network(conv, stack=0, of=TINY):
    return dataclasses.replace(of, conv=conv, stack=stack)


def setup(images, model):
    """Return the compiled step on one device, its arguments without the step, and a function that makes a batch."""
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:1])
    data = ensdiff.data.arrays(images)
    splits = Splits.build(data, CODE)
    state = on_mesh(init_state(model, data.shape, 4, CONFIG), mesh)
    step_fn = make_train_step(model, SHORT, CONFIG, mesh)
    return step_fn, state, lambda step: on_mesh(make_batch(data, splits, CONFIG, step), mesh, P("member", "data"))


def run(images, model):
    """Return the state after two steps, and the losses of the second."""
    step_fn, state, batch = setup(images, model)
    for step in range(2):
        state, metrics = step_fn(state, batch(step), np.int32(step), seed_of(CONFIG))
    return jax.tree.map(np.asarray, (state, metrics.loss_K))


def lowered(model):
    step_fn, state, batch = setup(blobs(), model)
    return step_fn.lower(state, batch(0), np.int32(0), seed_of(CONFIG))


@pytest.fixture(scope="module")
def one_by_one():
    return run(blobs(), network("map"))


@pytest.mark.parametrize("stack", [2, 4])
@pytest.mark.parametrize("conv", STACKED)
def test_groups_train_as_single_members_and_keep_apart(one_by_one, conv, stack):
    """If every pixel of one unit changes, exactly the members that did not see it stay the same bit for bit."""
    model = network(conv, stack)
    found = run(blobs(), model)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one_by_one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)
    images = blobs()
    images[0] = 255 - images[0]
    leaves = zip(jax.tree.leaves(found[0]), jax.tree.leaves(run(images, model)[0]), strict=True)
    same_K = np.all([[np.array_equal(x[k], y[k]) for k in range(4)] for x, y in leaves], axis=0)
    np.testing.assert_array_equal(same_K, CODE.rows(0)[0] == 0)


@pytest.mark.parametrize("conv", STACKED)
def test_only_grouped_makes_grouped_convolutions_of_the_size_of_a_group(conv):
    for stack, size in ((0, 4), (3, 2)):
        groups = set(read_lowered(lowered(network(conv, stack, DEEP))).groups) - {1}
        assert groups == ({size} if conv == "grouped" else set())


@pytest.mark.parametrize("conv", STACKED)
def test_a_group_of_one_is_the_loop_over_members(conv):
    assert lowered(network(conv, 1)).as_text() == lowered(network("map")).as_text()


@pytest.mark.parametrize("stack", [2, 4])
@pytest.mark.parametrize("conv", STACKED)
def test_groups_predict_as_single_members(deep, conv, stack):
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    alone = dataclasses.replace(deep, model=network("map", of=DEEP))
    found = ensdiff.predict(dataclasses.replace(deep, model=network(conv, stack, DEEP)), x, np.array([0, 7, 19]))
    np.testing.assert_allclose(found, ensdiff.predict(alone, x, np.array([0, 7, 19])), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("conv", ["map", "winograd", "auto"])
def test_what_cannot_be_stacked_is_refused(conv):
    network(conv, 1)
    with pytest.raises(ValueError, match=r"stack=2 with conv='\w+'.* 'grouped', 'matmul', 'loop'"):
        network(conv, 2)
    with pytest.raises(ValueError, match="stack=-1: expected a number of members"):
        network(conv, -1)
