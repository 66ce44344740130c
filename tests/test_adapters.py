"""Adapters on a frozen base, and averaged parameters: one small ensemble, against loops over merged networks."""

import dataclasses
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensdiff
from ensdiff.attribution.draws import draw_noise
from ensdiff.diffusion.schedule import add_noise, network_inputs
from ensdiff.ensemble.memory import Resources
from ensdiff.models import DiTConfig, adapted, adapters, functions, linen
from ensdiff.models.describing import fingerprint_of, model_from_dict
from ensdiff.models.parameters import digest_of, named
from ensdiff.runs.base import write_base
from ensdiff.sampling import blended
from tests.helpers import CODE, DEEP, SHORT, TINY, blobs

pytestmark = pytest.mark.slow

FIELDS = {"steps": 3, "batch_size": 2, "learning_rate": 3e-2, "warmup": 0, "progress": False}
DATA = ensdiff.data.arrays(blobs())
K = CODE.members


def parameters_of(model, seed=0):
    """Return parameters of a network without zeros, so that all of its layers matter."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(0.2 * rng.normal(size=a.shape), a.dtype), shapes)


BASE = parameters_of(TINY)


def make(**options):
    return adapted(TINY, BASE, **{"rank": 2, "alpha": 3.0, "train_also": "bias$", **options})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("adapters") / "run"


@pytest.fixture(scope="module")
def params(run):
    """An ensemble of adapters whose parameters are averaged, with its run directory."""
    return ensdiff.train(DATA, CODE, make(), schedule=SHORT, combine="parameters", run_dir=run, **FIELDS)


@pytest.fixture(scope="module")
def merged(params):
    """Every member's parameters of the whole network."""
    of = [jax.tree.map(lambda a, k=k: a[k], params.params) for k in range(K)]
    return [adapters.merge(params.model, params.base, factors) for factors in of]


@pytest.fixture(scope="module")
def samples(params):
    return ensdiff.sample(params, 0, 2, steps=3, clip=False)


def networks(params, thetas):
    """Return an ensemble of whole networks, which has as many members as `CODE`."""
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *thetas)
    return ensdiff.Ensemble(stacked, CODE, TINY, params.schedule, params.image_shape)


def mean_of(merged, weights_K):
    return jax.tree.map(lambda *rows: sum(float(w) * row for w, row in zip(weights_K, rows, strict=True)), *merged)


def close(one, other, tolerance=2e-5):
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=0, atol=tolerance)


def test_training_changes_the_factors_and_not_the_base(params):
    assert digest_of(params.base) == digest_of(BASE) == params.base_digest == params.model.digest
    for path, leaf in named(params.params).items():
        assert np.abs(np.asarray(leaf)).max() > 0, path  # "up" and "delta" started at zero
    assert params.model.base_params is None  # nothing but the ensemble keeps the base


def test_members_do_not_depend_on_units_that_they_did_not_see(params):
    images = np.array(DATA.images)
    images[2] = images[2][::-1]
    other = ensdiff.train(ensdiff.data.arrays(images), CODE, make(), schedule=SHORT, **FIELDS)
    for k, saw in enumerate(CODE.rows([2])[0]):
        pairs = zip(jax.tree.leaves(params.params), jax.tree.leaves(other.params), strict=True)
        assert all((a[k] == b[k]).all() for a, b in pairs) == (not saw)


class Flax(nn.Module):
    """Layers of flax: one that can add products, a convolution, and one with groups, whose kernel is merged."""

    @nn.compact
    def __call__(self, x_BHWC, t_B):
        h = nn.Conv(4, (3, 3), strides=2)(x_BHWC) + nn.Dense(4)(t_B[:, None])[:, None, None]
        h = nn.Conv(4, (3, 3), feature_group_count=2)(nn.tanh(h))
        return jnp.repeat(jnp.repeat(nn.Conv(x_BHWC.shape[-1], (1, 1))(h), 2, 1), 2, 2)


class Wrapped(nn.Module):
    """A layer whose kernel is not the stored one, a subclass, and an input given by name."""

    @nn.compact
    def __call__(self, x_BHWC, t_B):
        h = nn.WeightNorm(nn.Dense(3))(x_BHWC)
        return nn.Dense(x_BHWC.shape[-1])(inputs=Halved(4)(h))


class Halved(nn.Dense):
    def __call__(self, inputs):
        return super().__call__(0.5 * inputs)


def start(key):
    return {"mix": {"kernel": 0.3 * jax.random.normal(key, (8, 8))}, "gain": jnp.ones((1, 1, 1, 1))}


def mix(params, x_BHWC, t_B, cond, key_B):
    return params["gain"] * jnp.einsum("bhwc,hi->biwc", x_BHWC, params["mix"]["kernel"])


@pytest.mark.parametrize(
    "base",
    [
        pytest.param(dataclasses.replace(DEEP, attention_levels=(1,), downsample="conv_end"), id="unet"),
        pytest.param(DiTConfig(patch=4, width=8, depth=1, heads=2), id="dit"),
        pytest.param(linen(Flax(), (8, 8, 1)), id="flax"),
        pytest.param(linen(Wrapped(), (8, 8, 1)), id="wrapped"),
        pytest.param(functions(start, mix), id="functions"),
    ],
)
def test_adapted_predictions_are_those_of_merged_parameters(base):
    """For one member and for members computed together, whether layers add products or kernels are merged."""
    theta = parameters_of(base)
    model = adapted(base, theta, rank=2, alpha=1.0, train_also="gain|bias")
    keys = jax.random.split(jax.random.key(1), 3)
    factors_K = jax.jit(jax.vmap(model.init))(keys)
    x_BHWC, t_B = jax.random.normal(jax.random.key(2), (2, 8, 8, 1)), jnp.array([3.0, 15.0])
    plain = jax.jit(base.apply)(theta, x_BHWC, t_B)

    @jax.jit
    def together(factors_K):
        return jax.vmap(lambda factors: model.apply(factors, x_BHWC, t_B))(factors_K)

    close(together(factors_K), jnp.broadcast_to(plain, (3, *plain.shape)))  # they start as the base
    moved_K = jax.tree.map(lambda a: a + 0.2 * jax.random.normal(jax.random.key(a.size), a.shape), factors_K)
    found, of_merged = together(moved_K), jax.jit(lambda f: base.apply(adapters.merge(model, theta, f), x_BHWC, t_B))
    members = [jax.tree.map(lambda a, k=k: a[k], moved_K) for k in range(3)]
    close(found, jnp.stack([of_merged(member) for member in members]))
    close(jax.jit(model.apply)(members[1], x_BHWC, t_B), found[1])
    assert np.abs(np.asarray(found - plain[None])).max() > 0.01


def test_merging_takes_layers_of_any_name():
    """Layers called "up" and "down" are no factors."""
    base = functions(
        lambda key: {"mlp": {"up": {"kernel": jnp.ones((2, 3))}, "down": {"kernel": jnp.ones((3, 2))}}}, mix
    )
    theta = parameters_of(base)
    model = adapted(base, theta, rank=1)
    factors = jax.tree.map(lambda a: a + 1.0, model.init(jax.random.key(0)))
    found = named(adapters.merge(model, theta, factors))
    for path, leaf in named(theta).items():
        down, up = (named(factors)[f"{path}/{part}"] for part in ("down", "up"))
        close(found[path], leaf + down @ up)


def test_members_can_share_their_down():
    """With `down_seed`, members differ at the start in nothing, whatever the seed of training is; a run tells of it."""
    model = make(down_seed=5)
    same, other = (jax.jit(model.init)(jax.random.key(seed)) for seed in (0, 1))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), same, other))
    seeds = [None, 5, 6]
    starts = [make(down_seed=seed).init(jax.random.key(0)) for seed in seeds]
    first = [np.asarray(start["middle_block0"]["conv1"]["kernel"]["down"]) for start in starts]
    assert len({array.tobytes() for array in first}) == 3
    for seed in seeds:
        text = fingerprint_of(make(down_seed=seed))
        assert ("down_seed" in text) == (seed is not None)  # older descriptions and their digests stay
        assert model_from_dict(text).down_seed == seed
    with pytest.raises(ValueError, match="down_seed=6"):
        model_from_dict(fingerprint_of(make(down_seed=6)), model)
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=f"down_seed={seed}: expected None or an integer of 0"):
            make(down_seed=seed)


def test_no_rank_trains_whole_arrays_only():
    model = make(rank=0)
    zero = jax.jit(model.init)(jax.random.key(0))
    assert set(named(zero)) == {f"{path}/delta" for path in named(BASE) if path.endswith("bias")}
    x_BHWC, t_B = jnp.ones((1, 8, 8, 1)), jnp.array([3.0])
    close(jax.jit(model.apply)(zero, x_BHWC, t_B), jax.jit(TINY.apply)(BASE, x_BHWC, t_B), 1e-6)


def test_the_base_is_multiplied_once_for_members_that_are_computed_together():
    """A stack of members has the base's convolutions of one member, of a batch of all members' images."""
    model = make(targets="conv1/kernel", train_also=None, stack=0)
    shapes = jax.eval_shape(jax.vmap(model.init), jax.random.split(jax.random.key(0), 5))
    x_KBHWC, t_B = jax.ShapeDtypeStruct((5, 2, 8, 8, 1), jnp.float32), jnp.array([3.0, 4.0])

    def predict(factors_K, x_KBHWC):
        return jax.vmap(lambda factors, x: model.apply(factors, x, t_B))(factors_K, x_KBHWC)

    def convolutions(jaxpr):
        return [eqn.invars[0].aval.shape for eqn in jaxpr.eqns if eqn.primitive.name == "conv2d"]

    one = jax.make_jaxpr(TINY.apply)(BASE, jnp.zeros((2, 8, 8, 1)), t_B)
    stacked = jax.make_jaxpr(predict)(shapes, x_KBHWC)
    of_base = [shape for shape in convolutions(stacked.jaxpr) if len(shape) == 4]
    assert of_base == [(5 * shape[0], *shape[1:]) for shape in convolutions(one.jaxpr)]


def test_gradients_of_the_base_are_not_computed():
    """The backward pass has the gradients of inputs and of factors, but of no kernel of the base."""
    rank = 3  # no layer of the base has so many outputs
    x_BHWC, t_B = jnp.ones((2, 8, 8, 1)), jnp.array([3.0, 4.0])

    def outputs_of_kernel_gradients(model, params):
        loss = jax.make_jaxpr(jax.grad(lambda params: jnp.square(model.apply(params, x_BHWC, t_B)).sum()))
        return {shape[-1] for shape in kernel_gradients(loss(params).jaxpr)}

    model = make(rank=rank, train_also=None)
    assert outputs_of_kernel_gradients(TINY, BASE) == {1, 4}
    assert outputs_of_kernel_gradients(model, jax.eval_shape(model.init, jax.random.key(0))) == {rank}


def kernel_gradients(jaxpr):
    """Yield the shapes of the outputs whose kernels' gradients a traced function computes by convolutions."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv2d" and equation.params["out"] == "k":
            yield equation.invars[1].aval.shape
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from kernel_gradients(value.jaxpr)


def test_averaged_parameters_generate_what_the_mean_network_generates(params, merged, samples):
    mean = mean_of(merged, np.full(K, 1 / K))
    close(samples.images, ensdiff.sample(networks(params, [mean] * K), 0, 2, steps=3, clip=False).images)
    sets = [2, {0, 5}]
    without = ensdiff.counterfactuals(params, samples, sets)
    for found, weights_K in zip(without, CODE.ablate(sets), strict=True):
        twin = networks(params, [mean_of(merged, weights_K)] * K)
        close(found, ensdiff.sample(twin, 0, 2, steps=3, clip=False).images)
        close(found, ensdiff.sample(params, 0, 2, steps=3, clip=False, weights=weights_K).images)
    assert np.abs(without[0] - np.asarray(samples.images)).max() > 1e-3


def test_a_scale_multiplies_the_averaged_change(params, merged, run):
    """In samples, counterfactuals and derivatives; members stay what they are."""
    more = ensdiff.load(run, scale=1.5)
    assert more.fingerprint != params.fingerprint

    def network(weights_K):
        mean = mean_of(merged, weights_K)
        return jax.tree.map(lambda start, theta: start + 1.5 * (theta - start), params.base, mean)

    samples = ensdiff.sample(more, 0, 2, steps=3, clip=False)
    twin = networks(params, [network(np.full(K, 1 / K))] * K)
    close(samples.images, ensdiff.sample(twin, 0, 2, steps=3, clip=False).images)
    weights_K = CODE.ablate([2])[0]
    twin = networks(params, [network(weights_K)] * K)
    without = ensdiff.counterfactuals(more, samples, [2])[0]
    close(without, ensdiff.sample(twin, 0, 2, steps=3, clip=False).images)
    J_KBHWC = ensdiff.jacobian(more, samples)
    near = np.full(K, 1 / K) + 1e-3 * (weights_K - 1 / K)
    moved = np.asarray(ensdiff.sample(more, 0, 2, steps=3, clip=False, weights=near).images) - samples.images
    expected = np.tensordot(weights_K - 1 / K, J_KBHWC, 1)
    close(moved / 1e-3, expected, 0.05 * np.abs(expected).max())
    x_BHWC, t_B = np.ones((1, 8, 8, 1), np.float32), np.array([3])
    close(ensdiff.predict(more, x_BHWC, t_B), ensdiff.predict(params, x_BHWC, t_B), 0)
    with pytest.raises(ValueError, match="positive number"):
        ensdiff.load(run, scale=-1.0)


def test_rows_of_weights_in_memory_do_not_change_counterfactuals(params, samples, monkeypatch):
    units = list(range(6))
    whole = ensdiff.counterfactuals(params, samples, units)
    monkeypatch.setattr(blended, "ROWS", 2)
    assert blended.rows_at_once(params, Resources()) == 2
    close(ensdiff.counterfactuals(params, samples, units), whole, 1e-6)


def test_a_removed_member_has_no_influence_whatever_it_holds(params, samples):
    """NaN in the members that saw unit 2 leaves the counterfactual without it, bit for bit."""
    saw = np.flatnonzero(CODE.rows([2])[0])
    broken = dataclasses.replace(params, params=jax.tree.map(lambda a: a.at[saw].set(np.nan), params.params))
    one, other = (ensdiff.counterfactuals(some, samples.unbound(), [2]) for some in (params, broken))
    assert np.isfinite(one).all()
    assert (one == other).all()
    assert not np.isfinite(np.asarray(ensdiff.sample(broken, 0, 2, steps=3, clip=False).images)).any()


def test_jacobian_is_the_derivative_of_the_averaged_network(params, samples):
    """Against central differences, moving weight from one member to another; (6) predicts ablations with it."""
    J_KBHWC, step = ensdiff.jacobian(params, samples), 2e-2

    def moved(by):
        weights_K = np.full(K, 1 / K)
        weights_K[1] += by
        weights_K[3] -= by
        return np.asarray(ensdiff.sample(params, 0, 2, steps=3, clip=False, weights=weights_K).images, np.float64)

    high, low = moved(step), moved(-step)
    inside = (np.minimum(high, low) > 0) & (
        np.maximum(high, low) < 1
    )  # elsewhere the range of pixels cuts the derivative
    expected = (high - low) / (2 * step)
    close((J_KBHWC[1] - J_KBHWC[3])[inside], expected[inside], 2e-3 * np.abs(expected).max())
    assert inside.mean() > 0.3
    assert np.abs(expected).max() > 1e-2
    att = ensdiff.attribute(params, samples, "differential", top=6)
    step_MK = CODE.ablate(range(6)) - 1 / K
    moves = np.einsum("mk,kbhwc->bmhwc", step_MK, J_KBHWC).reshape(2, 6, -1)
    close(att.influence[0], -np.sort(-np.linalg.norm(moves[0], axis=-1)), 1e-5)


def test_loss_of_rows_is_the_loss_of_the_averaged_network(params, merged):
    config = ensdiff.LossConfig(draws=4, block=2)
    att = ensdiff.attribute(params, DATA.images[:2], "loss", top=6, loss=config)
    x_BHWC = np.asarray(params.space.to_model(jnp.asarray(DATA.images[:2])))
    key = jax.random.fold_in(jax.random.key(0), 2**31 - 1)
    blocks = [config.draw_block(SHORT, 0, block, config.block) for block in range(2)]

    @jax.jit
    def loss(theta, x_HWC, t_D, number_D):
        eps = draw_noise(key, number_D, (8, 8, 1))
        noisy = add_noise(SHORT, jnp.broadcast_to(x_HWC, eps.shape), t_D, eps)
        return jnp.square(eps - TINY.apply(theta, *network_inputs(SHORT, noisy, t_D))).sum((1, 2, 3)).mean()

    def losses(weights_K):
        theta = mean_of(merged, weights_K)
        return np.array([[loss(theta, x, block.t_D, block.number_D) for x in x_BHWC] for block in blocks], np.float64)

    factual = losses(np.full(K, 1 / K))
    change_JBM = np.stack([losses(row) - factual for row in CODE.ablate(range(6))], -1)
    for b in range(2):
        close(att.influence[b], change_JBM.mean(0)[b, att.units[b]], 1e-3)
        error = change_JBM[:, b, att.units[b]].std(0, ddof=1) / np.sqrt(2)
        close(att.standard_error[b], error, 1e-3)
    with pytest.raises(ValueError, match="no quadratic form"):
        ensdiff.loss_matrix(params, DATA.images[:1])


def test_a_target_error_adds_draws(params):
    few, many = (
        ensdiff.LossConfig(draws=4, block=2, max_draws=8, target_error=target, levels="uniform")
        for target in (1e6, 1e-9)
    )
    draws = [ensdiff.attribute(params, DATA.images[:1], "loss", top=1, loss=c).settings["draws"] for c in (few, many)]
    assert draws == [4, 8]


def test_a_run_holds_its_base_and_is_certified(params, samples, run, tmp_path):
    found = ensdiff.load(run)
    assert found.fingerprint == params.fingerprint
    assert (found.combine, found.model) == ("parameters", params.model)
    assert (ensdiff.sample(found, 0, 2, steps=3, clip=False).images == samples.images).all()
    assert ensdiff.load(run, combine="predictions").fingerprint != params.fingerprint
    certificate = ensdiff.certify(run, [2])
    assert certificate.verify(run, data=DATA, replay=3).ok
    assert any("base" in text for text in certificate.values["limits"])
    ensdiff.forget(run, [2], tmp_path / "without")
    rest = ensdiff.load(tmp_path / "without")
    without = ensdiff.counterfactuals(params, samples, [2])[0]
    close(ensdiff.sample(rest, 0, 2, steps=3, clip=False).images, without, 1e-6)


def test_a_resumed_run_is_the_uninterrupted_run(params, tmp_path):
    options = {**FIELDS, "schedule": SHORT, "combine": "parameters", "run_dir": tmp_path / "run"}
    ensdiff.train(DATA, CODE, make(), **{**options, "steps": 1, "checkpoint_every": 1})
    again = ensdiff.train(DATA, CODE, make(), **options, resume=True)
    assert again.fingerprint == params.fingerprint
    shifted = adapted(TINY, jax.tree.map(lambda a: a + 1, BASE), rank=2, alpha=3.0, train_also="bias$")
    with pytest.raises(ValueError, match=r"model\.digest"):
        ensdiff.train(DATA, CODE, shifted, **options, resume=True)


@pytest.mark.faults
def test_a_base_that_was_changed_or_lost_is_found(run, params, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    stored = dict(np.load(copy / "base.npz"))
    stored["head/bias"] = stored["head/bias"] + 1e-3
    np.savez(copy / "base.npz", **stored)
    with pytest.raises(ensdiff.DamagedError, match=r"base\.npz is damaged"):
        ensdiff.load(copy)
    with pytest.raises(ValueError, match=r"base\.npz"):
        ensdiff.certify(copy, [2])
    (copy / "base.npz").unlink()
    with pytest.raises(ensdiff.DamagedError, match=r"base\.npz is missing"):
        ensdiff.load(copy)


def test_members_fine_tuned_from_one_start_are_averaged_too(tmp_path):
    """Full members that share their start; bfloat16 in the base becomes float32 in the members."""
    options = {**FIELDS, "steps": 2, "schedule": SHORT, "run_dir": tmp_path / "run"}
    tuned = ensdiff.train(DATA, CODE, TINY, start=BASE, combine="parameters", **options)
    thetas = [jax.tree.map(lambda a, k=k: a[k], tuned.params) for k in range(K)]
    mean = networks(tuned, [mean_of(thetas, CODE.ablate([3])[0])] * K)
    found = ensdiff.counterfactuals(tuned, ensdiff.sample(tuned, 0, 2, steps=3, clip=False), [3])[0]
    close(found, ensdiff.sample(mean, 0, 2, steps=3, clip=False).images)
    assert ensdiff.load(tmp_path / "run").fingerprint == tuned.fingerprint
    other = jax.tree.map(lambda a: a + 1, BASE)
    with pytest.raises(ValueError, match="base"):
        ensdiff.train(DATA, CODE, TINY, start=other, combine="parameters", **options, resume=True)


def test_a_base_of_bfloat16_is_kept_as_it_is(tmp_path):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), BASE)
    model = adapted(TINY, half, rank=2, alpha=3.0, train_also="bias$")
    found = ensdiff.train(DATA, CODE, model, schedule=SHORT, run_dir=tmp_path / "run", **{**FIELDS, "steps": 1})
    loaded = ensdiff.load(tmp_path / "run")
    assert loaded.fingerprint == found.fingerprint
    samples = ensdiff.sample(loaded, 0, 1, steps=2)
    att = ensdiff.attribute(loaded, samples, "exact", top=1, null=0, partial=tmp_path / "partial")
    assert att.units.shape == (1, 1)
    with pytest.raises(ValueError, match="averages predictions"):
        ensdiff.load(tmp_path / "run", scale=1.5)
    pairs = zip(jax.tree.leaves(loaded.base), jax.tree.leaves(half), strict=True)
    assert all(a.dtype == jnp.bfloat16 and (a == b).all() for a, b in pairs)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": -1}, "at least 0"),
        ({"rank": 2.5}, "rank=2.5"),
        ({"alpha": 0.0}, "positive alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"targets": "nothing here"}, "found in no parameter"),
        ({"targets": "("}, "not a regular expression"),
        ({"targets": "bias$", "train_also": None}, "low-rank factors need 2 axes"),
        ({"rank": 0, "train_also": None}, "nothing would be trained"),
        ({"stack": "all"}, "stack"),
    ],
)
def test_wrong_settings_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        make(**change)


@pytest.mark.bad_input
def test_wrong_bases_are_refused(params, tmp_path):
    lost = {name: part for name, part in BASE.items() if name != "tail"}
    one = jnp.ones((2, 2))
    for wrong in ({"l/w": one, "l": {"w": one}}, {"l": {"w": one, "w/x": one}}, {"l/w/x": one, "l": {"w": one}}):
        with pytest.raises(ValueError, match="cannot be told apart, because a name holds a /: rename one"):
            adapters.check_start(functions(lambda key, wrong=wrong: wrong, lambda p, x, t, cond, key: x), wrong)
    with pytest.raises(ValueError, match="has a / in its name.*nest it, as in"):  # its file would not say how
        write_base(tmp_path, dataclasses.replace(params, base={"l/w": one}))
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="tail/bias is missing"):
        adapted(TINY, lost)
    with pytest.raises(ValueError, match=r"has shape \(7,\)"):
        adapted(TINY, {**BASE, "tail": {**BASE["tail"], "bias": jnp.zeros(7)}})
    with pytest.raises(ValueError, match="float16"):
        adapted(TINY, jax.tree.map(lambda a: a.astype(jnp.float16), BASE))
    with pytest.raises(TypeError, match="expected a denoiser"):
        adapted("unet", BASE)
    with pytest.raises(TypeError, match="adapted itself"):
        adapted(make(), BASE)
    with pytest.raises(ValueError, match="start from their base"):
        ensdiff.train(DATA, CODE, make(), start=BASE, **FIELDS)
    with pytest.raises(ValueError, match="without its base"):
        ensdiff.sample(dataclasses.replace(params, base=None, combine="predictions"), 0, 1, steps=2)
    with pytest.raises(ValueError, match="made with another one"):
        ensdiff.sample(dataclasses.replace(params, base=jax.tree.map(lambda a: a + 1, BASE)), 0, 1, steps=2)
    alone = dataclasses.replace(params, base=None, model=TINY, combine="parameters")
    with pytest.raises(ValueError, match="started from the same parameters"):
        ensdiff.sample(alone, 0, 1, steps=2)
    with pytest.raises(ValueError, match="combine='mean'"):
        ensdiff.train(DATA, CODE, make(), combine="mean", **FIELDS)
    with pytest.raises(ValueError, match="every member draws its own"):
        ensdiff.train(DATA, CODE, TINY, combine="parameters", **FIELDS)


@pytest.mark.torch
def test_adapted_members_are_exported_as_whole_networks(params, tmp_path):
    from ensdiff.interop import diffusers

    diffusers.save(params, tmp_path / "out")
    found = diffusers.load(tmp_path / "out")
    x_BHWC, t_B = np.ones((1, 8, 8, 1), np.float32), np.array([3])
    close(ensdiff.predict(found, x_BHWC, t_B), ensdiff.predict(params, x_BHWC, t_B))
    assert found.code == params.code
