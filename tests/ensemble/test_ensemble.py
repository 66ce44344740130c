"""The stacked pytree, its mesh, and predictions of all members against those of single members."""

import dataclasses
import importlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh

import ensdiff
from ensdiff.ensemble.compiling import jit_once
from ensdiff.ensemble.digest import _stack, _sums_on_devices, digest, stacked_sums
from ensdiff.ensemble.ensemble import member_weights
from ensdiff.ensemble.members import init_params, sum_over_micro_batches
from ensdiff.ensemble.memory import CACHED, count_micro_batches
from ensdiff.ensemble.mesh import make_mesh, on_mesh
from ensdiff.ensemble.tracing import activation_bytes
from ensdiff.models.space import Latents, Pixels
from experiments import building
from experiments.coding import build_code
from tests.helpers import CODE, TINY


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_a_sum_over_micro_batches_is_that_over_the_batch(parts):
    x, y = jnp.arange(12.0).reshape(6, 2), jnp.arange(6.0)
    total, weighted = sum_over_micro_batches(lambda x, y: (x.sum(0), (x * y[:, None]).sum()), parts, x, y)
    np.testing.assert_array_equal(total, x.sum(0))
    assert weighted == (x * y[:, None]).sum()


@given(st.integers(1, 40), st.integers(1, 64), st.sampled_from([2, 8, 32]))
def test_pieces_are_equal_and_stay_in_the_cache_where_they_can(batch, side, channels):
    model = ensdiff.UNetConfig(channels=channels, norm_groups=2)
    parts = count_micro_batches(model, (side, side, 1), batch, make_mesh(1, devices=jax.devices()[:1]))
    image = side * side * channels * 4
    assert batch % parts == 0
    assert parts == batch or batch // parts * image <= CACHED["cpu"]
    assert parts == 1 or any(batch // n * image > CACHED["cpu"] for n in range(1, parts) if batch % n == 0)
    assert count_micro_batches(model, (side, side, 1), batch, AbstractMesh((1, 1), ("member", "data"))) == 1


def test_predictions_are_the_members_own(deep):
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    t = np.array([0, 7, 19])
    eps_KBHWC = ensdiff.predict(deep, x, t)
    apply = jax.jit(ensdiff.UNet(deep.model).apply)
    for k in range(4):
        member = jax.tree.map(lambda a, k=k: a[k], deep.params)
        np.testing.assert_allclose(apply({"params": member}, x, t), eps_KBHWC[k], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ensdiff.predict(deep, x, 7)[:, 1], eps_KBHWC[:, 1], rtol=1e-3, atol=1e-4)


def test_an_ensemble_is_a_pytree_of_stacked_arrays(tiny):
    leaves = jax.tree.leaves(tiny)
    assert leaves
    assert all(leaf.shape[0] == 4 for leaf in leaves)
    doubled = jax.tree.map(lambda a: 2 * a, tiny)
    assert doubled.code == CODE
    assert "4 members, 6 units" in repr(doubled)
    assert "Ensemble" in repr(jax.tree.map(lambda a: None, tiny))


def sums_by_loop(leaf):
    """Compute the sums of `stacked_sums` in Python integers, one member and one word at a time."""

    def mix(x):
        x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
        x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
        return x ^ x >> 16

    out = []
    for entry in leaf:
        kind = f"u{min(4, leaf.itemsize)}"
        words = np.frombuffer(entry.tobytes(), kind).tolist()
        out.append([
            sum(mix(word ^ mix((i + lane) % 2**32)) for i, word in enumerate(words)) % 2**32
            for lane in (0x9E3779B9, 0x7F4A7C15)
        ])  # fmt: skip
    return out


def test_sums_of_parameters_are_the_same_everywhere(rng, monkeypatch):
    """The sums agree on host, devices, shards and blocks, and detect changes that sums with odd weights would miss."""
    monkeypatch.setattr("ensdiff.ensemble.digest._BLOCK", 20)
    normal = rng.normal(size=(4, 3, 5))
    kinds = [np.float32, np.float16, jnp.bfloat16, np.int32, np.uint8, bool]
    leaves = [np.asarray(normal > 0) if kind is bool else (9 * normal).astype(kind) for kind in kinds]
    expected = np.array([sums_by_loop(leaf) for leaf in leaves]).swapaxes(0, 1)
    np.testing.assert_array_equal(stacked_sums(leaves), expected)
    for devices in (1, 2, 4):
        placed = on_mesh(leaves, make_mesh(4, devices=jax.devices()[:devices]))
        np.testing.assert_array_equal(stacked_sums(placed), expected)
        np.testing.assert_array_equal(_stack([_sums_on_devices(leaf) for leaf in placed]), expected)
    across = jax.sharding.NamedSharding(jax.make_mesh((3,), ("x",)), jax.sharding.PartitionSpec(None, "x"))
    np.testing.assert_array_equal(stacked_sums([jax.device_put(leaves[0], across)])[:, 0], expected[:, 0])
    np.testing.assert_array_equal(stacked_sums([normal])[:, 0], sums_by_loop(normal))  # float64 exists only on the host
    flipped = leaves[0].copy()
    flipped[1, 0, :2] *= -1
    swapped = leaves[0][:, :, ::-1]
    for other in (flipped, swapped):
        assert (stacked_sums([other])[1] != expected[1, :1]).all()
    np.testing.assert_array_equal(stacked_sums([flipped])[[0, 2, 3], 0], expected[[0, 2, 3], 0])


def test_a_fingerprint_is_of_what_decides_a_sample(tiny):
    def moved(**changes):
        return dataclasses.replace(tiny, **changes).fingerprint

    leaves, tree = jax.tree.flatten(tiny.params)
    one_bit = np.asarray(leaves[-1]).copy()
    one_bit.view(np.uint32).reshape(-1)[-1] ^= 1
    same = {
        moved(params=on_mesh(tiny.params, make_mesh(4, devices=jax.devices()[:2]))),
        moved(params=jax.tree.map(np.asarray, tiny.params)),
        moved(code=ensdiff.Code.balanced(4, 3)),  # a code with other units
        moved(model=dataclasses.replace(tiny.model, conv="map", remat=True, dropout=0.5, multipliers=(1.0,))),
        moved(model=dataclasses.replace(tiny.model, conv="loop", stack=2, precision="highest", attention="batch")),
        moved(space=Pixels(np.float64(-1), 1.0)),
        pickle.loads(pickle.dumps(tiny)).fingerprint,
    }
    assert same == {tiny.fingerprint}
    others = [
        moved(params=tree.unflatten([*leaves[:-1], one_bit])),
        moved(params=jax.tree.map(lambda a: np.asarray(a)[[1, 0, 2, 3]], tiny.params)),
        moved(params={"net": tiny.params}),
        moved(schedule=ensdiff.Schedule(timesteps=20)),
        moved(model=dataclasses.replace(tiny.model, time_layout="cos_sin")),
        moved(model=dataclasses.replace(tiny.model, compute_dtype="bfloat16")),
        moved(space=Pixels(0.0, 1.0)),
        moved(space=Latents()),
        moved(schedule=ensdiff.Schedule(prediction="v")),
    ]
    assert len({tiny.fingerprint, *others}) == 1 + len(others)


def test_digests_tell_stored_codes_apart(tiny):
    """Unfinished work is found by a digest of the ensemble, so other matrices or other groups give other digests."""
    codes = [ensdiff.Code.from_matrix(CODE.matrix()[order]) for order in (range(6), [1, 0, 2, 3, 4, 5])]
    groups = [np.arange(12) % 3, np.arange(12) // 4]
    codes += [ensdiff.Code.hierarchical(6, of_unit, group_weight=4, weight=2) for of_unit in groups]
    assert len({digest(dataclasses.replace(tiny, code=code)) for code in codes}) == 4


def test_a_fingerprint_follows_arrays_that_change(tiny):
    """JAX arrays cannot change, so their fingerprint is computed once; NumPy arrays can."""
    params = dataclasses.replace(tiny, params={"a": np.ones((4, 3), np.float32)})
    before = params.fingerprint
    params.params["a"][2, 1] = 2
    assert params.fingerprint != before


@pytest.mark.parametrize(("given", "expected"), [
    ([True, False, True, True], [1 / 3, 0, 1 / 3, 1 / 3]),
    ([1, 0, 0, 1], [0.5, 0, 0, 0.5]),
    (np.uint8([[1, 1, 1, 1], [0, 0, 1, 0]]), [[0.25] * 4, [0, 0, 1, 0]]),
    ([0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]),
    ([1.5, -0.5, 0, 0], [1.5, -0.5, 0, 0]),
    (np.float32([0.1, 0.2, 0.3, 0.4]), np.float32([0.1, 0.2, 0.3, 0.4])),
])  # fmt: skip
def test_weights_are_averages(given, expected):
    np.testing.assert_array_equal(member_weights(given, 4), expected)


@pytest.mark.parametrize(("given", "message"), [
    ([1.0, 1.0, 1.0, 0.0], r"weights sum to 3: .* give weights / weights.sum\(-1, keepdims=True\), or a boolean mask"),
    ([0.33, 0.33, 0.33, 0], "sum to 0.99"),
    ([2, 1, 0, 0], "sum to 3"),
    ([0.0, 0.0, 0.0, 0.0], "sum to 0"),
    ([False] * 4, "keeps none of the 4 members"),
    ([[1, 0, 0, 0], [0, 0, 0, 0]], "keeps none"),
    ([1.0, 0.0], r"\(2,\): expected 4 finite"),
    (["a", "b", "c", "d"], "4 finite numbers"),
    (1.0, r"\(\): expected 4"),
])  # fmt: skip
def test_weights_that_do_not_average(given, message):
    with pytest.raises(ValueError, match=message):
        member_weights(given, 4)


def test_members_start_from_their_own_keys():
    """Member k's initial parameters do not depend on the number of members."""
    few, many = (init_params(TINY, (8, 8, 1), members, 0) for members in (2, 4))
    for a, b in zip(jax.tree.leaves(few), jax.tree.leaves(many), strict=True):
        np.testing.assert_array_equal(a, b[:2])
    kernel = many["head"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01


@given(st.integers(1, 40), st.integers(1, 4), st.one_of(st.none(), st.integers(1, 12)))
def test_mesh_leaves_as_few_devices_idle_as_divisors_allow(members, devices, batch):
    shape = make_mesh(members, batch, jax.devices()[:devices]).shape
    assert members % shape["member"] == 0
    assert batch is None or batch % shape["data"] == 0
    for m in (m for m in range(1, devices + 1) if members % m == 0):
        for d in (d for d in range(1, devices // m + 1) if batch is None or batch % d == 0):
            assert (m * d, m) <= (shape["member"] * shape["data"], shape["member"])


def test_image_ranges():
    images = jnp.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(Pixels().to_model(images), [-1, -0.5, 1])
    np.testing.assert_allclose(Pixels().to_model(jnp.array([0, 255], jnp.uint8)), [-1, 1])
    np.testing.assert_allclose(Pixels().to_images(jnp.array([-3.0, 0.0, 1.0, 2.0])), [0, 0.5, 1, 1])


def test_activation_bytes_grow_with_the_image():
    plain = dataclasses.replace(TINY, middle_attention=False)
    small, large = (activation_bytes(plain, (side, side, 1)) for side in (8, 16))
    assert 3.5 < large / small < 4.5  # everything but the time embedding grows
    assert small > 8 * 8 * 4 * 4 * 10  # at least the convolutions' outputs


@pytest.mark.parametrize("name", ["digits", "quickstart", "mnist5k", "fashion_mnist", "cifar10_paper"])
def test_configs_build(name):
    config = importlib.import_module(f"experiments.configs.{name}").get_config()
    shape = (32, 32, 3) if name == "cifar10_paper" else (28, 28, 1)
    data = ensdiff.data.arrays(np.zeros((40, *shape), np.uint8), labels=np.arange(40) // 4)
    model, schedule, train = building.settings(config, data.shape[-1])
    assert model.image_channels == shape[-1]
    assert schedule.timesteps == 1000
    assert train.steps > 100
    code = build_code(building.section(config, "code"), data)
    assert code.members == config.code.members
    size = 8 if "digits" in config.run_dir or "quickstart" in config.run_dir else shape[0]
    model.check_image(size, size)


def test_draws_of_a_program_that_runs_once_are_those_of_full_optimisation(monkeypatch):
    """As users compile it: the tests' ``XLA_FLAGS`` would take precedence. They were parsed when JAX started."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)

    def draw(key):
        return jax.random.normal(key, (5, 77)), jax.vmap(TINY.init)(jax.random.split(key, 2))

    key = jax.random.key(3)
    full = jax.jit(draw, compiler_options={"xla_backend_optimization_level": 3})
    (noise, weights), (expected_noise, expected_weights) = jit_once(draw)(key), full(key)
    np.testing.assert_array_equal(noise, expected_noise)
    # with newer versions of JAX, what scales draws to weights is rounded in another order
    jax.tree.map(lambda got, expected: np.testing.assert_allclose(got, expected, rtol=5e-7), weights, expected_weights)
