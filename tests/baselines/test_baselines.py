"""Baselines: gradients against jax.grad, TRAK against the closed form of a linear model, scores against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import ensdiff
from ensdiff import baselines
from ensdiff.attribution.draws import LossConfig, draw_noise
from ensdiff.baselines.gradients import project
from ensdiff.data import arrays
from ensdiff.diffusion.schedule import add_noise
from ensdiff.ensemble.ensemble import to_model
from ensdiff.ensemble.members import apply_member
from tests.helpers import blobs

KEY = jax.random.key(0)


def by_hand(params, output, draws):
    """Return a compiled function of one member's parameters and one image that computes (g1)."""
    t_D = jnp.asarray(LossConfig(block=draws, draws=2 * draws).draw_levels(params.schedule, KEY, 0))
    eps = draw_noise(jax.random.fold_in(KEY, 1), jnp.arange(draws), params.image_shape)

    def quantity(theta, image):
        x = to_model(image, params.value_range)
        x_D = add_noise(params.schedule, jnp.broadcast_to(x, eps.shape), t_D, eps)
        predicted = apply_member(params.model, theta, x_D, t_D)
        error = predicted - eps if output == "loss" else predicted
        return jnp.mean(jnp.sum(jnp.square(error), axis=(1, 2, 3)))

    return jax.jit(lambda theta, image: ravel_pytree(jax.grad(quantity)(theta, image))[0])


def signs(size, dimension):
    """Return P, computed by projecting unit vectors."""
    return np.sqrt(dimension) * np.asarray(project(jnp.eye(size), jax.random.fold_in(KEY, 2), dimension))


@pytest.mark.parametrize("output", ["loss", "square"])
def test_projected_gradients_against_jax_grad(tiny, output):
    images = blobs(3)
    got = baselines.projected_gradients(tiny, images, output, 0, draws=4, dimension=64, members=[1, 3])
    assert got.shape == (2, 3, 64)
    gradient = by_hand(tiny, output, 4)
    for row, k in enumerate((1, 3)):
        own = jax.tree.map(lambda a, k=k: a[k], tiny.params)
        for b in range(3):
            expected = project(gradient(own, images[b])[None], jax.random.fold_in(KEY, 2), 64)[0]
            np.testing.assert_allclose(got[row, b], expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


def test_chunks_and_members_do_not_matter(tiny):
    images = blobs(5)
    whole = baselines.projected_gradients(tiny, images, draws=2, dimension=16)
    some = baselines.projected_gradients(tiny, images[:2], draws=2, dimension=16, members=[2], memory_budget=1)
    np.testing.assert_allclose(some[0], whole[2, :2], rtol=1e-4, atol=1e-4 * np.abs(whole).max())


@pytest.mark.parametrize(("size", "dimension"), [(1, 1), (40, 9)])
def test_projection_is_of_signs_and_keeps_products(size, dimension):
    P = signs(size, dimension)
    np.testing.assert_allclose(np.abs(P), 1, rtol=1e-5)


def test_projection_over_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 50)).astype(np.float32)
    monkeypatch.setattr(baselines.gradients, "ROWS", 16)  # three whole blocks and a partial one
    P = signs(50, 4000) / np.sqrt(4000)
    got = np.asarray(project(jnp.asarray(rows), jax.random.fold_in(KEY, 2), 4000))
    np.testing.assert_allclose(got, rows @ P, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got @ got.T, rows @ rows.T, atol=6 * 50 / np.sqrt(4000))
    assert np.linalg.matrix_rank(P) == 50


# TRAK


@given(st.integers(0, 1000))
def test_trak_of_a_linear_model_is_its_influence(seed):
    """Up to the residual, (k1) is the derivative of a least-squares prediction with respect to an item's weight."""
    rng = np.random.default_rng(seed)
    X, y, q = rng.normal(size=(20, 4)), rng.normal(size=20), rng.normal(size=(3, 4))

    def predictions(weight):
        theta = np.linalg.solve((X * weight[:, None]).T @ X, X.T @ (weight * y))
        return q @ theta, y - X @ theta

    _, residual = predictions(np.ones(20))
    scores = baselines.trak_scores(q[None], X[None], 0.0) * residual
    for i in range(20):
        up, down = np.ones(20), np.ones(20)
        up[i], down[i] = 1 + 1e-5, 1 - 1e-5
        derivative = (predictions(up)[0] - predictions(down)[0]) / 2e-5
        np.testing.assert_allclose(scores[:, i], derivative, rtol=1e-5, atol=1e-7)


@given(st.integers(0, 1000), st.integers(1, 8), st.integers(1, 8), st.floats(1e-3, 10))
def test_trak_against_a_solve(seed, n, d, ridge):
    rng = np.random.default_rng(seed)
    query, train = rng.normal(size=(2, 3, d)), rng.normal(size=(2, n, d))
    expected = np.zeros((3, n))
    for k in range(2):
        kernel = train[k].T @ train[k] / n
        damped = kernel + ridge * np.trace(kernel) / d * np.eye(d)
        expected += query[k] @ np.linalg.solve(damped, train[k].T) / n / 2
    np.testing.assert_allclose(baselines.trak_scores(query, train, ridge), expected, rtol=1e-6, atol=1e-9)


def test_cosines_and_bad_gradients(rng):
    a = rng.normal(size=(2, 3, 5))
    np.testing.assert_allclose(np.diag(baselines.cosine_scores(a, 7 * a)), 1)
    assert (baselines.cosine_scores(a, 0 * a) == 0).all()
    assert (baselines.trak_scores(a, 0 * a, 0.1) == 0).all()
    with pytest.raises(ValueError, match="K, B, D"):
        baselines.trak_scores(a, a[:1], 0.1)
    with pytest.raises(ValueError, match="ridge=-1"):
        baselines.trak_scores(a, a, -1)


# the common signature


@pytest.fixture(scope="module")
def grouped():
    return arrays(blobs(8), [0, 0, 1, 1, 1, 2, 3, 3])


def test_units_of_several_items(tiny, grouped):
    query = blobs(8)[[3, 5]] / np.float32(255)

    def features(images):
        return images.reshape(len(images), -1)[:, ::3]

    config = baselines.BaselineConfig(draws=2, dimension=32)
    found = baselines.baseline_scores(query, grouped, tiny, config=config, features=features)
    assert list(found) == list(baselines.BASELINES)
    assert {scores.shape for scores in found.values()} == {(2, 4)}
    assert found["pixel"].argmax(1).tolist() == found["feature"].argmax(1).tolist() == [1, 2]
    assert found["pixel"].max(1).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert (found["constant"] == 1).all()
    # a unit's score is the sum of its items' scores
    items = baselines.baseline_scores(query, grouped.regroup(None), tiny, config=config, methods=["trak", "gradient"])
    for name, scores in items.items():
        expected = np.stack([scores[:, grouped.unit_of_item == unit].sum(1) for unit in range(4)], axis=1)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-6)
    assert (items["gradient"].argmax(1) == [3, 5]).all()  # the query's own gradient has a cosine of 1
    distance = np.linalg.norm((query[0] - grouped.images[:2] / 255.0).reshape(2, -1), axis=1).min()
    assert found["pixel"][0, 0] == pytest.approx(-distance)


def test_only_what_the_arguments_allow(tiny, grouped):
    assert list(baselines.baseline_scores(blobs(2), grouped)) == ["random", "constant", "pixel"]
    for methods, message in ((["trak"], "needs the ensemble"), (["feature"], "feature function"), (["x"], "'x'")):
        with pytest.raises(ValueError, match=message):
            baselines.baseline_scores(blobs(2), grouped, methods=methods)
    for value, message in ((np.nan, "NaN or infinity at"), (-1.0, "are masked")):
        row = np.ma.masked_less([value, 1.0], 0)
        with pytest.raises(ValueError, match=f"features of the images.*{message}"):
            baselines.baseline_scores(blobs(2), grouped, features=lambda x, row=row: np.ma.stack([row] * len(x)))
    with pytest.raises(ValueError, match="0 .. 3"):
        baselines.baseline_scores(blobs(2), grouped, tiny, methods=["trak"], members=[4])
    with pytest.raises(ValueError, match="training data"):
        baselines.baseline_scores(np.zeros((2, 4, 4, 1)), grouped)
    with pytest.raises(ValueError, match="no negative ridge"):
        baselines.BaselineConfig(ridge=-1.0)
    with pytest.raises(ValueError, match="'loss' or 'square'"):
        baselines.projected_gradients(tiny, blobs(1), "cube")
    assert ensdiff.baselines is baselines
