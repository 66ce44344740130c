"""The U-Net as a denoiser: initial parameters, times, conditions; and the check of any denoiser."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensdiff import models
from ensdiff.models.blocks import timestep_embedding
from ensdiff.models.condition import ConditionSpec, Leaf
from ensdiff.models.denoiser import check_inputs, initial_shapes, name_of
from ensdiff.models.unet import UNet, UNetConfig

pytestmark = pytest.mark.slow

TINY = UNetConfig(channels=4, norm_groups=2, multipliers=(1,), middle_attention=False, conv="grouped")
KEY = jax.random.key(0)
CLASSES, VECTORS = ConditionSpec((Leaf(classes=3),)), ConditionSpec((Leaf(shape=(5,), dtype="float32"),))


def filled(model, seed=0):
    """Return parameters with no zeros in them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(0.2 * rng.normal(size=a.shape), a.dtype), jax.eval_shape(model.init, KEY))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(KEY, (3, 4, 4, 1)), jnp.array([3.0, 17.5, 999.0])


@pytest.mark.parametrize("options", [{}, {"multipliers": (1, 2), "attention_levels": (1,)}, {"classes": 3}])
def test_initial_parameters_are_those_of_any_image_size(options):
    model = dataclasses.replace(TINY, **options)
    x, t = jnp.zeros((1, 8, 12, 1)), jnp.zeros((1,), jnp.int32)
    direct = jax.jit(UNet(model).init)(KEY, x, t)["params"]
    jax.tree.map(np.testing.assert_array_equal, jax.jit(model.init)(KEY), direct)


def test_whole_times_have_the_bits_of_integers():
    t = np.arange(1000)
    embed = jax.jit(lambda t: timestep_embedding(t, 16, "sin_cos"))
    np.testing.assert_array_equal(embed(jnp.asarray(t)), embed(jnp.asarray(t, jnp.float32)))


def test_classes_shift_the_time_embedding_and_none_is_the_last_row(images):
    model = dataclasses.replace(TINY, classes=3)
    params = filled(model)
    apply = jax.jit(model.apply)
    by_class = [apply(params, *images, jnp.full(3, c)) for c in range(4)]
    assert all(np.abs(one - by_class[0]).max() > 1e-3 for one in by_class[1:])
    np.testing.assert_array_equal(apply(params, *images), by_class[3])
    mixed = apply(params, *images, jnp.array([2, 0, 3]))
    for row, c in enumerate((2, 0, 3)):
        np.testing.assert_allclose(mixed[row], by_class[c][row], atol=1e-6)
    # the embedding of a class acts as a bias of the time embedding
    shifted = jax.tree.map(lambda a: a, params)
    table = shifted.pop("condition")["table"]
    assert table.shape == (4, 16)
    shifted["time2"] = {**params["time2"], "bias": params["time2"]["bias"] + table[1]}
    np.testing.assert_allclose(jax.jit(TINY.apply)(shifted, *images), by_class[1], atol=1e-5)


def test_vectors_pass_a_dense_layer_and_none_is_zeros(images):
    model = dataclasses.replace(TINY, condition_width=5)
    params = filled(model)
    apply = jax.jit(model.apply)
    vectors = jax.random.normal(KEY, (3, 5))
    one = apply(params, *images, vectors)
    assert np.abs(one - apply(params, *images)).max() > 1e-3
    np.testing.assert_array_equal(apply(params, *images), apply(params, *images, jnp.zeros((3, 5))))
    dense = params["condition"]["dense"]
    plain = {name: part for name, part in params.items() if name != "condition"}
    shift = np.asarray(vectors[0] @ dense["kernel"] + dense["bias"])
    plain["time2"] = {**params["time2"], "bias": params["time2"]["bias"] + shift}
    np.testing.assert_allclose(jax.jit(TINY.apply)(plain, *images)[0], one[0], atol=1e-5)


def test_the_gradient_of_the_table_reaches_the_given_classes_only(images):
    model = dataclasses.replace(TINY, classes=3)
    loss = lambda params: jnp.sum(model.apply(params, *images, jnp.array([1, 1, 3])) ** 2)  # noqa: E731
    rows = np.abs(jax.jit(jax.grad(loss))(filled(model))["condition"]["table"]).max(1)
    np.testing.assert_array_equal(rows > 0, [False, True, False, True])


@pytest.mark.parametrize(("options", "cond", "message"), [
    ({}, np.zeros(3, np.int32), "takes none"),
    ({"classes": 3}, np.zeros(3, np.float32), r"float32 and shape \(3,\): expected int32"),
    ({"classes": 3}, np.zeros(2, np.int32), r"shape \(2,\): expected int32 of shape \(3,\)"),
    ({"classes": 3}, {"label": np.zeros(3, np.int32)}, "the condition is dict"),
    ({"condition_width": 5}, np.zeros((3, 4), np.float32), r"expected float32 of shape \(3, 5\)"),
])  # fmt: skip
def test_another_condition_is_refused(images, options, cond, message):
    model = dataclasses.replace(TINY, **options)
    params = jax.eval_shape(model.init, KEY)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda params: model.apply(params, *images, cond), params)


@pytest.mark.parametrize(("options", "message"), [
    ({"classes": 0}, "classes=0"),
    ({"condition_width": -1}, "condition_width=-1"),
    ({"classes": 2, "condition_width": 3}, "expected one of them"),
    ({"classes": 2.5}, "classes=2.5"),
])  # fmt: skip
def test_bad_conditions_of_a_config(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **options)


def test_a_config_is_its_denoiser():
    assert models.unet(TINY) is TINY
    assert isinstance(TINY, models.Denoiser)
    assert TINY.condition is None
    assert dataclasses.replace(TINY, classes=3).condition == CLASSES
    assert dataclasses.replace(TINY, condition_width=5).condition == VECTORS
    with pytest.raises(TypeError, match="expected a UNetConfig"):
        models.unet({"channels": 4})


@pytest.mark.parametrize(("options", "shape", "condition", "message"), [
    ({"multipliers": (1, 2)}, (4, 5, 1), None, "multiples of 2"),
    ({}, (4, 4, 3), None, "3 channels and the U-Net 1: set image_channels=3"),
    ({}, (4, 4, 1), CLASSES, "UNetConfig takes no condition, and the data have 3 classes"),
    ({"classes": 3}, (4, 4, 1), None, "takes 3 classes, and the data have no condition"),
    ({"classes": 4}, (4, 4, 1), CLASSES, "takes 4 classes, and the data have 3 classes"),
    ({"classes": 3}, (4, 4, 1), VECTORS, r"the data have float32 of shape \(5,\) per image"),
    ({"classes": 3}, (4, 4, 1), ConditionSpec((Leaf("label", classes=3),)), "3 classes called 'label'"),
])  # fmt: skip
def test_a_built_in_network_must_fit_the_data(options, shape, condition, message):
    with pytest.raises(ValueError, match=message):
        check_inputs(dataclasses.replace(TINY, **options), shape, condition)


def test_names_of_classes_do_not_matter_to_a_network():
    named = ConditionSpec((Leaf(classes=3, names=("a", "b", "c")),))
    check_inputs(dataclasses.replace(TINY, classes=3), (4, 4, 1), named)


@dataclasses.dataclass(frozen=True)
class Own:
    """A network of one parameter, broken in one way."""

    fault: str = ""
    name: object = "mine"
    stack: int = 1

    def init(self, key):
        if self.fault == "init":
            raise RuntimeError("no weights")
        return {"gain": jnp.ones((), jnp.bfloat16 if self.fault == "half" else jnp.float32)}

    def apply(self, params, x_BHWC, t_B, cond=None, key_B=None):
        if self.fault == "keys" and key_B is not None:
            raise RuntimeError("no dropout here")
        if cond is not None:
            x_BHWC = x_BHWC + cond.astype(jnp.float32)[:, None, None, None]
        y = params["gain"] * x_BHWC
        if self.fault == "list":
            return [y]
        return y[:, 1:] if self.fault == "shape" else y.astype(jnp.int32) if self.fault == "dtype" else y


def test_a_good_network_of_ones_own_passes():
    check_inputs(Own(), (4, 4, 1))
    check_inputs(Own(), (4, 4, 1), CLASSES)


@pytest.mark.parametrize(("fault", "message"), [
    ("init", "mine: its init failed: no weights"),
    ("half", "its parameter .*gain.* is bfloat16: expected float32"),
    ("keys", "its apply failed .*with a key per image: no dropout here"),
    ("shape", r"mine returned float32 of shape \(2, 3, 4, 1\) for images of shape \(2, 4, 4, 1\)"),
    ("dtype", "mine returned int32 of shape"),
    ("list", "mine returned a list"),
])  # fmt: skip
def test_a_broken_network_of_ones_own_is_refused_by_name(fault, message):
    with pytest.raises(ValueError, match=message):
        check_inputs(Own(fault), (4, 4, 1))


def test_what_is_no_denoiser_is_refused():
    with pytest.raises(TypeError, match="no init and no apply and no stack"):
        check_inputs(object(), (4, 4, 1))
    with pytest.raises(TypeError, match="cannot be hashed"):
        check_inputs(Own(name=["a", "list"]), (4, 4, 1))
    with pytest.raises(ValueError, match="stack=-1"):
        check_inputs(Own(stack=-1), (4, 4, 1))
    assert name_of(TINY) == "UNetConfig"


def test_networks_that_differ_only_in_how_they_are_computed_are_traced_once(monkeypatch):
    """Plans ask for the parameters of one network on every platform."""
    model, traced, init = UNetConfig(channels=6, norm_groups=3, multipliers=(1,)), [], UNetConfig.init
    monkeypatch.setattr(UNetConfig, "init", lambda self, key: traced.append(self) or init(self, key))
    forms = [model, *(dataclasses.replace(model, conv=conv, attention="batch", remat=True) for conv in ("map", "loop"))]
    shapes = [initial_shapes(form) for form in forms]
    assert len(traced) == 1
    for form, shape in zip(forms, shapes, strict=True):
        assert shape == jax.eval_shape(lambda key, form=form: init(form, key), jax.random.key(0))
    assert initial_shapes(dataclasses.replace(model, blocks=2)) != shapes[0]
