"""The diffusion transformer: against NumPy in float64, its start, conditions, options and stacked members."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensdiff import models
from ensdiff.models.dit import DiTConfig, position_embedding
from tests.models.test_denoiser import CLASSES, VECTORS, filled

TINY = DiTConfig(image_channels=2, patch=2, width=8, depth=2, heads=2, classes=3)
KEY = jax.random.key(0)
X, T, COND = jax.random.normal(KEY, (3, 4, 6, 2)), jnp.array([3.0, 17.5, 999.0]), jnp.array([0, 2, 3])
apply = jax.jit(lambda model, *args: model.apply(*args), static_argnums=0)


def in_numpy(model, params, x, t, cond):
    """Return the prediction of one image, in float64, written with loops over heads."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = np.asarray(x, np.float64)
    dense = lambda part, h: h @ part["kernel"] + part["bias"]  # noqa: E731
    swish = lambda h: h / (1 + np.exp(-h))  # noqa: E731
    gelu = lambda h: 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))  # noqa: E731

    def norm(h, epsilon):
        return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + epsilon)

    def embed(part):
        angle = t * 10000.0 ** (-np.arange(128) / 127)
        c = dense(part["time2"], swish(dense(part["time1"], np.r_[np.cos(angle), np.sin(angle)])))
        return c + part["condition"]["table"][cond]

    H, W, C = x.shape
    P, D, heads = model.patch, model.width, model.heads
    order = [(i, j) for i in range(H // P) for j in range(W // P)]
    tokens = np.stack([x[i * P : (i + 1) * P, j * P : (j + 1) * P].reshape(-1) for i, j in order])
    frequencies = 10000.0 ** (-np.arange(D // 4) / (D // 4))
    place = [np.r_[np.sin(j * frequencies), np.cos(j * frequencies), np.sin(i * frequencies), np.cos(i * frequencies)]
             for i, j in order]  # fmt: skip
    h = dense(p["patches"], tokens) + np.stack(place)
    names = [f"embedding{i}" if model.embedding == "per_block" else "embedding" for i in range(model.depth)]
    for i in range(model.depth):
        part = p[f"block{i}"]
        parts = dense(part["modulation"], swish(embed(p[names[i]])))
        shift1, scale1, gate1, shift2, scale2, gate2 = np.split(parts, 6)
        y = norm(h, 1e-6) * (1 + scale1) + shift1
        q, k, v = (dense(part[name], y) for name in ("query", "key", "value"))
        mixed = []
        for n in range(heads):
            cut = slice(n * D // heads, (n + 1) * D // heads)
            weights = np.exp(q[:, cut] @ k[:, cut].T / np.sqrt(D // heads))
            mixed.append(weights / weights.sum(1, keepdims=True) @ v[:, cut])
        h = h + gate1 * dense(part["out"], np.hstack(mixed))
        y = norm(h, model.mlp_norm_epsilon) * (1 + scale2) + shift2
        h = h + gate2 * dense(part["mlp2"], gelu(dense(part["mlp1"], y)))
    shift, scale = np.split(dense(p["tail_modulation"], swish(embed(p[names[0]]))), 2)
    tokens = dense(p["tail"], norm(h, 1e-6) * (1 + scale) + shift)
    out = np.zeros_like(x)
    for token, (i, j) in zip(tokens, order, strict=True):
        out[i * P : (i + 1) * P, j * P : (j + 1) * P] = token.reshape(P, P, C)
    return out


@pytest.mark.parametrize("embedding", ["shared", "per_block"])
def test_predictions_in_float64(embedding):
    model = dataclasses.replace(TINY, embedding=embedding, mlp_norm_epsilon=1e-3)
    params = filled(model)
    got = apply(model, params, X, T, COND)
    for row in range(3):
        expected = in_numpy(model, params, X[row], float(T[row]), int(COND[row]))
        np.testing.assert_allclose(got[row], expected, rtol=1e-4, atol=2e-5)
    # no condition is the last row of the table
    np.testing.assert_allclose(apply(model, params, X, T)[2], got[2], rtol=1e-5, atol=1e-6)


def test_blocks_start_as_the_identity_and_the_prediction_at_zero():
    params = jax.jit(TINY.init)(KEY)
    np.testing.assert_array_equal(apply(TINY, params, X, T, COND), np.zeros_like(X))
    params["tail"] = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
    first = apply(TINY, params, X, T, COND)
    assert np.abs(first).max() > 0.1
    for i in range(2):  # gates of zero hide the branches
        params[f"block{i}"]["mlp2"]["bias"] += 1.0
    np.testing.assert_array_equal(apply(TINY, params, X, T, COND), first)


def test_every_parameter_matters():
    model = dataclasses.replace(TINY, embedding="per_block")
    params = filled(model)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, X, T, jnp.arange(3)) ** 2)))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        if "'key']['bias']" not in name:  # a constant added to every key leaves the softmax as it is
            assert np.abs(grad).max() > 0, name


def test_stacked_members_predict_as_single_ones():
    params_K = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), filled(TINY))
    both = jax.jit(jax.vmap(TINY.apply, (0, None, None, None)))(params_K, X, T, COND)
    for k in range(2):
        one = apply(TINY, jax.tree.map(lambda a, k=k: a[k], params_K), X, T, COND)
        np.testing.assert_allclose(both[k], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"attention": "image"}, {"remat": True}])
def test_how_it_is_computed_changes_nothing(options):
    params = filled(TINY)

    def gradient(model):
        return jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, X, T, COND) ** 2)))(params)

    other = gradient(dataclasses.replace(TINY, **options))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), gradient(TINY), other)


def test_bfloat16_keeps_float32_parameters_and_stays_close():
    half = dataclasses.replace(TINY, compute_dtype="bfloat16")
    params = filled(TINY)
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(half.init, KEY))} == {jnp.dtype("float32")}
    full, rounded = apply(TINY, params, X, T, COND), apply(half, params, X, T, COND)
    assert rounded.dtype == jnp.float32
    error = np.abs(full - rounded).max() / np.abs(full).max()
    assert 1e-5 < error < 0.05


def test_images_do_not_see_each_other():
    params = filled(TINY)
    beside = apply(TINY, params, X.at[1].multiply(3.0), T.at[1].set(7.0), COND.at[1].set(0))
    whole = apply(TINY, params, X, T, COND)
    np.testing.assert_allclose(beside[0], whole[0], rtol=1e-5, atol=1e-6)
    assert np.abs(beside[1] - whole[1]).max() > 1e-3


def test_positions_differ_in_rows_and_columns():
    embedding = position_embedding(3, 4, 8).reshape(3, 4, 8)
    assert (embedding[:, :, :4] == embedding[:1, :, :4]).all()  # of the column
    assert (embedding[:, :, 4:] == embedding[:, :1, 4:]).all()  # of the row
    assert len({tuple(row) for row in embedding.reshape(12, 8)}) == 12


def test_a_config_is_its_denoiser():
    assert models.dit(TINY) is TINY
    assert isinstance(TINY, models.Denoiser)
    assert TINY.condition == CLASSES
    assert dataclasses.replace(TINY, classes=None, condition_width=5).condition == VECTORS
    assert models.model_from_dict(models.fingerprint_of(TINY)) == TINY
    with pytest.raises(TypeError, match="expected a DiTConfig"):
        models.dit(models.UNetConfig())


@pytest.mark.parametrize(("shape", "message"), [
    ((4, 5, 2), "patches of 2x2"),
    ((4, 4, 3), "set image_channels=3"),
])  # fmt: skip
def test_images_must_consist_of_patches(shape, message):
    with pytest.raises(ValueError, match=message):
        models.check_inputs(TINY, shape, CLASSES)


@pytest.mark.parametrize(("options", "message"), [
    ({"width": 6}, "multiple of 4"), ({"heads": 3}, "multiple of 4 and of heads"), ({"depth": 0}, "depth=0"),
    ({"mlp_ratio": 0.0}, "mlp_ratio=0.0"), ({"stack": -1}, "stack=-1"), ({"embedding": "none"}, "'shared'"),
    ({"condition_width": 4}, "expected one of them"),
])  # fmt: skip
def test_bad_configs_say_what_is_expected(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **options)
