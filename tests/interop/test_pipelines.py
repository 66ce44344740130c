"""Pipelines of Stable Diffusion with random weights: their parts equal those of diffusers, and what is refused."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from ensdiff.interop import diffusers
from ensdiff.interop.pipelines import check_index
from tests.interop import tiny_pipeline
from tests.interop.tiny_pipeline import SIZE, TOKENS, WIDTH

INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30", "requires_safety_checker": True,
    "feature_extractor": ["transformers", "CLIPImageProcessor"], "image_encoder": [None, None],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip
"""What the pipeline of Stable Diffusion 1.5 has."""


def test_a_safety_checker_is_left_out_with_a_note():
    assert check_index(INDEX) == ("the safety checker is not used: pictures are not filtered",)
    assert check_index({**INDEX, "safety_checker": [None, None], "feature_extractor": None}) == ()


@pytest.mark.parametrize(("change", "message"), [
    ({"_class_name": "StableDiffusionXLPipeline"}, "'StableDiffusionXLPipeline' is not supported.*two text encoders"),
    ({"_class_name": "StableDiffusionControlNetPipeline"}, "'StableDiffusionControlNetPipeline' is not supported"),
    ({"_class_name": None}, "_class_name=None is not supported"),
    ({"controlnet": ["diffusers", "ControlNetModel"]}, r"the part controlnet \(ControlNetModel\) is not supported"),
    ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "the part text_encoder_2 "),
    ({"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}, "the part image_encoder "),
    ({"text_encoder": ["transformers", "T5EncoderModel"]}, "text_encoder='T5EncoderModel' is not supported"),
    ({"unet": [None, None]}, "unet=None is not supported: expected UNet2DConditionModel"),
    ({"vae": ["diffusers", "AutoencoderTiny"]}, "vae='AutoencoderTiny' is not supported"),
    ({"scheduler": None}, "the pipeline has no scheduler"),
    ({"vae": "AutoencoderKL"}, "vae='AutoencoderKL': expected its library and class"),
])  # fmt: skip
def test_other_pipelines_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        check_index({**INDEX, **change})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    for name in ("torch", "diffusers", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    folder = tmp_path_factory.mktemp("pipelines") / "sd"
    return tiny_pipeline.make(folder, scheduler="PNDMScheduler", noise={"skip_prk_steps": True}), folder


@pytest.mark.torch
@pytest.mark.slow
def test_every_part_is_that_of_diffusers(saved, rng):
    """A prompt to tokens, tokens to a prediction, latents to a picture and back: each step as diffusers does it."""
    import torch

    theirs, folder = saved
    ours = diffusers.pipeline(folder)
    assert (ours.image_shape, ours.notes) == ((SIZE, SIZE, 4), ())
    tokens = ours.text.encode(["a red cat", "bob"])
    expected, _ = theirs.encode_prompt(["a red cat", "bob"], "cpu", 1, False)
    np.testing.assert_allclose(tokens, expected.detach().numpy(), atol=2e-6)
    assert ours.condition.leaves[0].shape == (TOKENS, WIDTH)
    np.testing.assert_array_equal(ours.condition.null(1)[0], ours.text.encode([""])[0])
    assert ours.text.made(ours.condition)
    x, t = rng.normal(size=(2, SIZE, SIZE, 4)).astype(np.float32), np.array([3.0, 700.0], np.float32)
    with torch.no_grad():
        states = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
        found = theirs.unet(states, torch.from_numpy(t), torch.from_numpy(tokens)).sample.permute(0, 2, 3, 1).numpy()
        picture = theirs.vae.decode(states / 0.18215).sample.permute(0, 2, 3, 1).numpy()
        mean = theirs.vae.encode(torch.from_numpy(picture.transpose(0, 3, 1, 2).clip(-1, 1))).latent_dist.mean
    predicted = ours.model.apply(ours.params, jnp.asarray(x), jnp.asarray(t), jnp.asarray(tokens))
    np.testing.assert_allclose(predicted, found, atol=2e-5 * found.std())
    np.testing.assert_allclose(ours.schedule.abar_T, theirs.scheduler.alphas_cumprod.numpy(), rtol=1e-4)
    latents = np.asarray(ours.space.to_images(jnp.asarray(x)))
    shown = ours.vae.decode(latents)
    np.testing.assert_allclose(shown, np.clip(picture / 2 + 0.5, 0, 1), atol=1e-5)
    np.testing.assert_allclose(ours.vae.encode(shown).mean, mean.permute(0, 2, 3, 1).numpy(), atol=1e-4)


@pytest.mark.torch
@pytest.mark.slow
def test_parts_that_do_not_fit_together(saved, tmp_path):
    import diffusers as package

    folder = tmp_path / "sd"
    shutil.copytree(saved[1], folder)
    package.UNet2DConditionModel(**tiny_pipeline.UNET | {"cross_attention_dim": 24}).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match="tokens and of those that the U-Net takes differ: 16 and 24"):
        diffusers.pipeline(folder)
    config = json.loads((saved[1] / "unet" / "config.json").read_text())
    shutil.copytree(saved[1] / "unet", folder / "unet", dirs_exist_ok=True)
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "sample_size": None}))
    with pytest.raises(ValueError, match="has no sample_size"):
        diffusers.pipeline(folder)
    (folder / "model_index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"model_index.json does not exist"):
        diffusers.pipeline(folder)
