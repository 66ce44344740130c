"""The stacked convolution against a NumPy loop, in value, reverse and forward mode, for each strategy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensdiff.models import winograd
from ensdiff.models.conv import conv2d, resolve
from ensdiff.planning.lowering import read_lowered

STRATEGIES = ["map", "grouped", "loop", "matmul"]  # and "winograd", which is "map" but for wide layers, below


def conv_loop(x, kernel, stride, padding):
    """Cross-correlation, one output pixel after another, float64."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    h, w = kernel.shape[:2]
    rows, columns = (x.shape[1] - h) // stride + 1, (x.shape[2] - w) // stride + 1
    out = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            window = x[:, i * stride : i * stride + h, j * stride : j * stride + w]
            out[:, i, j] = np.tensordot(window, kernel, axes=([1, 2, 3], [0, 1, 2]))
    return out


shapes = st.tuples(
    st.integers(1, 3),  # K
    st.integers(1, 3),  # B
    st.integers(3, 7),  # H
    st.integers(3, 7),  # W
    st.integers(1, 4),  # C
    st.integers(1, 4),  # D
    st.sampled_from([(1, 1, 0), (3, 1, 1), (3, 2, 1), (1, 2, 0), (5, 1, 2)]),  # size, stride, padding
)


@given(shapes, st.sampled_from(STRATEGIES), st.sampled_from(["both", "kernel", "input"]))
def test_stacked_equals_loop(shape, strategy, stacked):
    K, B, H, W, C, D, (size, stride, padding) = shape
    rng = np.random.default_rng(sum(shape[:6]))
    x = rng.normal(size=(K, B, H, W, C)).astype(np.float32)
    kernel = rng.normal(size=(K, size, size, C, D)).astype(np.float32)
    axes = (0 if stacked != "kernel" else None, 0 if stacked != "input" else None)
    if axes[0] is None:
        x = x[0]
    if axes[1] is None:
        kernel = kernel[0]

    def f(x, kernel):
        return conv2d(x, kernel, stride=stride, padding=padding, strategy=strategy)

    got = jax.jit(jax.vmap(f, in_axes=axes))(x, kernel)
    for k in range(K):
        one_x, one_kernel = (a[k] if axis == 0 else a for a, axis in zip((x, kernel), axes, strict=True))
        np.testing.assert_allclose(got[k], conv_loop(one_x, one_kernel, stride, padding), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stride", [1, 2])
def test_both_modes_of_differentiation(strategy, stride, rng):
    K, B, H, C, D = 3, 2, 6, 3, 4
    x = jnp.asarray(rng.normal(size=(K, B, H, H, C)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(K, 3, 3, C, D)), jnp.float32)

    def stacked(x, kernel):
        return jnp.tanh(jax.vmap(lambda x, k: conv2d(x, k, stride=stride, strategy=strategy))(x, kernel))

    def loop(x, kernel):
        plain = [
            jax.lax.conv_general_dilated(
                x[k],
                kernel[k],
                (stride, stride),
                ((1, 1), (1, 1)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            for k in range(K)
        ]
        return jnp.tanh(jnp.stack(plain))

    tangents = jnp.asarray(rng.normal(size=(5, *x.shape)), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def both(f, x, kernel, tangents):
        push = jax.vmap(lambda d: jax.jvp(lambda x: f(x, kernel), (x,), (d,))[1])
        return *jax.grad(lambda *a: jnp.sum(f(*a) ** 2), argnums=(0, 1))(x, kernel), push(tangents)

    found, expected = (both(f, x, kernel, tangents) for f in (stacked, loop))
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@settings(max_examples=12)  # each compiles a program
@given(st.tuples(*[st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4)]))
def test_winograd_equals_loop(shape):
    B, H, W, C, D = shape
    rng = np.random.default_rng(sum(shape))
    x = rng.normal(size=(B, H, W, C)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, C, D)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(winograd.output)(x, kernel), conv_loop(x, kernel, 1, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("images", [0, 1, 7])
def test_winograd_of_any_number_of_images(rng, monkeypatch, images):
    """Parts of three at most, the last one filled up."""
    x = rng.normal(size=(images, 4, 4, 2)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 2, 3)).astype(np.float32)
    monkeypatch.setattr(winograd, "CACHED", 3 * 4 * 4 * 2 * 4)
    got = jax.jit(lambda x: winograd.output(x, kernel))(x)
    np.testing.assert_allclose(got, conv_loop(x, kernel, 1, 1), rtol=1e-5, atol=1e-5)


def test_winograd_errs_by_the_largest_input_of_a_window(rng):
    """As its text says, against float64, with neighbours of very different sizes."""
    x = (rng.normal(size=(2, 9, 8, 16)) * 10.0 ** rng.integers(-4, 5, (2, 9, 8, 1))).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 16, 4)).astype(np.float32)
    around = np.pad(np.abs(x).max(-1), ((0, 0), (2, 2), (2, 2)))  # any 4x4 window that holds the pixel
    largest = np.max([around[:, i : i + 9, j : j + 8] for i in range(5) for j in range(5)], axis=0)
    bound = largest[..., None] * np.abs(kernel).sum((0, 1, 2)) * np.finfo(np.float32).eps
    error = np.abs(jax.jit(winograd.output)(x, kernel) - conv_loop(x, kernel, 1, 1))
    assert (error <= 4 * bound).all()
    plain = np.abs(conv2d(x, kernel, strategy="map") - conv_loop(x, kernel, 1, 1))
    assert (error > 10 * plain + 1e-30).any()


@pytest.mark.parametrize(("x", "kernel"), [("float32", "bfloat16"), ("int32", "int32")])
def test_winograd_refuses_types(x, kernel):
    with pytest.raises(TypeError, match=f"{x} and a kernel of {kernel}: expected one floating-point dtype"):
        winograd.output(jnp.ones((1, 4, 4, 1), x), jnp.ones((3, 3, 1, 1), kernel))


@pytest.mark.parametrize(("changes", "filtered"), [
    ({}, True), ({"channels": 39}, False), ({"width": 8}, False), ({"dtype": "bfloat16"}, False),
    ({"stride": 2}, False), ({"padding": 0}, False), ({"size": 5}, False),
])  # fmt: skip
def test_which_layers_are_filtered(changes, filtered):
    f = dict(channels=40, width=14, dtype="float32", stride=1, padding=1, size=3) | changes
    x = jnp.zeros((2, 14, f["width"], 40), f["dtype"])
    kernel = jnp.zeros((f["size"], f["size"], 40, f["channels"]), f["dtype"])

    def layer(x, kernel):
        return conv2d(x, kernel, stride=f["stride"], padding=f["padding"], strategy="winograd")

    assert read_lowered(jax.jit(layer).lower(x, kernel)).convolutions == (0 if filtered else 1)


def test_winograd_keeps_the_type_check_of_convolutions():
    with pytest.raises(TypeError):
        jax.jit(functools.partial(conv2d, strategy="winograd"))(
            jnp.zeros((2, 14, 14, 64)), jnp.zeros((3, 3, 64, 64), "bfloat16")
        )


def wide(x, kernel, strategy):
    return jnp.tanh(jax.vmap(lambda x, k: conv2d(x, k, strategy=strategy))(x, kernel))


def test_wide_layers_by_winograd(rng, monkeypatch):
    """Value and both modes of differentiation; in parts that hold a third of the images too."""
    x = jnp.asarray(rng.normal(size=(2, 3, 15, 14, 64)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(2, 3, 3, 64, 33)) / 24, jnp.float32)
    tangents = jnp.asarray(rng.normal(size=(4, *x.shape)), jnp.float32)

    @functools.partial(jax.jit, static_argnums=(2, 3))
    def everything(x, kernel, strategy, part):  # the part is in the key of the compiled program alone
        def f(x, kernel):
            return wide(x, kernel, strategy)

        push = jax.vmap(lambda d: jax.jvp(lambda x: f(x, kernel), (x,), (d,))[1])
        return f(x, kernel), push(tangents), jax.grad(lambda *a: jnp.sum(f(*a) ** 2), argnums=(0, 1))(x, kernel)

    expected = everything(x, kernel, "map", 0)
    for part in (winograd.CACHED, x[0, 0].nbytes):
        monkeypatch.setattr(winograd, "CACHED", part)
        got = everything(x, kernel, "winograd", part)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * float(np.abs(b).max()))


def test_winograd_takes_16_products_instead_of_36():
    """No convolution is left in the prediction and its input gradient, and their products are 4/9 as many."""
    x, kernel = jnp.zeros((2, 3, 14, 16, 32)), jnp.zeros((2, 3, 3, 32, 64))

    def count(function, strategy):
        return read_lowered(jax.jit(lambda x, kernel: function(x, kernel, strategy)).lower(x, kernel))

    def gradient(x, kernel, strategy):
        return jax.grad(lambda x: wide(x, kernel, strategy).sum())(x)

    for function in (wide, gradient):
        plain, less = count(function, "map"), count(function, "winograd")
        transforms = 2 * 2 * 16 * 9 * 32 * 64 * (2 if function is gradient else 1)  # of two kernels
        assert less.convolutions == 0
        assert (less.flops - transforms) * 9 == plain.flops * 4


def test_auto_takes_winograd_for_predictions_alone():
    assert resolve("auto", "cpu", predicting=True) == "winograd"
    assert resolve("auto", "cpu") == "map"
    assert resolve("auto", "tpu", predicting=True) == resolve("auto", "gpu", predicting=True) == "map"
    assert resolve("loop", "cpu", predicting=True) == "loop"


def grouped_convolutions(strategy: str) -> int:
    K = 5
    x, kernel = jnp.zeros((K, 2, 6, 6, 3)), jnp.zeros((K, 3, 3, 3, 4))

    def loss(x, kernel):
        return jnp.sum(jax.vmap(lambda x, k: conv2d(x, k, strategy=strategy))(x, kernel) ** 2)

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, kernel).as_text()
    return text.count(f"feature_group_count = {K}") + text.count(f"batch_group_count = {K}")


def test_only_grouped_makes_grouped_convolutions():
    assert grouped_convolutions("grouped") > 0
    assert grouped_convolutions("loop") == 0
    assert grouped_convolutions("matmul") == 0


def test_unknown_strategy_lists_the_known_ones():
    with pytest.raises(ValueError, match="'auto', 'measure', 'map', 'winograd', 'grouped', 'matmul', 'loop'"):
        resolve("fast")
    assert resolve("auto") == resolve("measure") in STRATEGIES
