"""A tiny Stable Diffusion pipeline, fine-tuned by adapters with artists as units, and opened again by diffusers."""

import dataclasses

import jax
import numpy as np
import pytest

import ensdiff
from ensdiff.ensemble.blending import blend
from ensdiff.interop import diffusers
from ensdiff.models import adapted

pytestmark = [pytest.mark.torch, pytest.mark.slow]
pytest.importorskip("transformers", reason="needs the text extra")
pytest.importorskip("peft", reason="diffusers reads adapters with it")

ARTISTS = ("ada", "bob", "cat", "red")
TARGETS = r"attention/.*(query|key|value|out)/kernel$"
STEPS = {"steps": 4, "sampler": "ddim", "guidance": 3.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of the pipeline, and the pipeline as diffusers has it."""
    from tests.interop import tiny_pipeline

    folder = tmp_path_factory.mktemp("sd") / "pipeline"
    return folder, tiny_pipeline.make(folder)


@pytest.fixture(scope="module")
def pipe(made):
    return diffusers.pipeline(made[0])


@pytest.fixture(scope="module")
def data(pipe):
    """24 pictures of 4 artists: latents, and the embeddings of their captions."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    artist = np.arange(24) % 4
    pictures[..., 0] = 60 * artist[:, None, None]  # what an artist's pictures have in common
    captions = [f"red {ARTISTS[i]}" for i in artist]
    latents = pipe.vae.encode(pictures).mean.astype(np.float16)
    plain = ensdiff.data.arrays(latents, groups=artist, space=pipe.space)
    tokens = pipe.text.encode(captions)
    return plain.with_condition(tokens, null=pipe.text.null, encoder=pipe.text.describe())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "run"


@pytest.fixture(scope="module")
def params(pipe, data, run):
    model = adapted(pipe.model, pipe.params, rank=2, alpha=4.0, targets=TARGETS)
    code = ensdiff.Code.balanced(8, 4, seed=0)
    fields = {"steps": 3, "batch_size": 2, "learning_rate": 3e-2, "warmup": 0, "progress": False, "run_dir": run}
    return ensdiff.train(data, code, model, schedule=pipe.schedule, combine="parameters", **fields)


def test_a_prompt_is_drawn_with_and_without_an_artist(pipe, params):
    prompt = pipe.text.encode(["a red cat, ada"])
    samples = ensdiff.sample(params, 0, 2, cond=prompt, **STEPS)
    without = ensdiff.counterfactuals(params, samples, [0])[0]
    assert pipe.vae.decode(without).shape == (2, 16, 16, 3)
    assert np.abs(without - np.asarray(samples.images)).max() > 1e-3
    found = ensdiff.attribute(params, samples, "exact", top=4, null=0)
    assert sorted(found.units[0]) == [0, 1, 2, 3]
    own = np.linalg.norm((without - np.asarray(samples.images)).reshape(2, -1), axis=1)
    np.testing.assert_allclose(found.influence[found.units == 0], own, rtol=1e-4)
    with pytest.raises(ValueError, match="at most 10"):
        pipe.text.encode(["a b c d e f g h i j k l m n o p"])


def test_the_fine_tune_is_certified_and_forgets(params, data, run, tmp_path):
    certificate = ensdiff.forget(run, [2], tmp_path / "without")
    assert certificate.verify(tmp_path / "without", data=data).ok
    words = " ".join(certificate.values["limits"])
    assert "The base" in words
    assert "encoder" in words
    rest = ensdiff.load(tmp_path / "without")
    assert rest.members == 4
    assert ensdiff.load(run).fingerprint == params.fingerprint


@pytest.mark.parametrize("average", [True, False])
def test_diffusers_opens_the_adapters_and_predicts_the_same(made, pipe, params, tmp_path, average):
    """The average of the members that never saw artist 1, and one of them alone."""
    import torch
    from diffusers import StableDiffusionPipeline

    from ensdiff.interop import lora

    params = dataclasses.replace(params, scale=1.25) if average else params
    saved = lora.save(params, tmp_path / "lora", removed=[1], average=average)
    weights_K = params.code.ablate([1])[0]
    file = saved.files[0]
    if not average:
        k = int(np.flatnonzero(weights_K)[0])
        weights_K = np.eye(params.members)[k]
        assert f"member{k}" in str(file)
    theirs = StableDiffusionPipeline.from_pretrained(made[0])
    theirs.load_lora_weights(str(file.parent), weight_name=file.name)
    rng = np.random.default_rng(1)
    x_BHWC, t_B = rng.normal(size=(2, 8, 8, 4)).astype(np.float32), np.array([10, 700])
    tokens = pipe.text.encode(["a dog, bob", "ada"])
    with torch.no_grad():
        expected = theirs.unet(
            torch.tensor(x_BHWC.transpose(0, 3, 1, 2)), torch.tensor(t_B), torch.tensor(np.asarray(tokens))
        ).sample.numpy()
    one = blend(params, weights_K[None].astype(np.float32))
    theta = jax.tree.map(lambda a: a[0], one.params)
    ours = np.asarray(jax.jit(one.model.apply)(theta, x_BHWC, t_B.astype(np.float32), np.asarray(tokens)))
    np.testing.assert_allclose(ours, expected.transpose(0, 2, 3, 1), rtol=0, atol=2e-5 * expected.std())
    plain = made[1].unet
    with torch.no_grad():
        base = plain(torch.tensor(x_BHWC.transpose(0, 3, 1, 2)), torch.tensor(t_B), torch.tensor(np.asarray(tokens)))
    assert np.abs(base.sample.numpy() - expected).max() > 100 * 2e-5 * expected.std()


def test_adapters_of_diffusers_are_an_ensemble(params, pipe, tmp_path):
    """The written members, with the code beside them, generate what the ensemble generates."""
    from ensdiff.interop import lora

    lora.save(params, tmp_path / "lora")
    whole = jax.tree.map(lambda a: np.asarray(a)[None], params.base)
    base = dataclasses.replace(
        params, params=whole, base=None, base_digest=None, model=pipe.model, combine="predictions", code=_Single()
    )
    found = lora.load(base, tmp_path / "lora")
    prompt = pipe.text.encode(["a red cat, ada"])
    one, other = (ensdiff.sample(some, 0, 1, cond=prompt, **STEPS).images for some in (params, found))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert found.code == params.code


class _Single:
    members = 1
