"""Text encoders with random weights: rows equal to those of a pipeline of diffusers, identity, and errors."""

import json
import shutil

import numpy as np
import pytest

from ensdiff.interop import text_encoder
from ensdiff.interop.text import description_of
from ensdiff.models.condition import ConditionSpec
from tests.interop import tiny_pipeline
from tests.interop.tiny_pipeline import TOKENS, WIDTH

pytestmark = [pytest.mark.torch, pytest.mark.slow]
PROMPTS = ["a cat", "", "red dog, by bob", "a cat"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a pipeline with random weights and the folder in which it was saved."""
    for name in ("torch", "diffusers", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    folder = tmp_path_factory.mktemp("text") / "pipeline"
    return tiny_pipeline.make(folder), folder


@pytest.fixture
def copy(saved, tmp_path):
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(saved[1] / name, tmp_path / name)
    return tmp_path


def test_rows_are_those_of_the_pipeline(saved):
    pipeline, folder = saved
    text = text_encoder(folder)
    rows = text.encode(PROMPTS)
    assert rows.shape == (4, text.tokens, text.width) == (4, TOKENS, WIDTH)
    assert rows.dtype == np.float32
    expected, null = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, negative_prompt=[""] * 4)
    np.testing.assert_allclose(rows, expected.detach().numpy(), atol=2e-6)
    np.testing.assert_allclose(text.null, null[0].detach().numpy(), atol=2e-6)
    assert np.abs(rows[0] - rows[2]).max() > 0.1


def test_a_row_does_not_depend_on_the_others(saved):
    text = text_encoder(saved[1])
    rows = text.encode(PROMPTS)
    np.testing.assert_array_equal(rows[0], rows[3])
    np.testing.assert_array_equal(rows[1], text.null)
    np.testing.assert_array_equal(rows[2], text.encode(PROMPTS[2:3])[0])


def test_prompts_are_never_cut(saved):
    text = text_encoder(saved[1])
    assert text.length("cat dog") == 2
    text.encode(["cat " * (TOKENS - 2)])  # exactly as long as it may be
    for prompt, count in (("cat " * (TOKENS - 1), TOKENS - 1), ("zzzz" * 100, 400)):
        with pytest.raises(ValueError, match=rf"has {count} tokens, and the text encoder takes at most {TOKENS - 2}"):
            text.encode(["a cat", prompt])
    with pytest.raises(TypeError, match="expected a list of texts"):
        text.encode("a cat")
    with pytest.raises(ValueError, match="no prompts"):
        text.encode([])


def test_encoders_are_identified_by_their_content(saved, copy):
    text = text_encoder(saved[1])
    assert text_encoder(copy).describe() == text.describe() == description_of(copy)
    rows = ConditionSpec.of(text.encode(PROMPTS)).with_null(text.null, text.describe())
    assert text.made(rows)
    assert not text.made(ConditionSpec.of(text.encode(PROMPTS)))
    assert not text.made(None)
    config = json.loads((copy / "tokenizer" / "tokenizer_config.json").read_text())
    (copy / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 9}))
    other = text_encoder(copy)
    assert other.tokens == 9
    assert not other.made(rows)


def test_old_names_and_half_precision(saved, copy):
    """Files of earlier versions of transformers have a prefix and the numbers of places; others are float16."""
    import torch
    from safetensors.torch import load_file, save_file

    plain = text_encoder(saved[1]).encode(["a red cat"])
    file = copy / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    old = {
        f"text_model.{name}": value for name, value in weights.items() if not name.startswith("text_model.")
    } or weights
    save_file({**old, "text_model.embeddings.position_ids": torch.arange(TOKENS)[None]}, file, {"format": "pt"})
    np.testing.assert_array_equal(text_encoder(copy).encode(["a red cat"]), plain)
    file.unlink()
    half = {name: value.half() for name, value in weights.items()}
    save_file(half, copy / "text_encoder" / "model.fp16.safetensors", {"format": "pt"})
    found = text_encoder(copy)
    np.testing.assert_allclose(found.encode(["a red cat"]), plain, atol=2e-2)
    assert found.encode(["a red cat"]).dtype == np.float32


def test_errors(saved, copy):
    from safetensors.torch import load_file, save_file

    file, config = copy / "text_encoder" / "model.safetensors", copy / "text_encoder" / "config.json"
    weights, options = load_file(file), json.loads(config.read_text())
    less = {name: value for name, value in weights.items() if "layers.1.mlp.fc1.weight" not in name}
    save_file(less, file, {"format": "pt"})
    with pytest.raises(ValueError, match="does not hold the encoder's weights: missing_keys .*fc1"):
        text_encoder(copy)
    save_file(weights, file, {"format": "pt"})
    for change, message in (
        ({"model_type": "t5"}, "model_type='t5' is not supported"),
        ({"use_attention_mask": True}, "use_attention_mask=True is not supported"),
        ({"max_position_embeddings": TOKENS + 1}, "text encoder"),
    ):
        config.write_text(json.dumps({**options, **change}))
        with pytest.raises(ValueError, match=message):
            text_encoder(copy)
    config.write_text(json.dumps(options))
    file.write_bytes(b"x")
    with pytest.raises(ValueError, match="cannot be read as a text encoder"):
        text_encoder(copy)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights: expected model.safetensors or"):
        text_encoder(copy)
    with pytest.raises(FileNotFoundError, match=r"config.json does not exist"):
        text_encoder(copy / "nowhere")
    (copy / "text_encoder_2").mkdir()
    with pytest.raises(ValueError, match="has also text_encoder_2: pipelines with several text encoders"):
        text_encoder(copy)
