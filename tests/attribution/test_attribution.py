"""Attribution: Jacobians against finite differences, Gram matrices against distances, limits, and p-values."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import false_discovery_control

import ensdiff
from ensdiff.attribution.differential import quadratic_influence
from ensdiff.diffusion.samplers import sampler_steps
from ensdiff.ensemble.memory import Resources
from ensdiff.sampling.denoise import run_states
from tests.helpers import CODE, random_ensemble

STEPS = 4
FEW = ensdiff.LossConfig(draws=8, block=4)


@pytest.fixture(scope="module")
def samples(tiny):
    return ensdiff.sample(tiny, 0, 3, steps=STEPS, clip=False)


@pytest.fixture(scope="module")
def jacobian(tiny, samples):
    return ensdiff.jacobian(tiny, samples)


def images_under(params, samples, weights):
    rows = np.repeat(np.asarray(weights, np.float32)[None], len(samples), 0)
    return np.concatenate(
        [np.asarray(part) for _, part in run_states(params, samples.config, samples.exogenous, rows, Resources())]
    )


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
    """For weights that move a small part of the way towards an ablation, both distances agree to first order."""
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


def test_influences_that_are_no_numbers_are_refused(tiny, samples):
    """NaN influences raise an error instead of being ranked last or left out."""

    def broken(images, factual):
        return jnp.full(len(images), jnp.nan)

    for method in ("exact", "screen"):
        with pytest.raises(ValueError, match="sample 0 has an influence that is NaN or infinite"):
            ensdiff.attribute(tiny, samples, method, top=1, distance=broken)


def test_what_does_not_depend_on_who_made_the_samples(tiny, samples):
    """Derivatives are taken at the weights of sampling, and a loss is defined for any image."""
    made = ensdiff.sample(tiny, 0, 3, steps=STEPS, clip=False, weights=CODE.ablate([3])[0])
    assert np.isfinite(ensdiff.jacobian(tiny, made)).all()
    moved = dataclasses.replace(tiny, params=jax.tree.map(lambda a: 2 * np.asarray(a), tiny.params))
    assert ensdiff.attribute(moved, samples, "loss", top=1, loss=FEW).units.shape == (3, 1)


def test_of_equal_influences_the_lower_id_comes_first(tiny, samples):
    """The order in which the units are given does not matter."""

    def constant(weights_MK):
        return np.ones((3, len(weights_MK)))

    for units in ([5, 2, 3], [3, 2, 5]):
        att = ensdiff.attribute(tiny, samples, constant, top=2, units=units)
        np.testing.assert_array_equal(att.units, [[2, 3]] * 3)


def test_numbers_of_numpy_are_numbers(tiny, samples, tmp_path):
    one, five = np.int64(1), np.uint8(5)
    att = ensdiff.attribute(tiny, samples, top=one, verify=five, null=np.int32(0), seed=five, level=np.float32(0.5))
    att.save(tmp_path / "att")
    assert ensdiff.Attribution.load(tmp_path / "att").settings == att.settings


def test_chosen_units_only(tiny, samples):
    att = ensdiff.attribute(tiny, samples, "exact", top=2, units=[4, 1])
    assert {tuple(sorted(row)) for row in att.units.tolist()} == {(1, 4)}


def test_features(tiny, samples):
    """A feature function that halves the image halves every influence, in each method."""

    def half(images):
        return images.reshape(len(images), -1) / 2

    for method in ("exact", "differential", "screen"):
        plain = ensdiff.attribute(tiny, samples, method, top=6)
        halved = ensdiff.attribute(tiny, samples, method, top=6, features=half)
        np.testing.assert_allclose(halved.influence, plain.influence / 2, rtol=1e-3)
        assert halved.distance == "half"
        assert plain.distance == "l2"


def test_equal_members_have_no_influence(tiny):
    same = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], a.shape), tiny.params)
    equal = dataclasses.replace(tiny, params=same)
    samples = ensdiff.sample(equal, 0, 2, steps=STEPS)
    for method in ("exact", "differential"):
        assert ensdiff.attribute(equal, samples, method, top=6).influence.max() < 1e-3


def test_p_values_are_shares_of_the_null():
    code = ensdiff.Code.balanced(6, 5, 3)
    params = random_ensemble(code)
    samples = ensdiff.sample(params, 0, 2, steps=STEPS)
    for method in ("exact", "differential", "screen", "loss"):
        att = ensdiff.attribute(params, samples, method, top=5, null=15, loss=FEW if method == "loss" else None)
        assert att.null_BL.shape == (2, 15)
        assert att.settings["null_of_a_kind"] == 15
        assert att.resolution == 5 / 16
        assert len(att.verdict) == 2
        assert "one unit alone cannot reach q <= 0.1" in repr(att)
        for b in range(2):
            for i in range(5):
                reached = (att.null_BL[b] >= att.influence[b, i] - 1e-5 * np.abs(att.null_BL[b]).max()).sum()
                assert att.p_value[b, i] == (1 + reached) / 16
            np.testing.assert_allclose(att.q_value[b], false_discovery_control(att.p_value[b]), rtol=1e-9)
        assert "p=" in repr(att)
    # all C(6, 3) - 5 unowned words and the units' own words together are the exhaustive landscape
    with pytest.raises(ValueError, match="leave only 15"):
        ensdiff.attribute(params, samples, "differential", top=1, null=16)


def closed_form(tiny, rng):
    """Return an ensemble whose members are exact denoisers of Gaussians N(m_k, s^2 I), and its sampler in closed form.

    ``eps_k(x, t) = sqrt(1 - a) (x - sqrt(a) m_k) / (a s^2 + 1 - a)``: with weights w the mean enters as w . m, and
    every step of the sampler is affine in (x, w . m, w . 1).
    """
    means, spread = rng.uniform(-0.5, 0.5, (4, 8, 8, 1)).astype(np.float32), 0.3
    abar_T = jnp.asarray(tiny.schedule.abar_T, jnp.float32)

    def apply(params, x_BHWC, t_B, cond, key_B):
        a = abar_T[t_B.astype(jnp.int32)][:, None, None, None]
        return jnp.sqrt(1 - a) * (x_BHWC - jnp.sqrt(a) * params["mean"][None]) / (a * spread**2 + 1 - a)

    model = ensdiff.models.functions(lambda key: {"mean": jnp.zeros((8, 8, 1))}, apply)
    params = dataclasses.replace(tiny, model=model, params={"mean": jnp.asarray(means)})

    def by_hand(samples, weights):
        """Compute the DDIM recursion in float64, one image at a time, for weights of any sum."""
        steps = sampler_steps(params.schedule, samples.config)
        out = []
        for b in range(len(samples)):
            x = np.asarray(samples.noise.take(np.array([b])).at(0, params.image_shape), np.float64)[0]
            for t, signal, sigma, keep, target, _ in zip(*steps, strict=True):
                a = params.schedule.abar_T[t]
                eps = np.sqrt(1 - a) * (weights.sum() * x - np.sqrt(a) * np.tensordot(weights, means, 1))
                eps /= a * spread**2 + 1 - a
                x = keep * x + target * (x - sigma * eps) / signal
            out.append((np.clip(x, -1, 1) + 1) / 2)
        return np.array(out)

    return params, by_hand


def test_exact_on_a_linear_gaussian_denoiser(tiny, rng):
    """The counterfactual and its influence are known in closed form; the Jacobian is its derivative."""
    params, by_hand = closed_form(tiny, rng)
    samples = ensdiff.sample(params, 0, 2, steps=STEPS, sampler="ddim", clip=False)
    factual = by_hand(samples, np.full(4, 0.25))
    np.testing.assert_allclose(samples.images, factual, atol=1e-5)
    att = ensdiff.attribute(params, samples, "exact", top=6)
    for b in range(2):
        for unit, influence in zip(att.units[b], att.influence[b], strict=True):
            known = by_hand(samples, CODE.ablate([int(unit)])[0].astype(float))[b]
            assert influence == pytest.approx(np.linalg.norm(known - factual[b]), rel=1e-4)
    jacobian = ensdiff.jacobian(params, samples)
    for k in range(4):
        step = 1e-6 * np.eye(4)[k]
        derivative = (by_hand(samples, 0.25 + step) - by_hand(samples, 0.25 - step)) / 2e-6
        inside = (factual > 1e-3) & (factual < 1 - 1e-3)
        np.testing.assert_allclose(jacobian[k][inside], derivative[inside], rtol=1e-3, atol=1e-4)


def test_predicted_counterfactuals(tiny, samples, jacobian):
    units = [2, {0}, 5]
    predicted = ensdiff.predicted_counterfactuals(tiny, samples, units)
    for m, unit in enumerate((2, 0, 5)):
        step = CODE.ablate([unit])[0] - 0.25
        moved = np.asarray(samples.images) + sum(step[k] * jacobian[k] for k in range(4))
        np.testing.assert_allclose(predicted[m], np.clip(moved, 0, 1), rtol=1e-4, atol=1e-4)


def test_audit_of_a_screen(tiny, samples):
    """Auditing all unverified units counts exactly the missed units."""
    exact = ensdiff.attribute(tiny, samples, "exact", top=6)
    screen = ensdiff.attribute(tiny, samples, "screen", top=2, verify=2, audit=4)
    for b in range(3):
        verified = set(screen.units[b].tolist())
        missed = [u for u, i in zip(exact.units[b], exact.influence[b], strict=True)
                  if u not in verified and i > screen.influence[b, -1] * (1 + 1e-5)]  # fmt: skip
        assert screen.audit.exceeding_B[b] == len(missed)
        assert screen.audit.recall_B[b] == pytest.approx(2 / (2 + len(missed)))
    assert "audit of 4 unverified" in repr(screen)
    assert ensdiff.attribute(tiny, samples, "screen", top=2, verify=6, audit=4).audit.pooled == (1, 1, 1)


@pytest.mark.parametrize("method", ["exact", "differential", "loss"])
def test_order_of_units_does_not_matter(tiny, samples, method):
    shuffled = [3, 0, 5, 2, 4, 1]
    options = dict(top=6, loss=FEW if method == "loss" else None)
    plain = ensdiff.attribute(tiny, samples, method, **options)
    other = ensdiff.attribute(tiny, samples, method, units=shuffled, **options)
    matrix = ensdiff.Code.from_matrix(CODE.matrix()[shuffled])
    stored = ensdiff.attribute(tiny, samples, method, code=matrix, **options)
    for b in range(3):
        expected = dict(zip(plain.units[b].tolist(), plain.influence[b], strict=True))
        for units, influence in (
            (other.units[b], other.influence[b]),
            (np.take(shuffled, stored.units[b]), stored.influence[b]),
        ):
            for unit, value in zip(units, influence, strict=True):
                assert value == pytest.approx(expected[int(unit)], rel=1e-3, abs=1e-4)


def test_sets_and_groups_are_removed_together(tiny):
    names = ("cyd", "ada", "bob")
    code = ensdiff.Code.hierarchical(6, [0, 0, 0, 1, 1, 1, 2, 2, 2], group_weight=4, weight=2, group_names=names)
    params = random_ensemble(code)
    samples = ensdiff.sample(params, 0, 2, steps=STEPS)
    members = [np.flatnonzero(code.group_of_unit() == g).tolist() for g in range(3)]
    groups = ensdiff.attribute(params, samples, "differential", top=3, code=code.group_code(), null=8)
    gram = ensdiff.gram(params, samples)
    distance = quadratic_influence(gram, code.group_code().ablate(range(3)), np.full(6, 1 / 6))
    for b in range(2):
        np.testing.assert_allclose(groups.influence[b], distance[b, groups.units[b]], rtol=1e-3)
    assert groups.null_BL.shape == (2, 8)
    data = ensdiff.data.arrays(np.zeros((9, 8, 8, 1), np.uint8), np.repeat(names, 3))  # its units are sorted by name
    with pytest.raises(ValueError, match="same names in another order"):
        groups.plot(samples.images, data)
    assert len(groups.plot(samples.images, dataclasses.replace(data, unit_names=names)).axes) == 8
    together = ensdiff.attribute(params, samples, "differential", top=3, units=members)
    distance = quadratic_influence(gram, code.ablate(members), np.full(6, 1 / 6))
    for b in range(2):
        np.testing.assert_allclose(together.influence[b], distance[b, together.units[b]], rtol=1e-3)
    sets = ensdiff.attribute(params, samples, "differential", top=2, units=[{0, 1}, 5])
    assert sets.sets == ((0, 1), (5,))
    assert "{0, 1} (" in repr(sets)


def test_save_load_table_and_plot(tiny, samples, tmp_path):
    code = ensdiff.Code.balanced(6, 5, 3)
    params = random_ensemble(code)
    own = ensdiff.sample(params, 0, 2, steps=STEPS)
    for att, name in (
        (ensdiff.attribute(params, own, "screen", top=3, verify=3, null=15, audit=2), "screen"),
        (ensdiff.attribute(params, own, "loss", top=2, units=[{0, 1}, 2], loss=FEW), "loss.of.sets"),
    ):
        att.save(tmp_path / name)
        again = ensdiff.Attribution.load(tmp_path / name)
        for field in dataclasses.fields(att):
            old, new = getattr(att, field.name), getattr(again, field.name)
            if field.name == "audit" and old is not None:
                for a, b in zip(old, new, strict=True):
                    np.testing.assert_array_equal(a, b)
            elif isinstance(old, np.ndarray):
                np.testing.assert_array_equal(old, new)
            else:
                assert old == new
        assert repr(again) == repr(att)
        assert json.loads((tmp_path / f"{name}.json").read_text())["units"] == att.units.tolist()
        figure = att.plot(own.images, ensdiff.data.arrays(np.zeros((5, 8, 8, 1))))
        assert len(figure.axes) == 2 * (1 + att.units.shape[1])
        assert len([axes for axes in figure.axes if axes.images]) == len(figure.axes)
    with pytest.raises(ValueError, match="3 images for an attribution of 2"):
        att.plot(samples.images)


def test_table(tiny, samples, monkeypatch):
    att = ensdiff.attribute(tiny, samples, "loss", top=4, loss=FEW)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ImportError, match=r"ensdiff\[pandas\]"):
            att.to_pandas()
    pytest.importorskip("pandas")
    table = att.to_pandas()
    assert list(table.columns) == ["sample", "rank", "unit", "influence", "standard_error"]
    assert len(table) == 12
    row = table[(table["sample"] == 1) & (table["rank"] == 3)].iloc[0]
    assert row["unit"] == att.units[1, 2]
    assert row["influence"] == att.influence[1, 2]


def test_bad_calls(tiny, samples):
    for message, options in (
        ("'exact', 'differential', 'screen', 'loss'", dict(method="shapley")),
        (r"top=7: expected 1 \.\. 6", dict(top=7)),
        ("verify=2 is less than top=3", dict(top=3, verify=2)),
        ("null=-1", dict(top=1, null=-1)),
        ("null='many'", dict(top=1, null="many")),
        ("audit=3", dict(top=1, audit=3, method="exact")),
        ("level=0", dict(top=1, level=0.0)),
        ("code is for 5 members", dict(top=1, code=ensdiff.Code.balanced(5, 6))),
        (r"unit 9 does not exist: ids are 0 \.\. 5", dict(units=[9], top=1)),
        ("unit 3 is given 2 times", dict(units=[3, 3, 5], top=1)),
        (r"set \{3, 4\} is given 2 times", dict(units=[{3, 4}, {4, 3}, 5], top=1)),
        (r"set \{3\} is given 2 times", dict(units=[[3, 3], 3, {4, 5}], top=1)),
        ("booleans: .*flatnonzero", dict(units=[True, False, True], top=1)),
        ("booleans", dict(units=np.array([True, False]), top=1)),
        ("top=True", dict(top=True)),
        ("top=2.0", dict(top=2.0)),
        ("null=True", dict(top=1, null=True)),
        ("verify is for method='screen', not 'differential'", dict(top=1, verify=9, method="differential")),
        ("loss is for method='loss' and 'trak' .*, not 'screen'", dict(top=1, loss=FEW)),
        (r"unit ids \[0\.5\]: expected integers", dict(units=[0.5], top=1)),
        ("seed=1.5", dict(top=1, seed=1.5)),
        ("a set has no order", dict(units={3, 5}, top=1)),
        ("a dict has no order", dict(units={3: 1}, top=1)),
    ):
        with pytest.raises(ValueError, match=message):
            ensdiff.attribute(tiny, samples, **options)
    with pytest.raises(ValueError, match="what ensdiff.sample returned"):
        ensdiff.attribute(tiny, np.zeros((2, 8, 8, 1)), "exact")
    with pytest.raises(ValueError, match=r"samples is a Dataset: expected .* such as data\.images"):
        ensdiff.attribute(tiny, ensdiff.data.arrays(np.zeros((2, 8, 8, 1))), "loss", top=1)


def test_the_primal_is_computed_once_a_member(tiny):
    """In the lowered step, each convolution over samples appears once, not once per tangent."""
    from ensdiff.attribution.tangents import State, tangent_step
    from ensdiff.diffusion.samplers import StepRule, stages
    from ensdiff.sampling.denoise import Noise

    B, K = 3, 4
    mesh = ensdiff.make_mesh(K, devices=jax.devices()[:1])
    step = tangent_step(tiny.model, (8, 8, 1), StepRule(clip=False), mesh)
    noise = Noise(jnp.arange(B), key=jax.random.key(0))
    stage = stages(tiny.schedule, ensdiff.SamplerConfig(steps=STEPS))[0]
    x, dx = State(jnp.zeros((B, 8, 8, 1))), State(jnp.zeros((K, B, 8, 8, 1)))
    lowered = step.lower(tiny.params, x, dx, noise, None, jnp.full((K,), 0.25), stage)
    lines = [line for line in lowered.as_text().splitlines() if "stablehlo.convolution" in line]
    batches = [int(line.split("-> tensor<")[1].split("x")[0]) for line in lines]
    assert batches.count(B) == batches.count(B * K) == len(lines) // 2
