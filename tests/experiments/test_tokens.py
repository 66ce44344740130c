"""Programs and networks that are conditioned on tokens, such as the embedding of a caption."""

import re

import numpy as np
import pytest

import ensdiff
from ensdiff.models.condition import ConditionSpec, Leaf
from ensdiff.planning.estimates import ACCELERATORS, Study, parameter_count
from ensdiff.training.loop import default_model
from experiments import building, plan
from experiments.configs import latents
from tests.helpers import blobs

SPEC = ConditionSpec((Leaf(shape=(3, 5), dtype="float32"),))


def test_a_config_gets_the_tokens_of_its_data():
    config = latents.get_config()
    config.model.heads = (2,)
    config.model.attention_levels = (0,)
    model, _, _ = building.settings(config, 4, SPEC)
    assert (model.context_width, model.context_length, model.condition) == (5, 3, SPEC)
    config.model.context_length = 4  # a field that is set stays
    assert building.settings(config, 4, SPEC)[0].condition.leaves[0].shape == (4, 5)


def test_the_default_network_takes_tokens():
    data = ensdiff.data.arrays(blobs()).with_condition(np.zeros((6, 3, 5), np.float32))
    model = default_model(data)
    assert model.condition == SPEC
    ensdiff.models.check_inputs(model, data.shape, data.condition_spec)


@pytest.mark.slow
def test_the_plan_counts_transformers():
    model = ensdiff.UNetConfig(
        channels=4, multipliers=(1,), norm_groups=2, context_width=5, context_length=3, heads=(2,)
    )
    study = Study(model, (8, 8, 1), 4, 6, 2, ensdiff.TrainConfig(), condition=model.condition)
    text = plan.table(study, {"h100": ACCELERATORS["h100"]}, 1, 0.2)
    assert f"| {parameter_count(model):,} |" in re.sub(" +", " ", text)
    C, D = 4, 5
    plain = parameter_count(ensdiff.UNetConfig(channels=4, multipliers=(1,), norm_groups=2, middle_attention=False))
    layers = 2 * C + 2 * (C * C + C) + 3 * 2 * C  # norms and projections
    attention = 3 * C * C + C * C + C + 2 * C * C + 2 * D * C + C
    assert parameter_count(model) == plain + layers + attention + (8 * C * C + 8 * C) + (4 * C * C + C)
