"""Faults of conditions, spaces and networks of one's own that give no error by themselves, each refused or right."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensdiff
from ensdiff.attribution.pictures import pictures_of
from ensdiff.ensemble.digest import digest
from ensdiff.models import ConditionSpec, Pixels, functions, linen
from ensdiff.models.describing import fingerprint_of, model_from_dict
from tests.helpers import CODE, TINY, blobs, random_ensemble

NAMED = ConditionSpec.of(np.arange(3), names=("cat", "dog", "fish"))


@pytest.fixture(scope="module")
def named():
    return random_ensemble(model=dataclasses.replace(TINY, classes=3), condition=NAMED)


def of(names, **options):
    return ensdiff.data.arrays(blobs(len(names)), condition=names, **options)


def test_classes_of_other_data_are_matched_by_name(named):
    """Ids 0 and 1 of data that only have dogs and fish are not the ensemble's 0 and 1."""
    assert pictures_of(named, of(["dog", "fish", "dog"])).cond.tolist() == [1, 2, 1]
    assert pictures_of(named, of([0, 2], classes=3)).cond.tolist() == [0, 2]
    for other in (of(["dog", "wolf"]), of([0, 5], classes=9), ensdiff.data.arrays(blobs(2))):
        with pytest.raises(ValueError, match=r"no class 'wolf'|conditions of the data are (9 classes|none)"):
            pictures_of(named, other)


@pytest.mark.parametrize(("values", "options", "message"), [
    ([1, 2, 3], {"classes": 3}, "class 3: expected 0 .. 2, counted from 0"),
    (np.array([[0, 2**32 + 5]] * 3), {}, "do not fit 32 bits"),
    (np.full((3, 2), 1e300), {}, "too large for float32"),
])  # fmt: skip
def test_conditions_of_data_that_would_be_stored_as_something_else(values, options, message):
    with pytest.raises(ValueError, match=message):
        ensdiff.data.arrays(blobs(3), condition=values, **options)


def test_a_name_that_is_a_number_is_never_an_id():
    spec = ConditionSpec.of(np.arange(3), names=("3", "5", "7"))
    assert spec.check("5", 1).tolist() == [1]
    with pytest.raises(ValueError, match="no class '1'"):
        spec.check("1", 1)


def test_pixels_of_another_range_are_not_clipped_to_that_of_most_models(tiny):
    wide = dataclasses.replace(tiny, space=Pixels(-2.0, 2.0))
    samples = ensdiff.sample(wide, 0, 3, steps=3)
    assert samples.config.clip is False
    with pytest.raises(ValueError, match="not the range"):
        ensdiff.sample(wide, 0, 3, steps=3, clip=True)


def test_samples_without_guidance_have_no_condition(named, tiny):
    none = ensdiff.sample(named, 0, 2, steps=2, cond=1, guidance=0.0)
    assert named.condition.captions(none.cond) == ["none", "none"]
    with pytest.raises(ValueError, match="samples have conditions and the ensemble has no conditions"):
        ensdiff.counterfactuals(tiny, none.unbound(), [0])


def test_held_out_images_of_a_conditional_ensemble_need_conditions(named):
    data = of(["cat", "dog", "fish"] * 2, class_names=("cat", "dog", "fish"))
    with pytest.raises(ValueError, match="held_out is an array of images without conditions"):
        ensdiff.attribute(named, blobs(2), "trak", data=data, held_out=blobs(4, seed=5), null=2, top=1, cond=0)


class Net(nn.Module):
    power: float = 1.0

    @nn.compact
    def __call__(self, x_BHWC, t_B):
        return nn.Dense(1)(x_BHWC) ** self.power


class Other(Net):
    pass


def test_a_network_with_other_settings_or_another_name_is_not_the_same(tiny):
    one, two, other = (linen(module, (8, 8, 1)) for module in (Net(), Net(power=3.0), Other()))
    text = fingerprint_of(one)
    assert model_from_dict(text, one) == one
    for wrong, message in ((two, "power = 3.0"), (other, "it is called 'Other'")):
        with pytest.raises(ValueError, match=message):
            model_from_dict(text, wrong)
    params = {"Dense_0": {"kernel": jnp.ones((4, 1, 1)), "bias": jnp.zeros((4, 1))}}
    prints = {dataclasses.replace(tiny, model=model, params=params).fingerprint for model in (one, two, other)}
    assert len(prints) == 3


def test_a_network_with_a_switch_that_nobody_sets_is_refused():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x_BHWC, t_B, deterministic=True):
            return nn.Dropout(0.5, deterministic=deterministic)(nn.Dense(1)(x_BHWC))

    with pytest.raises(ValueError, match="'deterministic', which nothing sets"):
        linen(Dropped(), (8, 8, 1))


def test_digests_do_not_depend_on_the_addresses_of_functions(tiny):
    def made():
        def apply(params, x_BHWC, t_B, cond, key_B):
            return x_BHWC * params["gain"]

        return functions(lambda key: {"gain": jnp.ones(())}, apply)

    params = {"gain": jnp.ones((4,))}
    one, two = (dataclasses.replace(tiny, model=made(), params=params) for _ in range(2))
    assert one.model != two.model
    assert digest(one) == digest(two)


@pytest.mark.slow
def test_training_without_dropped_conditions_warns():
    data = of([0, 1, 2] * 2, classes=3)
    with pytest.warns(UserWarning, match="never learn what no condition means"):
        ensdiff.train(
            data, CODE, dataclasses.replace(TINY, classes=3), steps=1, batch_size=1, warmup=0, condition_dropout=0.0,
            progress=False,
        )  # fmt: skip
    assert jax.tree.leaves(data.condition)
