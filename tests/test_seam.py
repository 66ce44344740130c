"""What holds for every denoiser, process, space and condition: one row of `CASES` for each kind of each.

Each case trains a few steps of a tiny ensemble and shares its compiled programs among all tests. The default command
leaves out the slow rows, of U-Nets.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensdiff
from ensdiff.attribution.loss import loss_matrix
from ensdiff.diffusion.schedule import add_noise, target
from ensdiff.ensemble.members import init_params
from ensdiff.models import DiTConfig, Latents, functions, linen
from ensdiff.sampling.denoise import Exogenous, denoise
from tests.helpers import CODE, SHORT, TINY, blobs

FIELDS: Any = {"steps": 4, "batch_size": 2, "learning_rate": 1e-2, "warmup": 0, "progress": False}
LATENTS = Latents(mean=(0.1,), scale=(0.5,))


class Mixer(nn.Module):
    """A tiny network of one's own, conditioned on a dict of a class and a vector."""

    @nn.compact
    def __call__(self, x_BHWC, t_B, cond):
        one_B4 = jax.nn.one_hot(cond["kind"], 4)
        told = jnp.concatenate([one_B4, cond["more"], t_B[:, None]], axis=-1)
        gain_B1C = nn.Dense(x_BHWC.shape[-1])(told)[:, None]
        h = nn.Conv(3, (3, 3))(x_BHWC) * (1.0 + gain_B1C[:, None])
        return nn.Conv(x_BHWC.shape[-1], (3, 3))(nn.tanh(h))


def start(key):
    return {"scale": 0.1 * jax.random.normal(key, (1, 8, 8, 1)), "shift": jnp.zeros((1, 8, 8, 1))}


def affine(params, x_BHWC, t_B, cond, key_B):
    time = (t_B / 20.0)[:, None, None, None]
    return jnp.tanh(params["scale"] * x_BHWC) + params["shift"] * time


class Case(NamedTuple):
    model: Any
    schedule: ensdiff.Schedule
    data: ensdiff.data.Dataset
    cond: Any = None
    guidance: float | None = None
    sampler: str = "ddim"


def latents(items=6):
    rng = np.random.default_rng(0)
    cond = {"kind": np.arange(items) % 3, "more": rng.normal(size=(items, 2)).astype(np.float32)}
    z = rng.normal(size=(items, 4, 4, 3)).astype(np.float16)
    return ensdiff.data.arrays(z, condition=cond, classes=3, null={"more": [0.5, -1.0]}, space=LATENTS)


def case_of(name):
    few = dataclasses.replace(SHORT, prediction="v")
    flow = ensdiff.Schedule(timesteps=20, kind="flow", prediction="flow")
    cosine = ensdiff.Schedule(timesteps=20, kind="cosine", prediction="v")
    edm = ensdiff.Schedule(timesteps=20, kind="edm", prediction="edm")
    pixels = ensdiff.data.arrays(blobs())
    classes = pixels.with_condition(np.arange(6) % 3, classes=3)
    some = np.array([0, 2, 1])
    if name == "unet-v-classes":
        return Case(dataclasses.replace(TINY, classes=3), few, classes, some, 2.0)
    if name == "unet-v-tokens":
        tokens = np.random.default_rng(0).normal(size=(9, 3, 5)).astype(np.float32)
        model = dataclasses.replace(
            TINY, context_width=5, context_length=3, heads=(2,), attention_levels=(0,), attention_levels_up=()
        )
        data = pixels.with_condition(tokens[:6], null=tokens[8])
        return Case(model, few, data, tokens[5:8], 2.0)
    if name == "dit-flow-classes":
        model = DiTConfig(patch=4, width=8, depth=1, heads=2, classes=3, stack=0)
        return Case(model, flow, classes, some, 1.0, "heun")
    if name == "linen-edm-tree-latents":
        data = latents()
        cond = {"kind": some, "more": np.ones((3, 2), np.float32)}
        return Case(linen(Mixer(), data.shape, data.condition_spec), edm, data, cond, 0.5, "dpm++2m")
    return Case(functions(start, affine, stack=2), cosine, pixels, sampler="ddpm")


CASES = [
    "functions-cosine-none", "linen-edm-tree-latents", "dit-flow-classes",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("unet-v-classes", "unet-v-tokens")),
]  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return case_of(request.param)


@pytest.fixture(scope="module")
def params(case):
    return ensdiff.train(case.data, CODE, case.model, schedule=case.schedule, **FIELDS)


@pytest.fixture(scope="module")
def samples(case, params):
    options: Any = {} if case.guidance is None else {"guidance": case.guidance}
    return ensdiff.sample(params, 0, 3, steps=3, sampler=case.sampler, cond=case.cond, clip=False, **options)


def bits(tree, k):
    return [np.asarray(leaf)[k].tobytes() for leaf in jax.tree.leaves(tree)]


def test_members_do_not_depend_on_units_that_they_did_not_see(case, params):
    """Another image and, where there are conditions, another condition of unit 2 change exactly its members."""
    images = np.array(case.data.images)
    images[2] = images[2][::-1]
    changes = [dataclasses.replace(case.data, images=images)]
    if case.data.condition is not None:
        condition = jax.tree.map(lambda rows: np.concatenate([rows[:2], rows[3:4], rows[3:]]), case.data.condition)
        changes.append(dataclasses.replace(case.data, condition=condition))
    for data in changes:
        other = ensdiff.train(data, CODE, case.model, schedule=case.schedule, **FIELDS)
        for k in range(4):
            assert (bits(other.params, k) == bits(params.params, k)) == (CODE.rows(2)[0][k] == 0), k


def test_a_resumed_run_has_the_same_bits(case, params, tmp_path):
    for steps in (2, 4):
        found = ensdiff.train(
            case.data, CODE, case.model, schedule=case.schedule, run_dir=tmp_path / "run", resume=steps > 2,
            **FIELDS | {"steps": steps},
        )  # fmt: skip
    own = not isinstance(case.model, ensdiff.UNetConfig | DiTConfig)
    loaded = ensdiff.load(tmp_path / "run", **({"model": case.model} if own else {}))
    for k in range(4):
        assert bits(found.params, k) == bits(params.params, k) == bits(loaded.params, k)
    assert loaded.fingerprint == params.fingerprint
    assert (loaded.space, loaded.condition, loaded.schedule) == (params.space, params.condition, params.schedule)
    certificate = ensdiff.certify(tmp_path / "run", [2], **({"model": case.model} if own else {}))
    options: Any = {"model": case.model} if own else {}
    assert certificate.verify(tmp_path / "run", data=case.data, replay=4, **options).failures == ()
    limits = " ".join(certificate.values["limits"])
    spec = case.data.condition_spec
    embedded = spec is not None and any(leaf.classes is None for leaf in spec.leaves)
    assert ("encoder" in limits) == (embedded or isinstance(case.data.space, Latents))
    assert ("own code" in limits) == own
    if own:
        with pytest.raises(ValueError, match=r"model="):
            ensdiff.load(tmp_path / "run")


def test_chunks_do_not_change_samples_or_counterfactuals(case, params, samples):
    options: Any = {} if case.guidance is None else {"guidance": case.guidance}
    one = ensdiff.sample(params, 0, 3, steps=3, sampler=samples.config, cond=case.cond, chunk=1, **options)
    np.testing.assert_allclose(one.images, samples.images, atol=2e-5)
    many, few = (ensdiff.counterfactuals(params, samples, [0, 3, 5], chunk=chunk) for chunk in (None, 2))
    np.testing.assert_allclose(few, many, atol=2e-5)
    last = ensdiff.counterfactuals(params, samples[2:], [0])[0]
    np.testing.assert_allclose(last[0], many[0, 2], atol=2e-5)


def test_jacobian_is_the_limit_of_central_differences(params, samples):
    J = ensdiff.jacobian(params, samples)
    start, h = samples.exogenous, 1e-2
    for k in range(4):
        ends = []
        for sign in (1, -1):
            weights = np.tile(np.asarray(samples.weights_K) + sign * h * np.eye(4)[k], (3, 1))
            x = denoise(params, samples.config, Exogenous(*start), weights)
            scale = 1 / np.float32(params.space.scale[0]) if isinstance(params.space, Latents) else np.float32(0.5)
            ends.append(np.asarray(x) * scale)
        difference = (ends[0] - ends[1]) / (2 * h)
        inside = np.ones(difference.shape, bool)
        if not isinstance(params.space, Latents):  # the Jacobian is 0 where the finished image is clipped
            inside = (np.asarray(samples.images) > 0.02) & (np.asarray(samples.images) < 0.98)
        assert inside.any()
        np.testing.assert_allclose(J[k][inside], difference[inside], atol=2e-3 * np.abs(difference).max() + 1e-5)


def test_the_loss_is_that_of_averaged_predictions(case, params, rng):
    """``w^T R w`` equals the mean over draws of ``|target - sum_k w_k F_k|^2``, for the conditions of the images."""
    from ensdiff.attribution.draws import draw_noise
    from ensdiff.typing import as_key

    config = ensdiff.LossConfig(draws=4, block=2)
    pictures = np.asarray(case.data.images[:3])
    R = loss_matrix(params, pictures, 5, config, cond=case.cond)
    key = as_key(5)
    t_D = np.concatenate([config.draw_levels(params.schedule, key, j) for j in range(2)])
    eps = draw_noise(jax.random.fold_in(key, 2**31 - 1), jnp.arange(4), params.image_shape)
    w = rng.dirichlet(np.ones(4))
    x0 = np.asarray(params.space.to_model(jnp.asarray(pictures)))
    direct = np.zeros(3)
    for b in range(3):
        cond = None if case.cond is None else jax.tree.map(lambda rows, b=b: rows[b], case.cond)
        clean = jnp.asarray(np.stack([x0[b]] * 4))
        noisy = add_noise(params.schedule, clean, t_D, eps)
        predicted = np.asarray(ensdiff.predict(params, noisy, t_D, cond), np.float64)
        mixed = np.tensordot(w, predicted, 1)
        direct[b] = np.square(np.asarray(target(params.schedule, clean, eps, t_D)) - mixed).sum() / 4
    np.testing.assert_allclose(R.loss([w])[:, 0], direct, rtol=2e-4)


def test_all_methods_find_the_same_members(case, params, samples):
    """Exact, differential and loss rank without error; the sample's own conditions are used by the loss."""
    for method in ("exact", "differential", "loss"):
        options: Any = {"loss": ensdiff.LossConfig(draws=4, block=2)} if method == "loss" else {}
        att = ensdiff.attribute(params, samples, method, top=6, **options)
        assert sorted(att.units[0]) == list(range(6))
        assert np.isfinite(att.influence).all()
    if case.cond is not None:
        own, none = (
            ensdiff.attribute(params, np.asarray(samples.images), "loss", top=6, cond=cond, loss=options["loss"])
            for cond in (case.cond, None)
        )
        np.testing.assert_allclose(own.influence, att.influence, rtol=1e-4, atol=1e-5)
        assert not np.allclose(none.influence, att.influence, rtol=1e-3)


def test_guidance_is_linear_and_its_ends_are_the_two_predictions(case, params):
    if case.cond is None:
        with pytest.raises(ValueError, match="without conditions"):
            ensdiff.sample(params, 0, 3, steps=1, cond=1)
        with pytest.raises(ValueError, match="unconditional"):
            ensdiff.sample(params, 0, 3, steps=1, guidance=2.0)
        return
    only = [{"sampler": "euler", "clip": False, "steps": 1}]  # after one step, the state is affine in the prediction
    told, none, half, plain = (
        np.asarray(ensdiff.sample(params, 0, 3, cond=cond, **options, **only[0]).images)
        for cond, options in (
            (case.cond, {"guidance": 1.0}), (case.cond, {"guidance": 0.0}), (case.cond, {"guidance": 0.5}), (None, {}),
        )
    )  # fmt: skip
    np.testing.assert_array_equal(none, plain)
    assert not np.allclose(told, none)
    inside = (half > 0) & (half < 1) if not isinstance(params.space, Latents) else np.ones(half.shape, bool)
    inside &= np.isclose(told, np.clip(told, 1e-3, 1 - 1e-3)) | isinstance(params.space, Latents)
    inside &= np.isclose(none, np.clip(none, 1e-3, 1 - 1e-3)) | isinstance(params.space, Latents)
    np.testing.assert_allclose(half[inside], ((told + none) / 2)[inside], atol=1e-4)


def test_a_condition_that_is_always_dropped_changes_nothing(case):
    """Of the classes' embeddings, only the null row is trained, and it is a part of the bias beside it."""
    if case.data.condition is None:
        return
    other = dataclasses.replace(case.data, condition=jax.tree.map(lambda rows: rows[::-1].copy(), case.data.condition))
    nothing = dataclasses.replace(case.data, condition=case.data.condition_spec.null(case.data.items))
    one, two, nulls = (
        ensdiff.train(data, CODE, case.model, schedule=case.schedule, condition_dropout=dropout, **FIELDS)
        for data, dropout in ((case.data, 1.0), (other, 1.0), (nothing, 0.1))
    )
    assert [bits(one.params, k) for k in range(4)] == [bits(two.params, k) for k in range(4)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one.params, nulls.params)
    if not isinstance(case.model, ensdiff.UNetConfig) or case.model.classes is None:
        return
    table_KRD = one.params["condition"]["table"]
    first = init_params(case.model, case.data.shape, 4, jax.random.fold_in(jax.random.key(0), 0), None, one.condition)
    moved = np.asarray(table_KRD != first["condition"]["table"]).any((0, 2))
    assert moved.tolist() == [False, False, False, True]
    plain = {name: array for name, array in one.params.items() if name != "condition"}
    plain["time2"] = {**plain["time2"], "bias": plain["time2"]["bias"] + table_KRD[:, -1]}
    model = dataclasses.replace(case.model, classes=None)
    unconditional = dataclasses.replace(one, params=plain, model=model, condition=None)
    x = jax.random.normal(jax.random.key(1), (3, *one.image_shape))
    told, none, expected = (
        np.asarray(ensdiff.predict(params, x, np.array([0, 7, 19]), cond))
        for params, cond in ((one, [0, 1, 2]), (one, None), (unconditional, None))
    )
    np.testing.assert_allclose(none, expected, atol=1e-5)
    assert np.abs(told - expected).max() > 1e-3


def masked(params, x_BHWC, t_B, cond, key_B):
    """A network of one's own that adds nothing for the null row, and so is an unconditional one without a condition."""
    if cond is not None:
        kind_B, more = cond
        told_B = params["table"][kind_B] + more["size"].sum(-1)
        x_BHWC = x_BHWC + jnp.where(kind_B < 3, told_B, 0.0)[:, None, None, None]
    return affine(params, x_BHWC, t_B, None, key_B)


def test_members_without_their_conditions_are_unconditional_members():
    """To float rounding, because they are two compiled programs; what belongs to conditions keeps its bits."""
    model = functions(lambda key: {**start(key), "table": jax.random.normal(key, (4,))}, masked)
    pixels = ensdiff.data.arrays(blobs())
    told = pixels.with_condition([np.arange(6) % 3, {"size": np.ones((6, 2))}], classes=3)
    never, always = (
        ensdiff.train(data, CODE, model, schedule=SHORT, condition_dropout=1.0, **FIELDS) for data in (pixels, told)
    )
    for name, array in never.params.items():
        np.testing.assert_allclose(always.params[name], array, atol=1e-6)
    first = init_params(model, told.shape, 4, jax.random.fold_in(jax.random.key(0), 0), None, told.condition_spec)
    np.testing.assert_array_equal(always.params["table"], first["table"])
    assert np.abs(always.params["scale"] - first["scale"]).min() > 1e-4
    x, t_B = jax.random.normal(jax.random.key(1), (3, 8, 8, 1)), np.array([0, 7, 19])
    plain, none, some = (
        np.asarray(ensdiff.predict(params, x, t_B, cond))
        for params, cond in ((never, None), (always, None), (always, (1, {"size": [1, 2]})))
    )
    np.testing.assert_allclose(none, plain, atol=1e-5)
    assert np.abs(some - plain).max() > 1e-3
