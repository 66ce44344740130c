"""Sampling: NumPy references, limits, and independence of images from batch, chunk and devices."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ensdiff
from ensdiff.attribution import exact_influence
from ensdiff.diffusion.samplers import SamplerConfig, sampler_steps
from ensdiff.ensemble.memory import Resources
from ensdiff.ensemble.tracing import activation_bytes
from ensdiff.sampling.denoise import FEW_BATCHES, Exogenous, Noise, denoise, plan
from ensdiff.sampling.packing import batch_numbers, choose_places, gather_batches, kept_counts, round_up
from tests.helpers import CODE, random_ensemble

STEPS = 5


def twin(params, config, noise_SBHWC, weights_RK, index_R):
    """Compute the sampler as a loop over states and steps, in float64, with every member evaluated by `predict`."""
    steps = sampler_steps(params.schedule, config)
    out = []
    for weights, index in zip(weights_RK, index_R, strict=True):
        x = noise_SBHWC[0, index].astype(np.float64)
        for j, t in enumerate(steps.t_S):
            eps_K = np.asarray(ensdiff.predict(params, x[None].astype(np.float32), int(t)), np.float64)[:, 0]
            eps = np.tensordot(weights.astype(np.float64), eps_K, axes=1)
            x0 = (x - steps.sigma_S[j] * eps) / steps.signal_S[j]
            x0 = np.clip(x0, -1, 1) if config.clip is not False else x0
            x = steps.keep_S[j] * x + steps.target_S[j] * x0 + steps.noise_S[j] * noise_SBHWC[j + 1, index]
        out.append(x)
    return np.stack(out)


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(size=(STEPS + 1, 3, 8, 8, 1)).astype(np.float32)


@pytest.mark.parametrize(("ensemble", "config"), [
    ("deep", SamplerConfig("ddpm", STEPS)),
    ("tiny", SamplerConfig("ddpm", STEPS, clip=False, variance="alpha_beta")),
    ("tiny", SamplerConfig("ddim", STEPS, eta=0.7, spacing="trailing")),
], ids=["ddpm", "unclipped", "ddim"])  # fmt: skip
def test_against_a_float64_loop(request, noise, ensemble, config):
    params = request.getfixturevalue(ensemble)
    weights = np.concatenate([CODE.factual(), CODE.ablate([0, 1, {2}])])
    rows, index = np.repeat(weights, 3, axis=0), np.tile(np.arange(3), 4)
    got = denoise(params, config, Exogenous(Noise(jnp.asarray(index), array=jnp.asarray(noise))), rows)
    np.testing.assert_allclose(got, twin(params, config, noise, rows, index), rtol=2e-3, atol=2e-3)


def test_sample_and_counterfactuals_are_those_states(tiny, noise):
    samples = ensdiff.sample(tiny, noise=noise, steps=STEPS)
    config = samples.config
    expected = np.clip((twin(tiny, config, noise, np.repeat(CODE.factual(), 3, 0), range(3)) + 1) / 2, 0, 1)
    np.testing.assert_allclose(samples.images, expected, atol=2e-3)
    images = ensdiff.counterfactuals(tiny, samples, [5, {0, 3}])
    for m, units in enumerate([[5], [0, 3]]):
        try:
            rows = np.repeat(CODE.ablate([units]), 3, 0)
        except ensdiff.NoSurvivorError:
            pytest.fail("choose other units for this code")
        expected = np.clip((twin(tiny, config, noise, rows, range(3)) + 1) / 2, 0, 1)
        np.testing.assert_allclose(images[m], expected, atol=2e-3)


def test_groups_of_a_hierarchical_code_are_removed_whole():
    code = ensdiff.Code.hierarchical(6, np.arange(12) % 3, group_weight=4, weight=2, seed=0)
    params = random_ensemble(code)
    samples = ensdiff.sample(params, 0, 2, steps=2)
    got = ensdiff.counterfactuals(params, samples, [2, 0], code=code.group_code())
    rows = (code.group_code().rows([2, 0]) == 0).astype(np.float32)
    for images, row in zip(got, rows / rows.sum(1, keepdims=True), strict=True):
        expected = ensdiff.sample(params, 0, 2, steps=2, weights=row).images
        np.testing.assert_allclose(images, expected, atol=1e-5)
    with pytest.raises(ValueError, match="the code is for 4 members, the ensemble has 6"):
        ensdiff.counterfactuals(params, samples, [0], code=CODE)


def test_ddim_with_eta_one_on_all_steps_is_ancestral(tiny):
    noise = np.random.default_rng(1).normal(size=(21, 2, 8, 8, 1)).astype(np.float32)
    ddpm = ensdiff.sample(tiny, noise=noise, steps=20, sampler="ddpm")
    ddim = ensdiff.sample(tiny, noise=noise, steps=20, sampler="ddim", eta=1.0)
    np.testing.assert_allclose(ddpm.images, ddim.images, atol=1e-3)


def test_images_do_not_depend_on_batch_or_chunk(tiny):
    whole = ensdiff.sample(tiny, 7, 6, steps=STEPS)
    np.testing.assert_allclose(ensdiff.sample(tiny, 7, 2, steps=STEPS).images, whole.images[:2], atol=1e-5)
    np.testing.assert_allclose(ensdiff.sample(tiny, 7, 6, steps=STEPS, chunk=4).images, whole.images, atol=1e-5)
    all_units = ensdiff.counterfactuals(tiny, whole, range(6))
    assert all_units.shape == (6, 6, 8, 8, 1)
    np.testing.assert_allclose(ensdiff.counterfactuals(tiny, whole, range(6), chunk=5), all_units, atol=1e-5)
    np.testing.assert_allclose(ensdiff.counterfactuals(tiny, whole[2:4], [3]), all_units[[3], 2:4], atol=1e-5)
    assert np.abs(all_units - np.asarray(whole.images)).max() > 0.01


def test_keys_of_every_kind(tiny):
    a = ensdiff.sample(tiny, 3, 2, steps=STEPS).images
    for key in (jax.random.key(3), jax.random.PRNGKey(3), np.int64(3)):
        np.testing.assert_array_equal(ensdiff.sample(tiny, key, 2, steps=STEPS).images, a)
    assert np.abs(a - ensdiff.sample(tiny, 4, 2, steps=STEPS).images).max() > 0.01


def test_equal_members_give_equal_counterfactuals():
    ensemble = random_ensemble()
    same = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], a.shape), ensemble.params)
    equal = ensdiff.Ensemble(same, ensemble.code, ensemble.model, ensemble.schedule, ensemble.image_shape)
    samples = ensdiff.sample(equal, 0, 2, steps=STEPS)
    images = ensdiff.counterfactuals(equal, samples, range(6))
    np.testing.assert_allclose(images, np.broadcast_to(samples.images, images.shape), atol=1e-5)


def test_one_kept_member_is_that_members_own_sampler(tiny, noise):
    """Weights (0, 0, 1, 0) of four members are equivalent to an ensemble of that member alone."""
    alone = ensdiff.Ensemble(
        jax.tree.map(lambda a: a[2:3], tiny.params),
        ensdiff.Code.undivided(6),
        tiny.model,
        tiny.schedule,
        (8, 8, 1),
    )
    kept = ensdiff.sample(tiny, noise=noise, steps=STEPS, weights=[0, 0, 1, 0])
    np.testing.assert_allclose(ensdiff.sample(alone, noise=noise, steps=STEPS).images, kept.images, atol=1e-5)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_devices_do_not_matter(tiny, noise, devices):
    """Members are spread over the devices, and three states over a data axis of three."""
    config = SamplerConfig("ddpm", STEPS)
    rows = np.concatenate([CODE.factual(), CODE.ablate([0, 1])])
    given = Exogenous(Noise(jnp.arange(3), array=jnp.asarray(noise)))
    one = denoise(tiny, config, given, rows, mesh=ensdiff.make_mesh(4, devices=jax.devices()[:1]))
    many = denoise(tiny, config, given, rows, mesh=ensdiff.make_mesh(4, 3, jax.devices()[:devices]))
    np.testing.assert_allclose(many, one, atol=1e-4)


def test_a_data_axis_does_not_matter(noise):
    params = random_ensemble(ensdiff.Code.from_matrix([[1, 0, 1], [0, 1, 0]]))
    rows = np.concatenate(
        [params.code.factual(), params.code.ablate([0]), params.code.factual(), params.code.ablate([1])]
    )
    given = Exogenous(Noise(jnp.array([0, 1, 2, 0]), array=jnp.asarray(noise)))
    split = jax.sharding.Mesh(np.array(jax.devices()[:4], object).reshape(1, 4), ("member", "data"))
    one = ensdiff.make_mesh(3, devices=jax.devices()[:1])
    config = SamplerConfig("ddpm", STEPS)
    np.testing.assert_allclose(
        denoise(params, config, given, rows, mesh=split),
        denoise(params, config, given, rows, mesh=one),
        atol=1e-4,
    )


@settings(max_examples=50)
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.sampled_from([(1, 1), (3, 1), (3, 3), (4, 2)]),
    st.integers(1, 4), st.integers(0, 999),
)  # fmt: skip
def test_gathered_batches_hold_each_kept_state_once(shards, per_shard, member_shards, grouped, places, seed):
    rng = np.random.default_rng(seed)
    local, together = grouped
    shape = shards * per_shard, member_shards * local
    weights = rng.random(shape) * (rng.random(shape) < 0.5)
    number = batch_numbers(kept_counts(weights, shards)[None], places, member_shards, together)
    batches = gather_batches(weights.astype(np.float32), shards, member_shards, places, number, together)
    rebuilt = np.zeros_like(weights)
    for d, m, n, g in np.ndindex(batches.index_DMNGP.shape[:-1]):
        k = m * local + batches.group_DMN[d, m, n] * together + g
        for index, weight in zip(batches.index_DMNGP[d, m, n, g], batches.weight_DMNGP[d, m, n, g], strict=True):
            rebuilt[d * per_shard + index, k] += weight
    np.testing.assert_allclose(rebuilt, weights, rtol=1e-6)
    assert batches.index_DMNGP.shape == (shards, member_shards, number, together, places)


@settings(max_examples=50)
@given(
    st.integers(1, 3), st.integers(1, 3), st.sampled_from([(1, 1), (3, 1), (4, 2), (4, 4)]), st.integers(1, 40),
    st.integers(0, 999),
)  # fmt: skip
def test_batches_pad_at_most_a_tenth(shards, member_shards, grouped, limit, seed):
    local, together = grouped
    counts = np.random.default_rng(seed).integers(0, 60, (2, shards, member_shards * local))
    places = choose_places(counts, member_shards, limit, 1.0, together)
    assert 1 <= places <= limit
    least = batch_numbers(counts, 1, member_shards, together)
    assert places * batch_numbers(counts, places, member_shards, together) <= 1.1 * least


@pytest.mark.parametrize(("members", "ones", "units", "samples"), [(16, 8, 32, 8), (20, 10, 100, 3), (16, 8, 40, 1)])
def test_a_landscape_evaluates_little_more_than_its_survivors(tiny, members, ones, units, samples):
    """The U-Net evaluations of a step on one device are close to the sum over states of the members that each keeps."""
    params = dataclasses.replace(tiny, code=ensdiff.Code.balanced(members, units, ones))
    weights = np.repeat(params.code.ablate(np.arange(units)), samples, axis=0)
    chunks = plan(params, weights, ensdiff.make_mesh(members, devices=jax.devices()[:1]), Resources())
    parts = -(-len(weights) // chunks.states)
    assert parts * chunks.number * chunks.places <= 1.1 * np.count_nonzero(weights)


def test_a_dropped_member_is_never_evaluated(tiny):
    """Dropped members are not even evaluated in batches that only pad a program, so NaN parameters change nothing."""
    broken = jax.tree.map(lambda a: a.at[0].set(jnp.nan), tiny.params)
    weights = [0.0, 0.5, 0.25, 0.25]
    images = ensdiff.sample(dataclasses.replace(tiny, params=broken), 0, 3, steps=STEPS, weights=weights).images
    np.testing.assert_array_equal(images, ensdiff.sample(tiny, 0, 3, steps=STEPS, weights=weights).images)


def test_landscapes_of_many_sizes_share_few_programs(tiny):
    """There are 40 landscapes; a program has one number of states, one number of batches and one number of places."""
    programs = set()
    for units, samples in itertools.product(range(8, 18), (1, 2, 3, 4)):
        params = dataclasses.replace(tiny, code=ensdiff.Code.balanced(8, units))
        weights = np.repeat(params.code.ablate(np.arange(units)), samples, axis=0)
        chunks = plan(params, weights, ensdiff.make_mesh(8, devices=jax.devices()[:1]), Resources())
        programs.add((chunks.states, chunks.places, round_up(chunks.number, FEW_BATCHES)))
        assert chunks.places * chunks.number <= 1.1 * np.count_nonzero(weights)
    assert len(programs) <= 16


def test_a_budget_holds_the_states_and_one_batch(tiny):
    """Padding never adds more states than fit; if not even one state fits, the error states the minimum."""
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:1])
    one = activation_bytes(tiny.model, tiny.image_shape)
    state = 4 * 8 * 64 + 8 * 4
    weights = np.full((20, 4), 0.25)
    pairs = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, conv="loop", stack=2))
    for budget in (one + state, one + 3 * state, 3 * one + 40 * state):
        chunks = plan(tiny, weights, mesh, Resources(memory_budget=budget))
        assert chunks.states * state + chunks.places * one <= budget
        chunks = plan(pairs, weights, mesh, Resources(memory_budget=2 * budget))
        assert chunks.together == 2
        assert chunks.states * state + 2 * chunks.places * one <= 2 * budget
    with pytest.raises(ValueError, match=f"needs up to {one + state} bytes"):
        plan(tiny, weights, mesh, Resources(memory_budget=one + state - 1))


@pytest.mark.parametrize("mask", [lambda row: row > 0, lambda row: (row > 0).astype(int), lambda row: row])
def test_the_mask_of_survivors_gives_the_counterfactual(tiny, mask):
    samples = ensdiff.sample(tiny, 0, 2, steps=STEPS)
    kept = ensdiff.sample(tiny, 0, 2, steps=STEPS, weights=mask(CODE.ablate([3])[0]))
    np.testing.assert_array_equal(kept.images, ensdiff.counterfactuals(tiny, samples, [3])[0])
    assert np.abs(kept.images - samples.images).max() > 0.01


def uses(data, folder):
    """Yield each function that takes an ensemble and samples, and whether it removes units from the whole ensemble."""
    from ensdiff.interop import ctf

    row, first = CODE.ablate([3]), np.array([0])
    yield True, lambda p, s: ensdiff.counterfactuals(p, s, [3])
    yield True, lambda p, s: ensdiff.predicted_counterfactuals(p, s, [3])
    for method in ("exact", "differential", "screen"):
        yield True, lambda p, s, method=method: ensdiff.attribute(p, s, method, top=1)
    yield True, lambda p, s: ctf.write(folder / "x.ctf", p, s, data)
    yield False, ensdiff.gram
    yield False, ensdiff.jacobian
    yield False, lambda p, s: exact_influence(p, s, row, first)


def test_samples_are_refused_by_another_ensemble(tiny, tmp_path):
    samples = ensdiff.sample(tiny, 0, 2, steps=STEPS)
    assert samples.fingerprint == samples[1:].fingerprint == tiny.fingerprint
    host = jax.tree.map(np.asarray, tiny.params)
    moved = dataclasses.replace(tiny, params=jax.tree.map(lambda a: a * np.float32(1 + 1e-6), host))
    code = ensdiff.Code.from_matrix(1 - np.eye(3))
    three = dataclasses.replace(tiny, params=jax.tree.map(lambda a: a[:3], host), code=code)
    made = ensdiff.sample(tiny, 0, 2, steps=STEPS, weights=CODE.ablate([3])[0])
    data = ensdiff.data.arrays(np.zeros((6, 8, 8, 1), np.uint8))
    for removes, use in uses(data, tmp_path):
        with pytest.raises(ValueError, match=f"made by another ensemble, with fingerprint {tiny.fingerprint[:12]}"):
            use(moved, samples)
        for others in (samples, samples.unbound()):
            with pytest.raises(ValueError, match="made by an ensemble of 4 members, this one has 3"):
                use(three, others)
        if removes:
            with pytest.raises(ValueError, match="other weights than 1/4 each"):
                use(tiny, made)
    other_units = dataclasses.replace(tiny, code=ensdiff.Code.balanced(4, 4))
    assert ensdiff.counterfactuals(other_units, samples, [3]).shape == (1, 2, 8, 8, 1)
    known = ensdiff.counterfactuals(moved, samples.unbound(), [3])
    np.testing.assert_allclose(known, ensdiff.counterfactuals(tiny, samples, [3]), atol=1e-3)


def test_samples_of_before_have_no_fingerprint(tiny):
    """Samples pickled by an older version lack the field; a pytree keeps it."""
    samples = ensdiff.sample(tiny, 0, 2, steps=STEPS)
    state = {name: value for name, value in vars(samples).items() if name != "fingerprint"}
    old = object.__new__(ensdiff.Samples)
    old.__dict__.update(state)
    assert old.fingerprint is None
    np.testing.assert_array_equal(ensdiff.counterfactuals(tiny, old, [3]), ensdiff.counterfactuals(tiny, samples, [3]))
    assert jax.tree.map(lambda a: a, samples).fingerprint == tiny.fingerprint


def test_samples_can_be_taken_apart(tiny):
    samples = ensdiff.sample(tiny, 0, 4, steps=STEPS)
    assert len(samples[1:3]) == 2
    assert len(samples[-1]) == 1
    np.testing.assert_array_equal(samples[[3, 0]].noise.index_B, [3, 0])
    assert "4 images" in repr(samples)


def _first(noise):
    mask = np.zeros(noise.shape, bool)
    mask[0, 0] = True
    return mask


def bad_calls(tiny):
    noise = np.zeros((STEPS + 1, 2, 8, 8, 1), np.float32)
    yield "either key and n, or noise", lambda: ensdiff.sample(tiny, steps=STEPS)
    yield "either key and n, or noise", lambda: ensdiff.sample(tiny, 0, 2, noise=noise, steps=STEPS)
    yield "at least 1", lambda: ensdiff.sample(tiny, 0, 0, steps=STEPS)
    yield "n=2.5: expected", lambda: ensdiff.sample(tiny, 0, 2.5, steps=STEPS)
    yield "n=True: expected", lambda: ensdiff.sample(tiny, 0, True, steps=STEPS)
    yield "noise holds NaN", lambda: ensdiff.sample(tiny, noise=noise * np.nan, steps=STEPS)
    yield "noise: 64 of ", lambda: ensdiff.sample(tiny, noise=np.ma.masked_array(noise, _first(noise)), steps=STEPS)
    yield "int seed", lambda: ensdiff.sample(tiny, "0", 2, steps=STEPS)
    yield r"expected \(4, 2, 8, 8, 1\)", lambda: ensdiff.sample(tiny, noise=noise, steps=3)
    yield "leave n out", lambda: ensdiff.sample(tiny, n=3, noise=noise, steps=STEPS)
    yield "only 20 noise levels", lambda: ensdiff.sample(tiny, 0, 2, steps=21)
    whole = SamplerConfig(steps=3)
    yield "steps=7, but the sampler is a SamplerConfig of 3", lambda: ensdiff.sample(tiny, 0, 2, steps=7, sampler=whole)
    yield "weights sum to 3", lambda: ensdiff.sample(tiny, 0, 2, steps=STEPS, weights=[1.0, 1.0, 1.0, 0.0])
    yield "one row for all samples", lambda: ensdiff.sample(tiny, 0, 2, steps=STEPS, weights=np.full((2, 4), 0.25))
    yield "eta=0.5 is for sampler='ddim', not ddpm", lambda: ensdiff.sample(tiny, 0, 2, steps=STEPS, eta=0.5)
    yield "variance='beta' is for sampler='ddpm'", lambda: SamplerConfig("ddim", variance="beta")
    yield "clip=False is not for a step function", lambda: SamplerConfig(lambda x, e, z, level: x, clip=False)
    yield "unknown sampler options", lambda: ensdiff.sample(tiny, 0, 2, temperature=1)
    yield "4 finite numbers", lambda: ensdiff.sample(tiny, 0, 2, steps=STEPS, weights=[1, 0])
    yield "chunk=0: expected at least 1 at a time", lambda: ensdiff.sample(tiny, 0, 2, steps=STEPS, chunk=0)
    yield "noise of the samples", lambda: ensdiff.counterfactuals(tiny, np.zeros((1, 8, 8, 1)), [0])
    samples = ensdiff.sample(tiny, 0, 1, steps=STEPS)
    yield "unit 6 does not exist", lambda: ensdiff.counterfactuals(tiny, samples, [6])
    yield "no units given", lambda: ensdiff.counterfactuals(tiny, samples, [])
    yield "one state needs", lambda: ensdiff.counterfactuals(tiny, samples, [0], memory_budget=10)
    yield "channels last", lambda: ensdiff.predict(tiny, np.zeros((2, 1, 8, 8)), 3)
    yield r"0 \.\. 19", lambda: ensdiff.predict(tiny, np.zeros((2, 8, 8, 1)), 20)


def test_bad_calls_say_what_is_expected(tiny):
    for message, call in bad_calls(tiny):
        with pytest.raises(ValueError, match=message):
            call()
