"""What is read from abstract evaluation, compared with counts by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import ensdiff
from ensdiff.ensemble.tracing import activation_bytes, count_flops

SHAPE = (4, 4, 2)


def init(key):
    return {"one": jnp.zeros((2, 8)), "two": jnp.zeros((8, 2))}


def apply(params, x_BHWC, t_B, cond, key_B):
    scale = (params["one"] @ params["two"])[:1, :1]  # of parameters alone: no activation of an image
    return jnp.tanh(x_BHWC @ params["one"]) @ params["two"] * scale.reshape(1, 1, 1, 1)


def test_activations_are_the_operands_and_results_of_products():
    model = ensdiff.models.functions(init, apply)
    per_pixel = 2 + 8 + 8 + 2  # into and out of the first product, and of the second
    per_pixel += 2 + 2  # the image and the prediction
    assert activation_bytes(model, SHAPE) == 4 * 16 * per_pixel
    assert activation_bytes(model, (8, 4, 2)) == 2 * 4 * 16 * per_pixel


def test_attention_keeps_its_weights():
    """Weights of attention count where they exist for all heads at once, and those of one head where it is alone."""
    base = ensdiff.UNetConfig(channels=8, norm_groups=4, multipliers=(1,), head_channels=4)
    found = {
        order: activation_bytes(dataclasses.replace(base, attention=order), (8, 8, 1)) for order in ("batch", "image")
    }
    weights = 64 * 64 * 4
    assert found["batch"] >= found["image"] + 2 * weights
    none = activation_bytes(dataclasses.replace(base, middle_attention=False), (8, 8, 1))
    assert none < found["image"] < none + 4 * weights


def test_flops_of_calls_loops_branches_and_gradients():
    a, b = jnp.zeros((3, 4)), jnp.zeros((4, 5))
    once = 2 * 3 * 4 * 5
    assert count_flops(lambda a, b: a @ b, a, b) == once
    assert count_flops(jax.jit(lambda a, b: jax.jit(jnp.matmul)(a, b)), a, b) == once
    assert count_flops(jax.grad(lambda a, b: (a @ b).sum(), (0, 1)), a, b) == 3 * once
    assert count_flops(lambda a, b: jax.lax.map(lambda _: a @ b, jnp.arange(7)), a, b) == 7 * once
    branches = (lambda a, b: (a @ b).sum(), lambda a, b: 0.0)
    assert count_flops(lambda a, b: jax.lax.cond(a[0, 0] > 0, *branches, a, b), a, b) == once


@pytest.mark.parametrize("stride", [1, 2])
def test_flops_of_convolutions_and_their_gradients(stride):
    from ensdiff.models.conv import conv2d

    x, kernel = jnp.zeros((2, 6, 6, 3)), jnp.zeros((3, 3, 3, 5))
    once = 2 * 2 * (6 // stride) ** 2 * 9 * 3 * 5
    plain = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    own = lambda x, k: conv2d(x, k, stride=stride, padding=1, strategy="map")  # noqa: E731
    assert count_flops(plain, x, kernel) == count_flops(own, x, kernel) == once
    assert count_flops(jax.grad(lambda x, k: own(x, k).sum(), (0, 1)), x, kernel) == 3 * once
