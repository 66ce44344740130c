"""A planted copy is found: by loss, the unit that contains one digit eight times has the most influence on this digit.

No other test uses a network that has learned something: other tests train for a few steps, and the notebooks and
studies only print their results. Training takes most of the time.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import ensdiff

UNIT = 37
ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def planted_digits():
    """Return 150 digits with one image per unit, except that unit 37 contains its image eight times."""
    digits = ensdiff.data.digits()
    chosen = np.sort(np.random.default_rng(0).permutation(digits.items)[:150])
    index = np.concatenate([chosen, np.repeat(chosen[UNIT], 7)])
    units = np.concatenate([np.arange(150), np.full(7, UNIT)])
    return ensdiff.data.arrays(digits.images[index], groups=units)


def train(folder):
    model = ensdiff.UNetConfig(channels=8, norm_groups=8, multipliers=(1, 2), downsample="pool", upsample="nearest")
    ensdiff.train(
        planted_digits(), ensdiff.Code.balanced(16, 150, seed=0), model, steps=500, batch_size=16, learning_rate=4e-3,
        ema=0.99, run_dir=folder, progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Train in a separate process: with the compiler optimisation of these tests, long programs are slow."""
    folder = tmp_path_factory.mktemp("planted") / "run"
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "fusion_emitters" in flag]
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags)}
    command = [sys.executable, "-c", f"from tests.attribution.test_planted import train; train({str(folder)!r})"]
    subprocess.run(command, cwd=ROOT, env={**environment, "JAX_NUM_CPU_DEVICES": "2"}, check=True)
    return ensdiff.load(folder), planted_digits()


def test_planted_copies_are_ranked_first_by_loss(planted):
    params, data = planted
    image = data.images[data.items_of(UNIT)[:1]]
    att = ensdiff.attribute(params, image, "loss", top=5, null="all", loss=ensdiff.LossConfig(draws=512))
    assert att.units[0, 0] == UNIT
    assert att.influence[0, 0] > 5 * att.standard_error[0, 0]
    assert att.p_value[0, 0] < 1e-3
    assert att.q_value[0, 0] <= 0.1
    assert att.verdict[0].startswith("attributable to 37")
    # images that no member trained on are not attributed to it
    seen = set(map(bytes, data.images))
    unseen = np.stack([image for image in ensdiff.data.digits().images if image.tobytes() not in seen][:4])
    other = ensdiff.attribute(params, unseen, "loss", top=1, loss=ensdiff.LossConfig(draws=512))
    assert UNIT not in other.units


def test_planted_copies_are_memorized(planted):
    params, data = planted
    result = ensdiff.contrast(params, data)
    assert UNIT in np.argsort(-result.memorization_N)[:5]
    assert result.memorization_N[UNIT] > 3 * result.memorization_error_N[UNIT]
    assert result.auc > 0.8  # 150 digits are few, but most pairs of unit and member are classified correctly
