"""Predictions, samples, counterfactuals and the Jacobian against numbers computed by the reference implementations."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import ensdiff
from ensdiff.denoise import Noise, denoise
from ensdiff.interop import channels_last, diffusers, genens

PARITY = pathlib.Path(__file__).parent.parent.parent / "shared" / "parity"
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not PARITY.is_dir(), reason="the reference fixtures (shared/parity) are not beside the project"),
]


def close(name, got, want, tolerance, *, relative_to_spread=False):
    want = channels_last(want)
    error = np.abs(np.asarray(got) - want).max() / (want.std() if relative_to_spread else 1.0)
    print(f"{name}: largest difference {error:.2e} (allowed {tolerance:.0e})")
    assert error <= tolerance


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
def test_predictions(which, request):
    params, expected = request.getfixturevalue(which)
    eps_KBHWC = ensdiff.predict(params, channels_last(expected["x"]), expected["t"])
    close(f"{which} eps", eps_KBHWC, expected["eps"], 2e-5, relative_to_spread=True)


def test_genens_configuration_is_inferred(gen):
    model = gen[0].model
    assert (model.channels, model.multipliers, model.blocks, model.attention_levels) == (32, (1, 2), 1, (1,))


def test_genens_samples_and_ablations(gen):
    params, expected = gen
    noise = channels_last(expected["noise"])
    for name, kept in (("sample_all", [0, 1, 2, 3]), ("sample_01", [0, 1]), ("sample_23", [2, 3]), ("sample_1", [1])):
        weights = np.zeros(4)
        weights[kept] = 1 / len(kept)
        samples = ensdiff.sample(params, noise=noise, sampler=genens.SAMPLER, weights=weights)
        close(name, samples.images, expected[name], 1e-3)


def test_genens_jacobian(gen):
    params, expected = gen
    samples = ensdiff.sample(params, noise=channels_last(expected["noise"]), sampler=genens.SAMPLER)
    jacobian, want = ensdiff.jacobian(params, samples), channels_last(expected["jacobian"])
    error = np.linalg.norm(jacobian - want) / np.linalg.norm(want)
    print(f"jacobian: relative L2 difference {error:.2e} (allowed 1e-02)")
    assert error <= 1e-2


def test_diffusers_factual_and_counterfactuals(dif):
    params, expected = dif
    noise = channels_last(expected["noise"])
    given = Noise(jnp.tile(jnp.arange(2), 7), array=jnp.asarray(noise))
    weights = np.concatenate([params.code.factual(), params.code.ablate(range(6))])
    x = denoise(params, diffusers.SAMPLER, given, np.repeat(weights, 2, 0)).reshape(7, 2, 16, 16, 1)
    close("factual", x[0], expected["factual"], 1e-3)
    close("counterfactuals", x[1:], expected["counterfactuals"], 1e-3)
