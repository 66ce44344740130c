"""Projected gradients: against jax.grad, by part, in chunks, and what projections keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ensdiff.attribution.draws import LossConfig, draw_noise
from ensdiff.attribution.gradients import RIDGES, GradientConfig, features, projected_gradients, stream_gradients
from ensdiff.attribution.gradients.features import draw_signs, plan_sketch, project, sketch
from ensdiff.diffusion.schedule import add_noise
from ensdiff.ensemble.members import apply_member
from tests.helpers import blobs

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def by_hand(tiny):
    """Return a compiled function of one member's parameters, an image and a row of `WEIGHT` that computes (g1).

    It returns the gradient of each of two parts of four draws, of a weighted sum of the three outputs, so that one
    program serves them all.
    """
    t_R = jnp.asarray(LossConfig(block=4, draws=8).draw_levels(tiny.schedule, KEY, 0))
    assert (np.diff(t_R) >= 0).all()  # part 0 has the least noise
    eps = draw_noise(jax.random.fold_in(KEY, 1), jnp.arange(4), tiny.image_shape)
    v = draw_signs(jax.random.fold_in(KEY, 3), jnp.arange(4), tiny.image_shape)

    def quantity(theta, image, weight, draw):
        x = tiny.space.to_model(image)
        noisy = add_noise(tiny.schedule, x[None], t_R[draw][None], eps[draw][None])
        predicted = apply_member(tiny.model, theta, noisy, t_R[draw][None])[0]
        pairs = ((predicted - eps[draw],) * 2, (predicted,) * 2, (v[draw], predicted))
        return jnp.vdot(weight, jnp.stack([jnp.vdot(a, b) for a, b in pairs]))

    def parts(theta, image, weight):
        gradient = jax.grad(quantity)
        rows = jax.lax.map(lambda draw: ravel_pytree(gradient(theta, image, weight, draw))[0], jnp.arange(4))
        return rows.reshape(2, 2, -1).mean(1)

    return jax.jit(parts)


WEIGHT = dict(zip(("loss", "square", "output"), jnp.eye(3), strict=True))


@pytest.mark.parametrize(("output", "projection"), [("loss", "signs"), ("square", "sketch"), ("output", "sketch")])
def test_against_jax_grad(tiny, by_hand, monkeypatch, output, projection):
    """Images come in chunks, the last of which is not full; with little memory, signs take one image at a time."""
    monkeypatch.setattr(features, "IMAGES", (2, 2))
    images, config = blobs(3), GradientConfig(draws=4, parts=2, dimension=64, projection=projection)
    chunks = list(stream_gradients(tiny, images, output, config, members=[1, 3], memory_budget=1))
    assert [chunk.start for chunk in chunks] == ([0, 2] if projection == "sketch" else [0, 1, 2])
    got = np.concatenate([chunk.phi_KCGD for chunk in chunks], axis=1)
    assert got.shape == (2, 3, 2, 64)
    key = jax.random.fold_in(KEY, 2)
    for row, k in enumerate((1, 3)):
        own = jax.tree.map(lambda a, k=k: a[k], tiny.params)
        for b in range(3):
            rows_GP = by_hand(own, images[b], WEIGHT[output])
            plan = plan_sketch(key, rows_GP.shape[1], 64)
            expected = sketch(rows_GP, plan) if projection == "sketch" else project(rows_GP, key, 64)
            np.testing.assert_allclose(got[row, b], expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


# projections


def matrix(size, dimension):
    """Return the (size, D) matrix of a sketch, from its effect on unit vectors."""
    return np.asarray(sketch(jnp.eye(size), plan_sketch(KEY, size, dimension)))


@pytest.mark.parametrize(("size", "dimension"), [(1, 1), (5, 12), (200, 8)])
def test_sketch_against_a_loop(size, dimension):
    """Every parameter is added once with a sign, and parameters of one row of D go to different numbers."""
    P = matrix(size, dimension)
    assert (np.abs(P).sum(1) == 1).all()
    assert set(np.unique(P)) <= {-1, 0, 1}
    place = np.abs(P).argmax(1)
    for start in range(0, size, dimension):
        row = place[start : start + dimension]
        assert len(set(row)) == len(row)
    if size == 200:
        assert len(set(place[::dimension])) == dimension  # rows are shifted by different numbers of places
    plan = plan_sketch(KEY, size, dimension)
    values, out = np.random.default_rng(size).normal(size=size).astype(np.float32), np.zeros(dimension)
    for p, value in enumerate(values):
        r, c = divmod(p, dimension)
        shift = -int(plan.source_RD[r, 0]) % dimension
        out[(c + shift) % dimension] += float(plan.sign_RD[r, c]) * value
    np.testing.assert_allclose(sketch(jnp.asarray(values)[None], plan)[0], out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["sketch", "signs"])
def test_projections_keep_inner_products_with_the_stated_variance(kind, rng):
    """Over keys, ``phi . phi'`` is ``g . g'`` on average, with the variance that the module states."""
    size, D, keys = 300, 8, 2000
    rows = jnp.asarray(rng.normal(size=(2, size)) + 0.5, jnp.float32)

    def one(key):
        phi = sketch(rows, plan_sketch(key, size, D)) if kind == "sketch" else project(rows, key, D)
        return jnp.vdot(phi[0], phi[1])

    found = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, keys)), np.float64)
    a, b = np.asarray(rows, np.float64)
    variance = ((a @ a) * (b @ b) + (a @ b) ** 2) / D
    assert abs(found.mean() - a @ b) < 5 * np.sqrt(variance / keys)
    assert 0.85 < found.var() / variance < 1.15


@pytest.mark.parametrize(("size", "dimension"), [(1, 1), (40, 9)])
def test_signs_over_blocks(monkeypatch, size, dimension):
    monkeypatch.setattr(features, "ROWS", 16)  # whole blocks and a partial one
    P = np.sqrt(dimension) * np.asarray(project(jnp.eye(size), KEY, dimension))
    np.testing.assert_allclose(np.abs(P), 1, rtol=1e-5)
    assert np.linalg.matrix_rank(P) == min(size, dimension)
    rows = np.random.default_rng(0).normal(size=(6, size)).astype(np.float32)
    got = project(jnp.asarray(rows), KEY, dimension)
    np.testing.assert_allclose(got, rows @ P / np.sqrt(dimension), rtol=1e-3, atol=1e-4)


# settings


def test_settings_run_over_what_is_open():
    assert len(GradientConfig().settings()) == len(set(GradientConfig().settings())) == 24
    assert {setting.levels for setting in GradientConfig(parts=1).settings()} == {"all"}
    (one,) = GradientConfig(ridge=0.5, levels="low", normalize=True, dimension=7).settings()
    assert one == (0.5, "low", True, 7)
    assert [setting.ridge for setting in GradientConfig().settings()[:4]] == list(RIDGES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(draws=0), "at least 1"),
        (dict(parts=3), "divisor of draws=16"),
        (dict(ridge=0.0), "at least 1e-06"),
        (dict(levels="middle"), "'all', 'low', 'high'"),
        (dict(projection="gauss"), "'sketch', 'signs'"),
        (dict(normalize=1), "True or False"),
    ],
)
def test_bad_settings(given, message):
    with pytest.raises(ValueError, match=message):
        GradientConfig(**given)


def test_bad_requests(tiny):
    with pytest.raises(ValueError, match="'loss', 'square', 'output'"):
        projected_gradients(tiny, blobs(1), "cube")
    with pytest.raises(ValueError, match="0 .. 3"):
        projected_gradients(tiny, blobs(1), members=[4])
