"""The single-member U-Net: shapes, options, the time embedding and normalisation against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensdiff.models.blocks import Attention, GroupNorm, timestep_embedding
from ensdiff.models.unet import UNet, UNetConfig


def noisy_params(net, *args, seed=0):
    """Parameters with no zeros in them, so that every path contributes."""
    shapes = jax.eval_shape(net.init, jax.random.key(seed), *args)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(0.2 * rng.normal(size=a.shape), a.dtype), shapes)


CONFIGS = {
    "small": UNetConfig(channels=8),
    "deep": UNetConfig(channels=8, multipliers=(1, 2, 2), blocks=2, attention_levels=(1,), head_channels=4),
    "odd widths": UNetConfig(image_channels=3, channels=8, multipliers=(1.5, 2), norm_groups=4),
    "uneven attention": UNetConfig(channels=8, attention_levels=(0,), attention_levels_up=(1,), middle_attention=False),
    "pool": UNetConfig(channels=8, downsample="pool", upsample="nearest", time_layout="interleaved"),
    "remat": UNetConfig(channels=8, remat=True),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_output_has_the_images_shape_and_depends_on_everything(config):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, config.image_channels))
    t = jnp.array([3, 500])
    net = UNet(config)
    params = noisy_params(net, x, t)
    apply = jax.jit(lambda p, x, t: net.apply({"params": p}, x, t))
    out = apply(params, x, t)
    assert out.shape == x.shape
    assert out.dtype == jnp.float32
    assert not np.allclose(out, apply(params, x, t + 100))
    # no reduction over the batch: an image's prediction does not depend on its neighbours
    beside_another = apply(params, x.at[1].multiply(3.0), t.at[1].set(7))
    np.testing.assert_allclose(beside_another[0], out[0], rtol=2e-4, atol=2e-5)
    assert not np.allclose(beside_another[1], out[1])


def test_every_parameter_matters():
    config = UNetConfig(channels=8, attention_levels=(0, 1), conv="grouped")
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([3, 500])
    net = UNet(config)
    params = noisy_params(net, x, t)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(net.apply({"params": p}, x, t) ** 2)))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        if "'key']['bias']" not in name:  # a constant added to every key leaves the softmax as it is
            assert np.abs(grad).max() > 0, name


def test_bfloat16_keeps_float32_parameters_and_stays_close():
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([3, 500])
    full, half = UNet(UNetConfig(channels=8)), UNet(UNetConfig(channels=8, compute_dtype="bfloat16"))
    params = noisy_params(full, x, t)
    for leaf in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), x, t)):
        assert leaf.dtype == jnp.float32
    a, b = (jax.jit(net.apply)({"params": params}, x, t) for net in (full, half))
    assert b.dtype == jnp.float32
    error = np.abs(a - b).max() / np.abs(a).max()
    assert 1e-5 < error < 0.05


def test_remat_changes_nothing():
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([3, 500])
    plain, remat = (
        UNet(UNetConfig(channels=8, conv="grouped")),
        UNet(UNetConfig(channels=8, remat=True, conv="grouped")),
    )
    params = noisy_params(plain, x, t)

    def grads(net):
        return jax.jit(jax.grad(lambda p: jnp.sum(net.apply({"params": p}, x, t) ** 2)))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), grads(plain), grads(remat))


def test_dropout_only_with_keys_and_independent_of_the_batch():
    config = UNetConfig(channels=8, dropout=0.3)
    x, t = jax.random.normal(jax.random.key(0), (4, 8, 8, 1)), jnp.array([3, 500, 2, 7])
    net = UNet(config)
    params = noisy_params(net, x, t)
    keys = jax.random.split(jax.random.key(1), 4)
    apply = jax.jit(lambda x, t, keys: net.apply({"params": params}, x, t, keys))
    whole = apply(x, t, keys)
    assert not np.allclose(whole, apply(x, t, None))
    moved = np.array([2, 3, 1, 0])
    np.testing.assert_allclose(apply(x[moved], t[moved], keys[moved]), whole[moved], rtol=2e-4, atol=2e-5)


def test_time_embedding_layouts():
    t, width = np.array([0, 17]), 6
    angle = t[:, None] * 10000.0 ** (-np.arange(3) / 3)
    sin, cos = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(timestep_embedding(jnp.array(t), width, "sin_cos"), np.hstack([sin, cos]), atol=1e-5)
    np.testing.assert_allclose(timestep_embedding(jnp.array(t), width, "cos_sin"), np.hstack([cos, sin]), atol=1e-5)
    interleaved = np.stack([sin, cos], -1).reshape(2, 6)
    np.testing.assert_allclose(timestep_embedding(jnp.array(t), width, "interleaved"), interleaved, atol=1e-5)


def test_group_norm_in_float64(rng):
    config = UNetConfig(channels=8, norm_groups=2)
    x = (5 + 3 * rng.normal(size=(2, 3, 4, 8))).astype(np.float32)
    scale, bias = rng.normal(size=8), rng.normal(size=8)
    groups = x.astype(np.float64).reshape(2, 12, 2, 4)
    centred = groups - groups.mean((1, 3), keepdims=True)
    expected = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + config.norm_epsilon)
    expected = expected.reshape(x.shape) * scale + bias
    got = jax.jit(GroupNorm(config).apply)(
        {"params": {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}}, jnp.asarray(x)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ["image", "batch"])
def test_attention_in_float64(rng, order):
    config = UNetConfig(channels=8, head_channels=4, attention=order, norm_groups=2)
    x = rng.normal(size=(1, 2, 3, 8)).astype(np.float32)
    module = Attention(config)
    params = noisy_params(module, jnp.asarray(x))
    got = jax.jit(module.apply)({"params": params}, jnp.asarray(x))
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    h = np.asarray(GroupNorm(config).apply({"params": params["norm"]}, jnp.asarray(x)), np.float64).reshape(6, 8)
    q, k, v = (h @ p[n]["kernel"] + p[n]["bias"] for n in ("query", "key", "value"))
    heads = []
    for i in range(2):
        cut = slice(4 * i, 4 * i + 4)
        logits = q[:, cut] @ k[:, cut].T / np.sqrt(4)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        heads.append(weights / weights.sum(1, keepdims=True) @ v[:, cut])
    expected = x.reshape(6, 8) + np.hstack(heads) @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(np.reshape(got, (6, 8)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("options", "message"), [
    (dict(norm_groups=5), "norm_groups must divide 32"),
    (dict(multipliers=()), "one multiplier per level"),
    (dict(attention_levels=(2,)), r"levels are 0 \.\. 1"),
    (dict(head_channels=7), "head_channels=7"),
    (dict(dropout=1.0), "rate in"),
    (dict(channels=7), "even number of channels"),
    (dict(compute_dtype="float16"), "'float32', 'bfloat16'"),
    (dict(time_layout="cosine"), "interleaved"),
    (dict(conv="fast"), "'loop'"),
])  # fmt: skip
def test_bad_configs_say_what_is_expected(options, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**options)


def test_image_size_must_fit_the_levels():
    with pytest.raises(ValueError, match="multiples of 4"):
        UNetConfig(multipliers=(1, 2, 2)).check_image(6, 8)
