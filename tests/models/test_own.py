"""Networks of one's own: linen and NNX modules and bare functions behave as the networks that they wrap."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

from ensdiff import models
from ensdiff.models.condition import ConditionSpec, Leaf
from ensdiff.models.parameters import from_dicts, shapes_of, to_dicts
from tests.models.test_denoiser import TINY

KEY = jax.random.key(0)
SHAPE = (4, 4, 1)
CLASSES = ConditionSpec((Leaf(classes=3),))
X, T, COND = jax.random.normal(KEY, (3, *SHAPE)), jnp.array([1.0, 20.5, 300.0]), jnp.array([0, 2, 3])


class Pixelwise(nn.Module):
    """A linen module with options: classes, dropout, batch normalisation."""

    width: int = 4
    classes: int = 0
    rate: float = 0.0
    batch: bool = False

    @nn.compact
    def __call__(self, x, t, cond=None, train=False):
        h = nn.Dense(self.width)(x) + (t / 100.0)[:, None, None, None]
        if self.classes:
            h = h + nn.Embed(self.classes + 1, self.width)(cond)[:, None, None]
        h = nn.Dropout(self.rate, deterministic=not train)(nn.tanh(h))
        if self.batch:
            h = nn.BatchNorm(use_running_average=True)(h)
        return nn.Dense(x.shape[-1])(h)


class Pixels(flax_nnx.Module):
    """The same in NNX."""

    def __init__(self, width=4, rate=0.0, classes=0, batch=False, *, rngs):
        self.inside = flax_nnx.Linear(1, width, rngs=rngs)
        self.outside = flax_nnx.Linear(width, 1, rngs=rngs)
        if rate:
            self.dropout = flax_nnx.Dropout(rate, rngs=rngs)
        if classes:
            self.embed = flax_nnx.Embed(classes + 1, width, rngs=rngs)
        if batch:
            self.norm = flax_nnx.BatchNorm(1, rngs=rngs)

    def __call__(self, x, t, cond=None):
        h = self.inside(x) + (t / 100.0)[:, None, None, None]
        if cond is not None:
            h = h + self.embed(cond)[:, None, None]
        h = jnp.tanh(h)
        return self.outside(self.dropout(h) if hasattr(self, "dropout") else h)


def start(key):
    return {"layers": [jax.random.normal(key, ()), jnp.ones(())], "pair": (jnp.zeros(2),)}


def scale(params, x, t, cond, key_B):
    return params["layers"][0] * x + params["layers"][1] + 0.0 * params["pair"][0].sum()


def built(kind, **options):
    if kind == "linen":
        return models.linen(Pixelwise(**options), SHAPE, CLASSES if "classes" in options else None)
    return models.nnx(Pixels, SHAPE, CLASSES if "classes" in options else None, **options)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_module_predicts_as_it_does_alone(kind):
    model = built(kind, classes=3)
    params = jax.jit(model.init)(KEY)
    got = jax.jit(model.apply)(params, X, T, COND)
    if kind == "linen":
        expected = Pixelwise(classes=3).apply({"params": params}, X, T, COND)
    else:
        expected = Pixels(classes=3, rngs=flax_nnx.Rngs(KEY))(X, T, COND)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    # no condition is the null row
    null = jax.jit(model.apply)(params, X, T, jnp.full(3, 3))
    np.testing.assert_array_equal(jax.jit(model.apply)(params, X, T), null)
    assert np.abs(null[0] - got[0]).max() > 1e-3


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_equal_modules_are_equal_denoisers(kind):
    one, other, wider = built(kind, width=4), built(kind, width=4), built(kind, width=5)
    assert one == other
    assert hash(one) == hash(other)
    assert one != wider
    assert isinstance(one, models.Denoiser)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_dropout_has_the_keys_of_images(kind):
    model = built(kind, rate=0.5)
    params = jax.jit(model.init)(KEY)
    keys = jax.random.split(KEY, 3)
    apply = jax.jit(model.apply)
    whole, moved = apply(params, X, T, None, keys), np.array([2, 0, 1])
    np.testing.assert_allclose(apply(params, X[moved], T[moved], None, keys[moved]), whole[moved], atol=1e-6)
    same = apply(params, X[:1].repeat(3, 0), T[:1].repeat(3), None, keys)
    assert np.abs(same[0] - same[1]).max() > 1e-3  # each has its own draws
    assert np.abs(whole - apply(params, X, T)).max() > 1e-3  # and there is none without keys
    np.testing.assert_array_equal(apply(params, X, T), apply(params, X, T))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_statistics_of_batches_are_refused_by_name(kind):
    with pytest.raises(ValueError, match=r"(batch_stats|'norm'.*'mean').* beside its parameters"):
        built(kind, batch=True)


def test_members_can_be_stacked():
    for model in (built("linen"), built("nnx"), models.functions(start, scale)):
        params_K = jax.jit(jax.vmap(model.init))(jax.random.split(KEY, 2))
        both = jax.jit(jax.vmap(model.apply, (0, None, None)))(params_K, X, T)
        one = jax.jit(model.apply)(jax.tree.map(lambda a: a[1], params_K), X, T)
        np.testing.assert_allclose(both[1], one, rtol=1e-5, atol=1e-6)


def test_functions_keep_their_structure_and_show_plain_dicts():
    model = models.functions(start, scale, name="gain")
    params = model.init(KEY)
    assert shapes_of(params) == {
        "layers/0": ((), "float32"), "layers/1": ((), "float32"), "pair/0": ((2,), "float32"),
    }  # fmt: skip
    np.testing.assert_allclose(model.apply(params, X, T), start(KEY)["layers"][0] * X + 1.0, rtol=1e-6)
    assert model == models.functions(start, scale, name="gain")
    assert models.functions(start, scale).name == "scale"
    assert model != models.functions(start, lambda *args: scale(*args), name="gain")
    with pytest.raises(TypeError, match="apply=3: expected a function"):
        models.functions(start, 3)


def test_dicts_and_back():
    tree = {"a": [np.zeros(1), (np.ones(2), None)], "b": np.ones(3)}
    back = from_dicts(to_dicts(tree), tree)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert jax.tree.map(np.shape, back) == jax.tree.map(np.shape, tree)
    assert to_dicts(np.ones(2)).keys() == {"array"}
    np.testing.assert_array_equal(from_dicts({"array": np.ones(2)}, np.zeros(2)), np.ones(2))
    with pytest.raises(ValueError, match="no a/1/0"):
        from_dicts({"a": {"0": np.zeros(1)}}, tree)
    with pytest.raises(ValueError, match="no parameters"):
        to_dicts({})


@pytest.mark.parametrize(("make", "kind", "message"), [
    (lambda: models.linen(Pixels, SHAPE), TypeError, "expected a flax linen module"),
    (lambda: models.linen(Pixelwise(width=[3]), SHAPE), TypeError, "Pixelwise cannot be hashed"),
    (lambda: models.nnx(Pixels, SHAPE, width=[3]), TypeError, "Pixels cannot be hashed"),
    (lambda: models.nnx(3, SHAPE), TypeError, "expected the class of an NNX module"),
    (lambda: models.nnx(Pixels, (4, 4, 3)), ValueError, r"apply failed for images of shape \(2, 4, 4, 3\)"),
    (lambda: models.linen(Pixelwise(classes=3), SHAPE), ValueError, "cannot be made for images of shape"),
    (lambda: models.linen(Pixelwise(), (4, 4)), ValueError, "expected height, width and channels"),
    (lambda: models.check_inputs(built("linen", classes=3), SHAPE), ValueError, "3 classes, and the data have no"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("model", [
    TINY, dataclasses.replace(TINY, classes=3, multipliers=(1, 2.5), conv="map"),
])  # fmt: skip
def test_built_in_networks_are_rebuilt(model):
    text = json.loads(json.dumps(models.fingerprint_of(model)))
    assert models.model_from_dict(text) == model
    assert models.model_from_dict(text, model) is not None
    with pytest.raises(ValueError, match="channels=4 and not 8"):
        models.model_from_dict(text, dataclasses.replace(model, channels=8))
    with pytest.raises(ValueError, match="which is a UNetConfig and not gain"):
        models.model_from_dict(text, models.functions(start, scale, name="gain"))


def test_descriptions_without_a_kind_are_unets():
    text = dataclasses.asdict(TINY)
    del text["classes"], text["condition_width"]
    assert models.model_from_dict(json.loads(json.dumps(text))) == TINY


def test_own_networks_are_compared_with_their_fingerprint():
    model = built("linen")
    text = json.loads(json.dumps(models.fingerprint_of(model)))
    assert text["name"] == "Pixelwise"
    assert models.model_from_dict(text, built("linen")) == model
    with pytest.raises(ValueError, match="'Pixelwise' is a network of your own.*pass the network"):
        models.model_from_dict(text)
    with pytest.raises(ValueError, match=r"Dense_0/bias is float32 of shape \(5,\) and not float32 of shape \(4,\)"):
        models.model_from_dict(text, built("linen", width=5))
    with pytest.raises(ValueError, match=r"Pixels is not .*it has no Dense_0/bias.*it has also inside/bias"):
        models.model_from_dict(text, built("nnx"))


@pytest.mark.parametrize("text", [None, {"kind": "gan"}, {"kind": "own"}, {"kind": "unet", "colour": 3},
                                  {"kind": "own", "name": "a", "parameters": [3]}])  # fmt: skip
def test_what_is_no_description_is_refused(text):
    with pytest.raises(ValueError, match="not the description of a network"):
        models.model_from_dict(text, TINY)
