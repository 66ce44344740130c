"""The loss of any image under any weights: R against direct losses, closed forms, error bars, invariances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensdiff
from ensdiff.attribution import LossConfig, loss_matrix
from ensdiff.attribution.draws import draw_noise
from ensdiff.attribution.pictures import model_images, pictures_of
from ensdiff.diffusion.schedule import add_noise
from ensdiff.ensemble.tracing import activation_bytes
from ensdiff.typing import as_key
from tests.helpers import CODE, blobs, random_ensemble

FEW = LossConfig(draws=16, block=8)


@pytest.fixture(scope="module")
def images():
    return blobs(3, seed=5)


@pytest.fixture(scope="module")
def estimate(tiny, images):
    return loss_matrix(tiny, images, 7, FEW)


def draws_of(params, config, seed, blocks):
    """Return the levels and the noise of the same draws."""
    key = as_key(seed)
    t = np.concatenate([config.draw_levels(params.schedule, key, j) for j in range(blocks)])
    eps = draw_noise(jax.random.fold_in(key, 2**31 - 1), jnp.arange(len(t)), params.image_shape)
    return t, np.asarray(eps, np.float64)


@pytest.mark.parametrize("weighting", ["simple", "snr"])
def test_quadratic_form_is_the_direct_loss(tiny, images, weighting, rng):
    """For random weights that sum to 1, the form equals the mean squared error of the mixed prediction."""
    config = dataclasses.replace(FEW, weighting=weighting)
    estimate = loss_matrix(tiny, images, 7, config)
    t, eps = draws_of(tiny, config, 7, 2)
    weights = np.concatenate([rng.dirichlet(np.ones(4), 3), [[1.5, -0.5, 0.25, -0.25]]])
    scale = config.level_weights(tiny.schedule)[t]
    for b in range(3):
        x0 = jnp.asarray(images[b] / 255.0 * 2 - 1, jnp.float32)
        x_t = add_noise(tiny.schedule, jnp.stack([x0] * 16), t, jnp.asarray(eps, jnp.float32))
        predicted = np.asarray(ensdiff.predict(tiny, x_t, t), np.float64)
        mixed = np.einsum("mk,kdhwc->mdhwc", weights, predicted)
        direct = (scale * np.square(eps - mixed).sum((2, 3, 4))).mean(1)
        np.testing.assert_allclose(estimate.loss(weights)[b], direct, rtol=2e-4)
    np.testing.assert_allclose(estimate.empty_JB.mean(0), (scale * np.square(eps).sum((1, 2, 3))).mean(), rtol=1e-4)


def test_r_is_symmetric_and_positive(estimate):
    R = estimate.mean_BKK
    np.testing.assert_array_equal(R, R.transpose(0, 2, 1))
    assert np.linalg.eigvalsh(R).min() > -1e-4 * R.max()


def test_scores_of_attribute_are_differences_of_losses(tiny, images, estimate):
    att = ensdiff.attribute(tiny, images, "loss", top=6, loss=FEW, seed=7)
    weights = CODE.ablate(range(6))
    change = estimate.loss(weights) - estimate.loss(CODE.factual())
    np.testing.assert_allclose(estimate.loss(weights > 0), estimate.loss(weights), rtol=1e-5)
    with pytest.raises(ValueError, match="weights_MK sum to 2"):
        estimate.loss([[1.0, 1.0, 0.0, 0.0]])
    error = estimate.score_error(weights, CODE.factual()[0])
    for b in range(3):
        np.testing.assert_allclose(att.influence[b], change[b, att.units[b]], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(att.standard_error[b], error[b, att.units[b]], rtol=1e-6)
        assert (np.diff(att.influence[b]) <= 0).all()
    assert att.distance == "loss"


def test_draws_do_not_depend_on_batch_memory_or_devices(tiny, images, estimate, monkeypatch):
    for other in (
        loss_matrix(
            tiny, images, 7, FEW, memory_budget=activation_bytes(tiny.model, tiny.image_shape)
        ),  # one image at a time
        loss_matrix(tiny, images[[2, 0, 1]], 7, FEW)._replace(draws=0),
    ):
        order = [0, 1, 2] if other.draws else [1, 2, 0]
        np.testing.assert_allclose(other.blocks_JBKK[:, order], estimate.blocks_JBKK, rtol=1e-4)
    alone = loss_matrix(tiny, images[1:2], 7, FEW)
    np.testing.assert_allclose(alone.blocks_JBKK[:, 0], estimate.blocks_JBKK[:, 1], rtol=1e-4)
    for count in (1, 3):
        mesh = ensdiff.make_mesh(4, 8, devices=jax.devices()[:count])
        monkeypatch.setattr("ensdiff.attribution.loss.make_mesh", lambda *_, mesh=mesh: mesh)
        np.testing.assert_allclose(loss_matrix(tiny, images, 7, FEW).blocks_JBKK, estimate.blocks_JBKK, rtol=1e-4)


def linear_gaussian():
    """Return members that denoise data N(m_k, 0) exactly: ``eps_k(x_t, t) = (x_t - sqrt(abar) m_k) / sqrt(1 - abar)``.

    With it ``eps - sum_k w_k eps_k = sqrt(abar / (1 - abar)) (sum_k w_k m_k - x_0)``, without noise, so
    ``L(w; x) = E_t lambda_t SNR_t |sum_k w_k m_k - x_0|^2`` in closed form.
    """

    def apply(params, x_BHWC, t_B, cond, key_B):
        abar_B = params["abar"][t_B.astype(jnp.int32)][:, None, None, None]
        return (x_BHWC - jnp.sqrt(abar_B) * params["mean"][None]) / jnp.sqrt(1 - abar_B)

    return apply


def closed_form_ensemble(tiny, rng):
    means = rng.uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
    abar = np.tile(tiny.schedule.abar_T.astype(np.float32), (4, 1))
    shapes = {"mean": (8, 8, 1), "abar": abar.shape[1:]}
    model = ensdiff.models.functions(lambda key: {name: jnp.zeros(s) for name, s in shapes.items()}, linear_gaussian())
    members = {"mean": jnp.asarray(means), "abar": jnp.asarray(abar)}
    return dataclasses.replace(tiny, model=model, params=members), means


@pytest.mark.parametrize("weighting", ["simple", "snr"])
def test_linear_gaussian_losses_in_closed_form(tiny, images, rng, weighting):
    """Every level is drawn once (stratified over exactly T levels), so there is no sampling error."""
    params, means = closed_form_ensemble(tiny, rng)
    T = tiny.schedule.timesteps
    config = LossConfig(draws=2 * T, block=T, weighting=weighting)
    att = ensdiff.attribute(params, images, "loss", top=6, loss=config)
    abar = tiny.schedule.abar_T
    snr = abar / (1 - abar)
    weight_T = np.ones(T) if weighting == "simple" else T / 2 * np.append(0, snr[:-1] / snr[1:] - 1)
    x0 = images / 255.0 * 2 - 1
    for b in range(3):
        for unit, influence, error in zip(att.units[b], att.influence[b], att.standard_error[b], strict=True):
            losses = [
                (weight_T * snr).mean() * np.square(np.tensordot(w, means, 1) - x0[b]).sum()
                for w in (CODE.ablate([int(unit)])[0], np.full(4, 0.25))
            ]
            assert influence == pytest.approx(losses[0] - losses[1], rel=1e-3, abs=1e-3 * losses[1])
            assert error < 1e-4 * losses[1]


def test_equal_members_score_zero(tiny, images):
    equal = dataclasses.replace(tiny, params=jax.tree.map(lambda a: jnp.broadcast_to(a[:1], a.shape), tiny.params))
    att = ensdiff.attribute(equal, images, "loss", top=6, loss=FEW)
    assert np.abs(att.influence).max() < 1e-4


def test_error_bars_cover_and_shrink(tiny, images):
    """The spread of blocks predicts the spread of whole estimates from different seeds."""
    config = LossConfig(draws=64, block=8)
    weights, factual = CODE.ablate([0]), CODE.factual()[0]
    estimates = [loss_matrix(tiny, images[:1], seed, config) for seed in range(24)]
    scores = np.array([(e.loss(weights) - e.loss(CODE.factual()))[0, 0] for e in estimates])
    errors = np.array([e.score_error(weights, factual)[0, 0] for e in estimates])
    assert 0.6 < np.sqrt(np.square(errors).mean()) / scores.std(ddof=1) < 1.6
    assert (np.abs(scores - scores.mean()) < 2.5 * errors).mean() > 0.8


def test_stratified_levels_have_smaller_errors(tiny, images):
    weights, factual = CODE.ablate(range(6)), CODE.factual()[0]

    def error(levels):
        config = LossConfig(draws=512, block=16, levels=levels, weighting="snr")
        return np.sqrt(np.square(loss_matrix(tiny, images, 0, config).score_error(weights, factual)).mean())

    assert error("stratified") < 0.8 * error("uniform")


def test_levels():
    schedule = ensdiff.Schedule(timesteps=100)
    for levels in ("stratified", "antithetic", "uniform"):
        config = LossConfig(draws=40, block=20, levels=levels, first_level=10, last_level=49)
        t = np.concatenate([config.draw_levels(schedule, 0, j) for j in range(200)])
        assert t.min() == 10
        assert t.max() == 49
        assert abs(t.mean() - 29.5) < 1
    stratified = LossConfig(draws=40, block=20, first_level=10, last_level=49).draw_levels(schedule, 0, 3)
    np.testing.assert_array_equal((stratified - 10) // 2, np.arange(20))
    pairs = LossConfig(draws=40, block=20, levels="antithetic").draw_levels(schedule, 0, 3).reshape(-1, 2)
    assert (pairs.sum(1) == 99).all()


def test_target_error_stops_the_draws(tiny, images):
    rough = loss_matrix(tiny, images, 0, LossConfig(draws=16, block=8, target_error=1e9))
    assert rough.draws == 16
    capped = loss_matrix(tiny, images, 0, LossConfig(draws=16, block=8, target_error=1e-9, max_draws=40))
    assert capped.draws == 40
    weights = CODE.ablate(range(6))
    error = np.sqrt(np.square(capped.score_error(weights, np.full(4, 0.25))).mean(1)).max()
    met = loss_matrix(tiny, images, 0, LossConfig(draws=16, block=8, target_error=1.5 * error, max_draws=400))
    assert 16 <= met.draws <= 80


@pytest.mark.parametrize(("options", "message"), [
    (dict(draws=10, block=8), "at least two blocks of 8"),
    (dict(block=0), "at least 1"),
    (dict(block=7, draws=70, levels="antithetic"), "an even number"),
    (dict(levels="sobol"), "'stratified', 'antithetic', 'uniform'"),
    (dict(weighting="vlb"), "'simple', 'snr'"),
    (dict(target_error=0), "positive"),
    (dict(target_error=0.1, draws=9000), "at most max_draws=4096"),
    (dict(first_level=9, last_level=5), "first_level=9, last_level=5"),
    (dict(first_level=-1), "0 <= first_level"),
])  # fmt: skip
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**options)


def test_bad_images(tiny, images):
    for bad, message in (
        (images[0], "expected \\(B, 8, 8, 1\\)"),
        (images.astype(np.int32), "uint8, or floats"),
        (images / 1.0, r"\[0, 1\]"),
        (np.full((1, 8, 8, 1), np.nan), r"\[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            loss_matrix(tiny, bad)
    with pytest.raises(ValueError, match=r"levels 5 \.\. 20: expected a range within 0 \.\. 19"):
        loss_matrix(tiny, images, config=LossConfig(first_level=5, last_level=20))
    with pytest.raises(ValueError, match="features have no meaning"):
        ensdiff.attribute(tiny, images, "loss", features=lambda x: x)


def test_whole_pipeline_on_other_members():
    """A code of mixed weights, and a weight other than K / 2, give the same scores as a loop over units."""
    for code in (
        ensdiff.Code.balanced(6, 12, 2, seed=1),
        ensdiff.Code.from_matrix([[1, 0, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 0, 0], [0, 1, 1, 1, 0, 1]]),
    ):
        params, image = random_ensemble(code), blobs(1, seed=9)
        att = ensdiff.attribute(params, image, "loss", top=code.units, loss=FEW)
        estimate = loss_matrix(params, image, 0, FEW)
        for unit, influence in zip(att.units[0], att.influence[0], strict=True):
            loss = estimate.loss(code.ablate([int(unit)])) - estimate.loss(code.factual())
            assert influence == pytest.approx(loss[0, 0], rel=1e-3, abs=1e-3)


def test_rounding_beyond_the_range_is_cut_off(tiny):
    images = np.ones((1, 8, 8, 1), np.float32)
    near, exact = (model_images(tiny, pictures_of(tiny, some)) for some in (images + np.float32(3e-7), images))
    np.testing.assert_array_equal(near, exact)
    with pytest.raises(ValueError, match=r"image 0 holds values outside of \[0, 1\]"):
        pictures_of(tiny, images + np.float32(1e-4))
