"""Predictions, samples, counterfactuals and the Jacobian compared with those of the reference implementations."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import ensdiff
from ensdiff.interop import channels_last, diffusers, genens
from ensdiff.sampling.denoise import Exogenous, Noise, denoise

PARITY = pathlib.Path(__file__).parents[3] / "shared" / "parity"
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not PARITY.is_dir(), reason="the reference fixtures (shared/parity) are not beside the project"),
]


@pytest.fixture
def close(record_property):
    """Return a function that compares an array with a reference, and reports the largest difference after all tests."""

    def check(name, got, want, tolerance, *, measure="absolute"):
        got, want = np.asarray(got), channels_last(want)
        error = {
            "absolute": lambda: np.abs(got - want).max(),
            "of the standard deviation": lambda: np.abs(got - want).max() / want.std(),
            "relative L2": lambda: np.linalg.norm(got - want) / np.linalg.norm(want),
        }[measure]()
        record_property("largest difference", f"{name} {error:.1e}, {measure} (allowed {tolerance:.0e})")
        assert error <= tolerance

    return check


@pytest.fixture(scope="module", autouse=True)
def _torch():
    pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture(scope="module")
def gen():
    return genens.load(PARITY / "genens", image_size=8), np.load(PARITY / "genens" / "expected.npz")


@pytest.fixture(scope="module")
def dif():
    expected = np.load(PARITY / "diffusers" / "expected.npz")
    return diffusers.load(PARITY / "diffusers", expected["code"]), expected


@pytest.mark.parametrize("which", ["gen", "dif"])
def test_predictions(which, request, close):
    params, expected = request.getfixturevalue(which)
    eps_KBHWC = ensdiff.predict(params, channels_last(expected["x"]), expected["t"])
    close(f"{which} eps", eps_KBHWC, expected["eps"], 2e-5, measure="of the standard deviation")


def test_genens_configuration_is_inferred(gen):
    model = gen[0].model
    assert (model.channels, model.multipliers, model.blocks, model.attention_levels) == (32, (1, 2), 1, (1,))


@pytest.fixture(scope="module")
def samples(gen):
    params, expected = gen
    return ensdiff.sample(params, noise=channels_last(expected["noise"]), sampler=genens.SAMPLER)


def test_genens_samples_and_ablations(gen, samples, close):
    params, expected = gen
    close("sample_all", samples.images, expected["sample_all"], 1e-3)
    pairs = ensdiff.Code.from_matrix([[0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1]])
    images = ensdiff.counterfactuals(params, samples, [0, 1, 2], code=pairs)
    for name, found in zip(("sample_01", "sample_23", "sample_1"), images, strict=True):
        close(name, found, expected[name], 1e-3)


def test_genens_jacobian(gen, samples, close):
    """The derivatives of a thousand steps take long, so they are of one sample."""
    params, expected = gen
    close("jacobian", ensdiff.jacobian(params, samples[:1]), expected["jacobian"][:, :1], 1e-2, measure="relative L2")


def test_diffusers_factual_and_counterfactuals(dif, close):
    params, expected = dif
    noise = channels_last(expected["noise"])
    given = Exogenous(Noise(jnp.tile(jnp.arange(2), 7), array=jnp.asarray(noise)))
    weights = np.concatenate([params.code.factual(), params.code.ablate(range(6))])
    x = denoise(params, diffusers.SAMPLER, given, np.repeat(weights, 2, 0)).reshape(7, 2, 16, 16, 1)
    close("factual", x[0], expected["factual"], 1e-3)
    close("counterfactuals", x[1:], expected["counterfactuals"], 1e-3)
