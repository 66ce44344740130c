"""The precision of products and the dtypes of everything else, read from lowered programs and from jaxprs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensdiff
from ensdiff.ensemble.members import abstract_params, apply_member, over_members
from ensdiff.models.attention import attend, resolve_attention
from ensdiff.models.blocks import add
from ensdiff.models.conv import STACKED
from ensdiff.training.step import Batch, init_state, make_train_step
from tests.helpers import DEEP, SHORT

pytestmark = pytest.mark.slow

SHAPE = 8, 8, 1
MODEL = dataclasses.replace(DEEP, attention_levels=(0,))


def products(model, platform):
    """Return the lines of the lowered program of two members' gradients that are products."""
    params = abstract_params(model, SHAPE, 2)
    x, t = jax.ShapeDtypeStruct((3, *SHAPE), jnp.float32), jnp.zeros(3, jnp.int32)

    def gradient(params_K, x):
        loss = lambda params, x: jnp.square(ensdiff.UNet(model).apply({"params": params}, x, t)).sum()  # noqa: E731
        return over_members(model, lambda params: jax.grad(loss, (0, 1))(params, x), params_K)

    text = jax.jit(gradient).trace(params, x).lower(lowering_platforms=(platform,)).as_text()
    return [line for line in text.splitlines() if "stablehlo.convolution" in line or "stablehlo.dot" in line]


@pytest.mark.parametrize(
    ("conv", "platform"),
    [
        ("map", "cpu"),
        ("grouped", "cuda"),
        ("winograd", "cpu"),
        ("map", "tpu"),
        *((conv, "cuda") for conv in STACKED if conv != "grouped"),
    ],
)
def test_highest_precision_reaches_every_product(conv, platform):
    """In the forward pass and in all derivatives, in every form."""
    model = dataclasses.replace(MODEL, conv=conv, attention="batch", channels=8, norm_groups=2)
    highest = products(dataclasses.replace(model, precision="highest"), platform)
    assert len(highest) > 30
    assert [line for line in highest if line.count("HIGHEST") != 2] == []
    default = products(model, platform)
    merged = [line for line in default if "HIGHEST" in line]  # the taps of the upsampling kernel
    assert 0 < len(merged) < len(default) / 4


def equations(jaxpr):
    """Yield all equations of a jaxpr, also those inside of loops, calls and branches."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def train_step(model):
    config = ensdiff.TrainConfig(batch_size=4, ema=0.9)
    mesh = ensdiff.make_mesh(2, devices=jax.devices()[:2])
    mesh = jax.sharding.Mesh(mesh.devices.reshape(1, 2), ("member", "data"))  # so that gradients are summed over it
    state = jax.eval_shape(lambda: init_state(model, SHAPE, 2, config))
    batch = Batch(jax.ShapeDtypeStruct((2, 4, *SHAPE), jnp.uint8), jax.ShapeDtypeStruct((2, 4), jnp.float32))
    step = make_train_step(model, SHORT, config, mesh)
    return jax.make_jaxpr(step, return_shape=True)(state, batch, np.int32(0), np.uint32(0))


@pytest.mark.parametrize("order", ["batch", "image", "fused"])
def test_what_is_float32_in_a_bfloat16_step(order):
    """Sums (over pixels, images, members' shards and attention weights), exponentials and roots; state and losses."""
    model = dataclasses.replace(MODEL, compute_dtype="bfloat16", conv="map", attention=order)
    jaxpr, (state, metrics) = train_step(model)
    for leaf in jax.tree.leaves((state, metrics)):
        assert leaf.dtype in (jnp.float32, jnp.int32)
    found = list(equations(jaxpr.jaxpr))
    names = {equation.primitive.name for equation in found}
    assert {"reduce_sum", "exp", "rsqrt", "reduce_max", "conv2d", "dot_general"} <= names
    assert any(name.startswith("psum") for name in names)
    for equation in found:
        name = equation.primitive.name
        kinds = {str(a.aval.dtype) for a in equation.invars if jnp.issubdtype(a.aval.dtype, jnp.floating)}
        if name in ("exp", "sqrt", "rsqrt") or name.startswith("psum"):
            assert kinds == {"float32"}, equation
        if name in ("reduce_sum", "reduce_max") and equation.invars[0].aval.size > equation.outvars[0].aval.size:
            assert kinds <= {"float32"}, equation  # a sum over axes of size 1 is a reshape
        if name == "conv2d":
            assert kinds == {"bfloat16"}, equation
    dots = [equation for equation in found if equation.primitive.name == "dot_general"]
    assert sum(all(a.aval.dtype == jnp.bfloat16 for a in equation.invars) for equation in dots) > 30


def test_gradients_of_biases_are_float32_sums():
    """Steps of 4 are the smallest at 1,001 in bfloat16."""
    y = jnp.zeros((7, 11, 13, 2), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda b: add(y, b).astype(jnp.float32).sum()))(jnp.zeros(2))
    np.testing.assert_array_equal(gradient, [1001.0, 1001.0])
    np.testing.assert_array_equal(add(y, jnp.float32([1.001, -3]))[0, 0, 0], jnp.bfloat16([1.001, -3]))


def heads(rng, dtype, size=1.0, shape=(3, 2, 20, 8)):
    return [jnp.asarray(size * rng.normal(size=shape), dtype) for _ in "qkv"]


@pytest.mark.parametrize("order", ["batch", "image", "fused"])
def test_attention_weights_are_float32(rng, order):
    """Logits of up to 150 would be rounded by up to a half in bfloat16, and the weights changed by a factor.

    A CPU may leave out this rounding, so the dtypes of the products are read too.
    """
    q, k, v = heads(rng, jnp.bfloat16, 7.0)
    got = jax.jit(lambda *a: attend(*a, order))(q, k, v)
    assert got.dtype == jnp.bfloat16
    found = equations(jax.make_jaxpr(lambda *a: attend(*a, order))(q, k, v).jaxpr)
    products_of = [equation for equation in found if equation.primitive.name == "dot_general"]
    assert len(products_of) == 2
    assert products_of[0].outvars[0].aval.dtype == jnp.float32
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    logits = np.einsum("bnqd,bnkd->bnqk", q, k) / np.sqrt(8)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    expected = np.einsum("bnqk,bnkd->bnqd", weights / weights.sum(-1, keepdims=True), v)
    assert np.abs(logits).max() > 100
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=0.05, atol=0.3)


def test_fused_attention_equals_the_batch(rng):
    """Values and gradients."""
    q, k, v = heads(rng, jnp.float32)

    def both(order, precision):
        def f(*a):
            out = attend(*a, order, precision)
            return jnp.sum(out**2), out

        return jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(q, k, v)

    for precision in ("default", "highest"):
        found = both("fused", precision), both("batch", precision)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


@pytest.mark.parametrize(("platform", "dtype", "width", "kernel"), [
    ("gpu", "bfloat16", 8, "cudnn"), ("gpu", "bfloat16", 128, "cudnn"), ("gpu", "bfloat16", 256, None),
    ("gpu", "bfloat16", 4, None), ("gpu", "float32", 8, None), ("cpu", "bfloat16", 8, None),
])  # fmt: skip
def test_where_cudnn_serves(rng, monkeypatch, platform, dtype, width, kernel):
    taken = []

    def attention(q, k, v, implementation):
        taken.append((implementation, q.shape))
        return v

    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    attend(*heads(rng, dtype, shape=(3, 2, 20, width)), "fused")
    assert taken == [(kernel, (3, 20, 2, width))]


def test_predictions_never_use_a_kernel_without_forward_mode():
    for platform in ("cpu", "gpu", "tpu"):
        assert resolve_attention("auto", platform) in ("batch", "image")
    x, t = jnp.zeros((2, *SHAPE)), jnp.zeros(2, jnp.int32)
    params = jax.tree.map(lambda a: jnp.zeros(a.shape[1:]), abstract_params(MODEL, SHAPE, 1))

    def predicting(order):
        model = dataclasses.replace(MODEL, attention=order)
        return jax.jit(lambda params, x: apply_member(model, params, x, t)).lower(params, x).as_text()

    assert predicting("fused") == predicting("auto")
    training = dataclasses.replace(MODEL, attention="fused")
    text = jax.jit(lambda p, x: ensdiff.UNet(training).apply({"params": p}, x, t)).lower(params, x).as_text()
    assert text != predicting("auto")
