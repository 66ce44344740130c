"""Transformers with cross-attention to tokens: against NumPy, what they depend on, and their settings."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensdiff import models
from ensdiff.models.blocks import LayerNorm
from ensdiff.models.condition import ConditionSpec, Leaf
from ensdiff.models.denoiser import check_inputs
from ensdiff.models.transformer import FIELDS, HeadedAttention, Transformer
from ensdiff.models.unet import UNetConfig
from tests.helpers import TINY, random_ensemble
from tests.models.test_unet import noisy_params

TOKENS = dataclasses.replace(
    TINY, channels=8, norm_groups=4, attention_levels=(0,), attention_levels_up=(), middle_attention=False,
    context_width=5, context_length=3, heads=(2,),
)  # fmt: skip
DEEP = dataclasses.replace(TOKENS, multipliers=(1, 2), attention_levels=(1,), attention_levels_up=None)
GELU = np.vectorize(lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))))


def attention_of(p, h, tokens, heads):
    """Attention with an explicit loop over heads, for one image."""
    q, k, v = h @ p["query"]["kernel"], tokens @ p["key"]["kernel"], tokens @ p["value"]["kernel"]
    found = []
    for cut in np.split(np.arange(h.shape[1]), heads):
        logits = q[:, cut] @ k[:, cut].T / np.sqrt(len(cut))
        weights = np.exp(logits - logits.max(1, keepdims=True))
        found.append(weights / weights.sum(1, keepdims=True) @ v[:, cut])
    return np.hstack(found) @ p["out"]["kernel"] + p["out"]["bias"]


def normal(p, h, axis, epsilon):
    h = (h - h.mean(axis, keepdims=True)) / np.sqrt(h.var(axis, keepdims=True) + epsilon)
    return h.reshape(-1, len(p["scale"])) * p["scale"] + p["bias"]


def twin(p, x, tokens, heads, blocks):
    """The whole transformer in float64, for one image (H, W, C)."""
    H, W, C = x.shape
    project = lambda name, h: h @ p[name]["kernel"].reshape(C, C) + p[name]["bias"]  # noqa: E731
    groups = x.reshape(H * W, 4, C // 4)
    h = project("proj_in", normal(p["norm"], groups, (0, 2), 1e-6))
    for i in range(blocks):
        b = p[f"block{i}"]
        y = normal(b["norm1"], h, 1, 1e-5)
        h = h + attention_of(b["self"], y, y, heads)
        h = h + attention_of(b["cross"], normal(b["norm2"], h, 1, 1e-5), tokens, heads)
        values, gates = np.split(normal(b["norm3"], h, 1, 1e-5) @ b["mlp1"]["kernel"] + b["mlp1"]["bias"], 2, axis=1)
        h = h + (values * GELU(gates)) @ b["mlp2"]["kernel"] + b["mlp2"]["bias"]
    return x + project("proj_out", h).reshape(H, W, C)


@pytest.mark.parametrize(("linear", "order"), [(False, "image"), (True, "batch")])
def test_a_transformer_in_float64(rng, linear, order):
    x = (0.03 * rng.normal(size=(2, 2, 3, 8))).astype(np.float32)  # small, so that the epsilons matter
    tokens = rng.normal(size=(2, 4, 5)).astype(np.float32)
    module = Transformer(2, 2, linear, dataclasses.replace(TOKENS, attention=order))
    params = jax.tree.map(lambda a: 2 * a, noisy_params(module, jnp.asarray(x), jnp.asarray(tokens)))
    assert params["proj_in"]["kernel"].ndim == (2 if linear else 4)
    got = jax.jit(module.apply)({"params": params}, x, tokens)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    want = [twin(p, *pair, heads=2, blocks=2) for pair in zip(x.astype(float), tokens.astype(float), strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)


def test_layer_norm_in_float64(rng):
    x, p = (
        (0.003 * rng.normal(size=(3, 8))).astype(np.float32),
        {"scale": rng.normal(size=8), "bias": rng.normal(size=8)},
    )
    got = jax.jit(LayerNorm(TOKENS).apply)({"params": jax.tree.map(jnp.float32, p)}, x)
    np.testing.assert_allclose(got, normal(p, x.astype(float), 1, 1e-5), rtol=1e-5, atol=1e-5)


def test_queries_keys_and_values_have_no_biases():
    h = jnp.zeros((1, 6, 8))
    shapes = jax.eval_shape(HeadedAttention(2, TOKENS).init, jax.random.key(0), h, jnp.zeros((1, 3, 5)))["params"]
    assert {name for name, part in shapes.items() if "bias" in part} == {"out"}
    assert shapes["key"]["kernel"].shape == (5, 8)


@pytest.fixture(scope="module")
def network():
    """Return the function of a network with tokens, its parameters, images and times."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(3, 4, 4, 1)).astype(np.float32), np.array([3.0, 500.0, 999.0], np.float32)
    shapes = jax.eval_shape(TOKENS.init, jax.random.key(0))
    params = jax.tree.map(lambda a: (0.3 * rng.normal(size=a.shape)).astype(np.float32), shapes)
    return jax.jit(TOKENS.apply), params, x, t


def test_each_image_attends_to_its_own_tokens(network, rng):
    apply, params, x, t = network
    tokens = rng.normal(size=(3, 3, 5)).astype(np.float32)
    found = apply(params, x, t, tokens)
    other = tokens.copy()
    other[1, 2] += 1.0
    changed = np.abs(apply(params, x, t, other) - found).max((1, 2, 3))
    assert changed[1] > 1e-3
    np.testing.assert_allclose(changed[[0, 2]], 0, atol=1e-6)
    np.testing.assert_allclose(apply(params, x, t, tokens[:, ::-1]), found, atol=1e-5)  # tokens are a set
    np.testing.assert_array_equal(apply(params, x, t), apply(params, x, t, np.zeros_like(tokens)))


def test_every_parameter_matters(network, rng):
    _, params, x, t = network
    tokens = rng.normal(size=(3, 3, 5)).astype(np.float32)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(TOKENS.apply(p, x, t, tokens) ** 2)))(params)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_transformers_start_as_the_identity(rng):
    x, tokens = rng.normal(size=(1, 2, 2, 8)).astype(np.float32), np.ones((1, 3, 5), np.float32)
    y, variables = jax.jit(Transformer(2, 1, False, TOKENS).init_with_output)(jax.random.key(0), x, tokens)
    np.testing.assert_array_equal(y, x)
    assert variables["params"]["block0"]["cross"]["query"]["kernel"].any()


def test_where_transformers_are():
    params = jax.eval_shape(DEEP.init, jax.random.key(0))
    parts = {name for name in params if name.endswith("_attention")}
    assert parts == {"down1_block0_attention", "up1_block0_attention", "up1_block1_attention"}


def test_parameters_may_be_stored_in_bfloat16(network):
    apply, params, x, t = network
    half = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), params)
    rounded = jax.tree.map(lambda a: a.astype(jnp.float32), half)
    np.testing.assert_array_equal(apply(half, x, t), apply(rounded, x, t))


@pytest.mark.parametrize(("options", "message"), [
    (dict(context_width=0), "context_width=0"),
    (dict(context_length=0), "context_length=0"),
    (dict(context_width=None), "context_length=3 is for a network with tokens: set context_width too"),
    (dict(context_width=None, context_length=77), r"heads=\(2,\) is for a network with tokens"),
    (dict(classes=3), "classes=3, context_width=5: expected one of them"),
    (dict(condition_width=3), "condition_width=3, context_width=5: expected one of them"),
    (dict(attention_levels=()), "no level has attention"),
    (dict(heads=(3,)), "3 heads do not divide the width 16 of level 1"),
    (dict(heads=(2, 3)), "3 heads do not divide the width 16 of level 1"),
    (dict(heads=(2, 2, 2)), "one for each of the 2 levels"),
    (dict(heads=()), "one positive number for all levels"),
    (dict(transformer_blocks=(0,)), r"transformer_blocks=\(0,\): expected one positive number"),
    (dict(transformer_blocks=(1, 2, 3)), "one for each of the 2 levels"),
    (dict(head_channels=4), r"heads=\(2,\), head_channels=4: expected one of them"),
])  # fmt: skip
def test_bad_settings_say_what_is_expected(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DEEP, **options)


def test_numbers_per_level():
    options = dict(attention_levels=(0, 1), middle_attention=True, heads=(2, 4), transformer_blocks=(1, 2))
    shapes = jax.eval_shape(dataclasses.replace(DEEP, **options).init, jax.random.key(0))
    for name, blocks in (("down0_block0", 1), ("down1_block0", 2), ("middle_block0", 2), ("up0_block1", 1)):
        assert sum(part.startswith("block") for part in shapes[f"{name}_attention"]) == blocks, name


def test_heads_by_their_channels(network):
    """Two heads at a width of 8 are heads of 4 channels."""
    apply, params, x, t = network
    same = dataclasses.replace(TOKENS, heads=None, head_channels=4)
    tokens = np.ones((3, 3, 5), np.float32)
    np.testing.assert_array_equal(jax.jit(same.apply)(params, x, t, tokens), apply(params, x, t, tokens))


def test_tokens_must_be_those_of_the_data():
    spec = ConditionSpec((Leaf(shape=(3, 5), dtype="float32"),))
    assert TOKENS.condition == spec
    check_inputs(TOKENS, (4, 4, 1), spec)
    longer = ConditionSpec((Leaf(shape=(4, 5), dtype="float32"),))
    with pytest.raises(ValueError, match=r"takes float32 of shape \(3, 5\) per image, and the data have .*\(4, 5\)"):
        check_inputs(TOKENS, (4, 4, 1), longer)
    with pytest.raises(ValueError, match=r"expected float32 of shape \(2, 3, 5\)"):
        jax.eval_shape(
            lambda key: TOKENS.apply(TOKENS.init(key), jnp.zeros((2, 4, 4, 1)), jnp.zeros(2), jnp.zeros((2, 4, 5))),
            jax.random.key(0),
        )


def test_networks_without_tokens_keep_their_descriptions():
    assert not set(FIELDS) & set(models.fingerprint_of(UNetConfig()))
    # of the version before there were transformers
    expected = "0f3e70ce"
    assert random_ensemble().fingerprint.startswith(expected)
    text = json.loads(json.dumps(models.fingerprint_of(TOKENS)))
    assert {name: text[name] for name in FIELDS} == {
        "context_width": 5, "context_length": 3, "transformer_blocks": [1], "heads": [2], "linear_projection": False,
    }  # fmt: skip
    assert models.model_from_dict(text) == TOKENS
