"""Attribution: derivatives against differences, Grams against distances, limits, and p-values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensdiff
from ensdiff.attribution.differential import quadratic_influence
from ensdiff.denoise import run_states
from tests.helpers import CODE, random_ensemble

STEPS = 4


@pytest.fixture(scope="module")
def samples(tiny):
    return ensdiff.sample(tiny, 0, 3, steps=STEPS, clip=False)


@pytest.fixture(scope="module")
def jacobian(tiny, samples):
    return ensdiff.jacobian(tiny, samples)


def images_under(params, samples, weights):
    rows = np.repeat(np.asarray(weights, np.float32)[None], len(samples), 0)
    return np.concatenate([np.asarray(part) for _, part in run_states(params, samples.config, samples.noise, rows)])


def test_jacobian_is_the_limit_of_central_differences(tiny, samples, jacobian):
    h = 2e-3
    for k in range(4):
        step = h * np.eye(4)[k]
        difference = (images_under(tiny, samples, 0.25 + step) - images_under(tiny, samples, 0.25 - step)) / (2 * h)
        # a pixel that crosses the clip within the step has no derivative to compare with
        inside = (np.abs(difference) > 0) == (jacobian[k] != 0)
        error = np.linalg.norm((difference - jacobian[k])[inside]) / np.linalg.norm(jacobian[k][inside])
        assert inside.mean() > 0.9
        assert error < 0.02


def test_clipped_pixels_do_not_move(samples, jacobian):
    images = np.asarray(samples.images)
    clipped = (images == 0) | (images == 1)
    assert clipped.any()
    assert not clipped.all()
    assert (jacobian[:, clipped] == 0).all()
    assert (jacobian[:, ~clipped] != 0).mean() > 0.99


def test_jacobian_does_not_depend_on_chunks_or_batch(tiny, samples, jacobian):
    small = ensdiff.jacobian(tiny, samples, memory_budget=1)
    np.testing.assert_allclose(small, jacobian, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ensdiff.jacobian(tiny, samples[1:2])[:, 0], jacobian[:, 1], rtol=1e-3, atol=1e-4)


def test_gram_is_the_jacobians_and_predicts_distances(tiny, samples, jacobian):
    gram = ensdiff.gram(tiny, samples)
    flat = jacobian.reshape(4, 3, -1).astype(np.float64)
    np.testing.assert_allclose(gram, np.einsum("kbp,lbp->bkl", flat, flat), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(gram, gram.transpose(0, 2, 1), rtol=1e-5, atol=1e-5)
    assert np.linalg.eigvalsh(gram.astype(np.float64)).min() > -1e-3 * np.abs(gram).max()
    weights = CODE.ablate(range(6))
    expected = np.linalg.norm(np.einsum("mk,kbp->bmp", weights - 0.25, flat), axis=-1)
    np.testing.assert_allclose(quadratic_influence(gram, weights, np.full(4, 0.25)), expected, rtol=1e-3)


def test_differential_is_the_limit_of_exact(tiny, samples):
    """Weights moved a little of the way towards an ablation: the distances agree to first order."""
    direction = CODE.ablate([2])[0] - 0.25
    gram = ensdiff.gram(tiny, samples)
    small = 0.005
    moved = images_under(tiny, samples, 0.25 + small * direction)
    exact = np.linalg.norm((moved - np.asarray(samples.images)).reshape(3, -1), axis=1)
    predicted = quadratic_influence(gram, (0.25 + small * direction)[None], np.full(4, 0.25))[:, 0]
    np.testing.assert_allclose(predicted, exact, rtol=0.03)


def test_exact_is_the_distance_to_the_counterfactual(tiny, samples):
    att = ensdiff.attribute(tiny, samples, "exact", top=6)
    images = ensdiff.counterfactuals(tiny, samples, range(6))
    distance = np.linalg.norm((images - np.asarray(samples.images)).reshape(6, 3, -1), axis=-1).T
    for b in range(3):
        np.testing.assert_allclose(att.influence[b], distance[b, att.units[b]], rtol=1e-3)
        assert sorted(att.units[b]) == list(range(6))
        assert (np.diff(att.influence[b]) <= 0).all()
    chunked = ensdiff.attribute(tiny, samples, "exact", top=6, chunk=4)
    np.testing.assert_allclose(chunked.influence, att.influence, rtol=1e-3)


def test_screening_everything_is_exact(tiny, samples):
    exact = ensdiff.attribute(tiny, samples, "exact", top=3)
    screen = ensdiff.attribute(tiny, samples, "screen", top=3, verify=6)
    np.testing.assert_allclose(screen.influence, exact.influence, rtol=1e-3)
    np.testing.assert_array_equal(screen.units, exact.units)


def test_chosen_units_only(tiny, samples):
    att = ensdiff.attribute(tiny, samples, "exact", top=2, units=[4, 1])
    assert {tuple(sorted(row)) for row in att.units.tolist()} == {(1, 4)}


def test_features(tiny, samples):
    """A feature function that halves the image halves every influence, in each method."""

    def half(images):
        return images.reshape(len(images), -1) / 2

    for method in ("exact", "differential", "screen"):
        plain = ensdiff.attribute(tiny, samples, method, top=6, verify=6)
        halved = ensdiff.attribute(tiny, samples, method, top=6, verify=6, features=half)
        np.testing.assert_allclose(halved.influence, plain.influence / 2, rtol=1e-3)
        assert halved.distance == "half"
        assert plain.distance == "l2"


def test_equal_members_have_no_influence(tiny):
    same = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], a.shape), tiny.params)
    equal = dataclasses.replace(tiny, params=same)
    samples = ensdiff.sample(equal, 0, 2, steps=STEPS)
    for method in ("exact", "differential"):
        assert ensdiff.attribute(equal, samples, method, top=6).influence.max() < 1e-4


def test_p_values_are_shares_of_the_null():
    code = ensdiff.Code.balanced(6, 5, 3)
    params = random_ensemble(code)
    samples = ensdiff.sample(params, 0, 2, steps=STEPS)
    for method in ("exact", "differential", "screen"):
        att = ensdiff.attribute(params, samples, method, top=5, verify=5, null=15)
        assert att.null_BL.shape == (2, 15)
        for b in range(2):
            for i in range(5):
                reached = (att.null_BL[b] >= att.influence[b, i]).sum()
                assert att.p_value[b, i] == (1 + reached) / 16
        assert "p=" in repr(att)
    # all C(6, 3) - 5 unowned words and the units' own words together are the exhaustive landscape
    with pytest.raises(ValueError, match="leave only 15"):
        ensdiff.attribute(params, samples, "differential", top=1, null=16)


def test_bad_calls(tiny, samples):
    for message, options in (
        ("'exact', 'differential', 'screen'", dict(method="shapley")),
        (r"top=7: expected 1 \.\. 6", dict(top=7)),
        ("verify=2 is less than top=3", dict(top=3, verify=2)),
        ("null=-1", dict(top=1, null=-1)),
        (r"unit 9: ids are 0 \.\. 5", dict(units=[9], top=1)),
        ("list of unit ids", dict(units=[0.5], top=1)),
    ):
        with pytest.raises(ValueError, match=message):
            ensdiff.attribute(tiny, samples, **options)
    with pytest.raises(ValueError, match="what ensdiff.sample returned"):
        ensdiff.attribute(tiny, np.zeros((2, 8, 8, 1)), "exact")


def test_the_primal_is_computed_once_a_member(tiny):
    """In the lowered step, each convolution over samples appears once, not once a tangent."""
    from ensdiff.attribution.differential import _tangent_step
    from ensdiff.denoise import Noise, float_coefficients
    from ensdiff.schedule import sampler_steps

    B, K = 3, 4
    mesh = ensdiff.make_mesh(K, devices=jax.devices()[:1])
    step = _tangent_step(tiny.model, (8, 8, 1), False, mesh)
    noise = Noise(jnp.arange(B), key=jax.random.key(0))
    coefficients = float_coefficients(sampler_steps(tiny.schedule, ensdiff.SamplerConfig(steps=STEPS)))[0]
    x, dx = jnp.zeros((B, 8, 8, 1)), jnp.zeros((K, B, 8, 8, 1))
    lowered = step.lower(tiny.params, x, dx, noise, jnp.full((K,), 0.25), np.int32(0), coefficients)
    lines = [line for line in lowered.as_text().splitlines() if "stablehlo.convolution" in line]
    batches = [int(line.split("-> tensor<")[1].split("x")[0]) for line in lines]
    assert batches.count(B) == batches.count(B * K) == len(lines) // 2
