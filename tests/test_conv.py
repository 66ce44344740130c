"""The stacked convolution against a NumPy loop, in value, reverse and forward mode, for each strategy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensdiff.conv import conv2d, resolve

STRATEGIES = ["map", "grouped", "loop", "matmul"]


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

    got = jax.vmap(f, in_axes=axes)(x, kernel)
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

    grads = jax.grad(lambda *a: jnp.sum(stacked(*a) ** 2), argnums=(0, 1))(x, kernel)
    expected = jax.grad(lambda *a: jnp.sum(loop(*a) ** 2), argnums=(0, 1))(x, kernel)
    for got, want in zip(grads, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)

    tangents = jnp.asarray(rng.normal(size=(5, *x.shape)), jnp.float32)
    push = jax.vmap(lambda d: jax.jvp(lambda x: stacked(x, kernel), (x,), (d,))[1])
    pull = jax.vmap(lambda d: jax.jvp(lambda x: loop(x, kernel), (x,), (d,))[1])
    np.testing.assert_allclose(push(tangents), pull(tangents), rtol=1e-4, atol=1e-4)


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
    with pytest.raises(ValueError, match="'auto', 'map', 'grouped', 'loop', 'matmul'"):
        resolve("fast")
    assert resolve("auto") in STRATEGIES
