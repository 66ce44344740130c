"""A tiny Stable Diffusion pipeline with random weights, made by diffusers and transformers and saved to a folder."""

import inspect
import json
import pathlib
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.!'-"
WORDS = ("cat", "dog", "red", "ada", "bob")
"""Words that are one token; in others, each letter is one."""
TOKENS, WIDTH = 12, 16
"""Tokens of a prompt, with the marks of its start and end; and the width of their embeddings."""
SIZE, FACTOR = 8, 2
"""Side of the latents, and the pixels per latent pixel in each direction."""
UNET: dict[str, Any] = {
    "sample_size": SIZE, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": WIDTH, "attention_head_dim": 2, "norm_num_groups": 4,
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4, "scaling_factor": 0.18215,
}  # fmt: skip
NOISE: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip

IMPORTS = (
    "diffusers.models.autoencoders.autoencoder_kl", "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)  # fmt: skip
"""What programs import for a pipeline, in seconds; see `tests.forks.Programs.load`."""


def save_vocabulary(folder: pathlib.Path) -> None:
    """Write ``vocab.json`` and ``merges.txt`` of a CLIP tokenizer that knows `LETTERS` and `WORDS`."""
    folder.mkdir(parents=True)
    merges: list[str] = []
    for word in WORDS:
        for end in range(1, len(word)):
            right = word[end] + ("</w>" if end == len(word) - 1 else "")
            merges += [] if f"{word[:end]} {right}" in merges else [f"{word[:end]} {right}"]
    parts = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *(merge.replace(" ", "") for merge in merges)]
    names = [*parts, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS})
    )


def make(folder: pathlib.Path, seed: int = 0, *, unet: Any = None, noise: Any = None, scheduler: str = "DDIMScheduler"):
    """Make a pipeline with random weights, save it to a new folder, and return it as diffusers has it.

    Args:
        folder: the folder, which must not exist.
        seed: of the random weights.
        unet: arguments of `UNet2DConditionModel` that differ from `UNET`.
        noise: arguments of the scheduler that differ from `NOISE`, of which those that it has are used.
        scheduler: the class of the scheduler.
    """
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    kind = getattr(diffusers, scheduler)
    known = inspect.signature(kind.__init__).parameters
    steps = {name: value for name, value in NOISE.items() if name in known} | (noise or {})
    torch.manual_seed(seed)
    save_vocabulary(folder / "words")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "words")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=24, num_attention_heads=2, num_hidden_layers=2,
        max_position_embeddings=TOKENS, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    text = CLIPTextModel(config)
    with torch.no_grad():  # initial weights are so small that all prompts are alike
        for parameter in text.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**VAE).eval(),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(**UNET | (unet or {})).eval(),
        scheduler=kind(**steps),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    for file in (folder / "words").iterdir():
        file.unlink()
    (folder / "words").rmdir()
    return pipeline
