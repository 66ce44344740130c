"""A planted copy is found: one digit, eight times under one unit, is that image's most influential unit by loss."""

import numpy as np
import pytest

import ensdiff

UNIT = 37


@pytest.fixture(scope="module")
def planted():
    """150 digits of one image a unit, but unit 37 holds its image eight times."""
    digits = ensdiff.data.digits()
    chosen = np.sort(np.random.default_rng(0).permutation(digits.items)[:150])
    index = np.concatenate([chosen, np.repeat(chosen[UNIT], 7)])
    units = np.concatenate([np.arange(150), np.full(7, UNIT)])
    data = ensdiff.data.arrays(digits.images[index], groups=units)
    code = ensdiff.Code.balanced(16, 150, seed=0)
    model = ensdiff.UNetConfig(channels=16, norm_groups=8, multipliers=(1, 2), downsample="pool", upsample="nearest")
    params = ensdiff.train(data, code, model, steps=1200, batch_size=16, learning_rate=2e-3, ema=0.99, progress=False)
    return params, data


@pytest.mark.slow
def test_planted_copies_are_ranked_first_by_loss(planted):
    params, data = planted
    image = data.images[data.items_of(UNIT)[:1]]
    att = ensdiff.attribute(params, image, "loss", top=5, null="all", loss=ensdiff.LossConfig(draws=512))
    assert att.units[0, 0] == UNIT
    assert att.influence[0, 0] > 5 * att.standard_error[0, 0]
    assert att.p_value[0, 0] < 1e-3
    assert att.q_value[0, 0] <= 0.1
    assert att.verdict[0].startswith("attributable to 37")
    # images that nobody trained on do not lead to it
    seen = set(map(bytes, data.images))
    unseen = np.stack([image for image in ensdiff.data.digits().images if image.tobytes() not in seen][:4])
    other = ensdiff.attribute(params, unseen, "loss", top=1, loss=ensdiff.LossConfig(draws=512))
    assert UNIT not in other.units


@pytest.mark.slow
def test_planted_copies_are_memorized(planted):
    params, data = planted
    result = ensdiff.contrast(params, data)
    assert UNIT in np.argsort(-result.memorization_N)[:5]
    assert result.memorization_N[UNIT] > 3 * result.memorization_error_N[UNIT]
    assert result.auc > 0.9  # 150 digits are few: nearly every pair of unit and member is told right
