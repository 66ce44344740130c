"""Samplers, distances and methods that users supply: their versions of the built-in ones give the same results."""

import jax.numpy as jnp
import numpy as np
import pytest

import ensdiff
from ensdiff.diffusion.samplers import SamplerConfig, stages
from ensdiff.diffusion.schedule import Schedule
from tests.helpers import random_ensemble

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wide():
    """Return an untrained ensemble with unowned code words; no two words are complements, because those would tie."""
    return random_ensemble(ensdiff.Code.balanced(members=6, units=8, weight=2, seed=0))


def my_ddim(x_B, eps_B, z_B, level):
    """Compute one step of DDIM without noise, with clipping."""
    x0_B = jnp.clip((x_B - level.sigma * eps_B) / level.signal, -1.0, 1.0)
    eps_B = (x_B - level.signal * x0_B) / level.sigma
    return level.next_signal * x0_B + level.next_sigma * eps_B


def my_l2(one, other):
    return jnp.sqrt(jnp.sum((one - other) ** 2, axis=(1, 2, 3)))


def test_own_sampler_equals_ddim(tiny):
    """A user's DDIM gives the samples, counterfactuals and derivatives of the built-in DDIM."""
    ours = ensdiff.sample(tiny, 0, 3, steps=5, sampler="ddim")
    theirs = ensdiff.sample(tiny, 0, 3, steps=5, sampler=my_ddim)
    assert theirs.config == SamplerConfig(my_ddim, steps=5, spacing="leading")
    assert np.asarray(ours.images).std() > 0.05
    np.testing.assert_allclose(theirs.images, ours.images, atol=2e-5)
    for compute in (lambda s: ensdiff.counterfactuals(tiny, s, [1, {2, 3}]), lambda s: ensdiff.gram(tiny, s)):
        want = compute(ours)
        np.testing.assert_allclose(compute(theirs), want, atol=2e-4 * np.abs(want).max())


def test_levels_are_those_of_the_schedule():
    schedule = Schedule()
    levels = [stage.level for stage in stages(schedule, SamplerConfig(my_ddim, steps=4))]
    assert [int(level.t) for level in levels] == [750, 500, 250, 0]
    for level in levels:
        assert level.signal == np.float32(np.sqrt(schedule.abar_T[level.t]))
        assert level.sigma == np.float32(np.sqrt(1 - schedule.abar_T[level.t]))
    assert [level.signal for level in levels[1:]] == [level.next_signal for level in levels[:-1]]
    assert levels[-1].next_signal == 1
    assert levels[-1].next_sigma == 0


def test_own_sampler_is_given_the_noise_of_the_samples(tiny):
    """A sampler that returns the noise of the last step shows which noise it was given."""
    noise = np.random.default_rng(0).normal(scale=0.2, size=(4, 2, 8, 8, 1)).astype(np.float32)
    images = ensdiff.sample(tiny, noise=noise, steps=3, sampler=lambda x, eps, z, level: z).images
    np.testing.assert_allclose(images, np.clip((noise[-1] + 1) / 2, 0, 1), atol=1e-6)


def test_own_distance_equals_l2(wide):
    samples = ensdiff.sample(wide, 0, 2, steps=3)
    ours = ensdiff.attribute(wide, samples, "exact", top=6, null=5)
    theirs = ensdiff.attribute(wide, samples, "exact", top=6, null=5, distance=my_l2)
    np.testing.assert_array_equal(theirs.units, ours.units)
    np.testing.assert_allclose(theirs.influence, ours.influence, rtol=1e-5)
    np.testing.assert_array_equal(theirs.q_value, ours.q_value)
    assert (theirs.distance, ours.distance) == ("my_l2", "l2")


def test_own_distance_orders_units_by_itself(tiny):
    """The largest difference of any pixel equals one computed from counterfactuals, also by screening all units."""

    def largest(one, other):
        return jnp.abs(one - other).max(axis=(1, 2, 3))

    samples = ensdiff.sample(tiny, 0, 2, steps=3)
    without_NBHWC = ensdiff.counterfactuals(tiny, samples, range(6))
    want_NB = np.abs(without_NBHWC - np.asarray(samples.images)).max((2, 3, 4))
    for method in ("exact", "screen"):
        att = ensdiff.attribute(tiny, samples, method, top=6, distance=largest)
        np.testing.assert_array_equal(att.units, np.argsort(-want_NB, axis=0, kind="stable").T)
        np.testing.assert_allclose(att.influence, -np.sort(-want_NB, axis=0).T, rtol=1e-5)


def test_own_distance_between_features(tiny):
    def features(images):
        return images[:, ::2]

    samples = ensdiff.sample(tiny, 0, 2, steps=3)
    ours = ensdiff.attribute(tiny, samples, "exact", top=6, features=features)
    theirs = ensdiff.attribute(tiny, samples, "exact", top=6, features=features, distance=my_l2)
    np.testing.assert_allclose(theirs.influence, ours.influence, rtol=1e-5)
    assert theirs.distance == "my_l2 of features"


def test_own_method_equals_differential(wide):
    """A method of quadratic forms shares ranking, null, p- and q-values and verdict with the built-in method."""
    samples = ensdiff.sample(wide, 0, 2, steps=3)
    gram_BKK = ensdiff.gram(wide, samples).astype(np.float64)

    def moved(weights_MK):
        d_MK = weights_MK - np.asarray(samples.weights_K)
        return np.sqrt(np.maximum(np.einsum("mk,bkl,ml->bm", d_MK, gram_BKK, d_MK), 0))

    ours = ensdiff.attribute(wide, samples, "differential", top=6, null="all", level=0.9)
    theirs = ensdiff.attribute(wide, samples, moved, top=6, null="all", level=0.9)
    np.testing.assert_allclose(theirs.influence, ours.influence, rtol=1e-4)
    np.testing.assert_allclose(theirs.p_value, ours.p_value)
    np.testing.assert_allclose(theirs.q_value, ours.q_value)
    np.testing.assert_array_equal(theirs.units, ours.units)
    assert theirs.verdict == ours.verdict
    assert theirs.method == "moved"
    assert "moved, score" in repr(theirs)


def test_own_method_of_any_images(tiny, rng):
    """A user's method needs no samples: only the number of images is used."""
    images = rng.random((3, 8, 8, 1), dtype=np.float32)
    att = ensdiff.attribute(tiny, images, lambda weights_MK: np.tile(weights_MK[:, 0], (3, 1)), top=2, null=0)
    without_member_0 = 1 - tiny.code.matrix()[:, 0]
    assert set(att.units[0]) <= set(np.flatnonzero(without_member_0))
    place = 1e-5 * 2.0 ** np.arange(tiny.members)  # float64 differences that float32 could not represent
    exact = ensdiff.attribute(tiny, images, lambda weights_MK: 1234.5 + np.tile(weights_MK @ place, (3, 1)), top=6)
    np.testing.assert_array_equal(exact.units[0], np.argsort(-(tiny.code.ablate(range(6)) @ place)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda p, s: ensdiff.SamplerConfig(sampler=3),
            "sampler=3: expected one of 'ddpm', 'ddim', .* or a function",
        ),
        (lambda p, s: ensdiff.sample(p, 0, 1, steps=2, sampler=lambda x, e, z, level: x[0]), "expected the states"),
        (lambda p, s: ensdiff.sample(p, 0, 1, steps=2, sampler=lambda x, e, z, level: None), "returned None"),
        (lambda p, s: ensdiff.sample(p, 0, 1, steps=21, sampler=my_ddim), "only 20 noise levels"),
        (lambda p, s: ensdiff.attribute(p, s, "differential", distance=my_l2), "for method='exact' and 'screen'"),
        (lambda p, s: ensdiff.attribute(p, s, lambda w: w, distance=my_l2, top=1), "for method='exact' and 'screen'"),
        (lambda p, s: ensdiff.attribute(p, s, "exact", distance=lambda a, b: a, top=1), "one number per pair"),
        (lambda p, s: ensdiff.attribute(p, s, lambda w: w, features=lambda x: x, top=1), "features have no meaning"),
        (lambda p, s: ensdiff.attribute(p, s, lambda w: w, top=1), "one row per sample and one column per ablation"),
        (lambda p, s: ensdiff.attribute(p, s, lambda w: np.full((1, len(w)), np.nan), top=1), "NaN or infinity"),
        (lambda p, s: ensdiff.attribute(p, s, lambda w: w, audit=3, top=1), "audit=3"),
        (lambda p, s: ensdiff.attribute(p, s, lambda w: np.zeros((1, len(w)), complex), top=1), "returned complex128"),
        (lambda p, s: ensdiff.attribute(p, s, lambda w: np.ma.masked_less(np.zeros((1, len(w))), 1), top=1), "masked"),
    ],
)
def test_what_is_refused(tiny, call, words):
    samples = ensdiff.sample(tiny, 0, 1, steps=2)
    with pytest.raises(ValueError, match="(?s)" + words.replace("(", r"\(")):
        call(tiny, samples)


def test_partial_work_of_an_own_sampler_is_found_again(tiny, tmp_path):
    """Functions are distinguished by their names, so that another process can continue."""
    from ensdiff.attribution.request import named_sampler
    from ensdiff.ensemble.digest import digest

    def again(x_B, eps_B, z_B, level):
        return my_ddim(x_B, eps_B, z_B, level)

    again.__name__ = "my_ddim"
    one = ensdiff.sample(tiny, 0, 1, steps=2, sampler=my_ddim)
    assert digest(named_sampler(one)) == digest(named_sampler(ensdiff.sample(tiny, 0, 1, steps=2, sampler=again)))
    again.__name__ = "other"
    other = ensdiff.sample(tiny, 0, 1, steps=2, sampler=again)
    assert digest(named_sampler(one)) != digest(named_sampler(other))
