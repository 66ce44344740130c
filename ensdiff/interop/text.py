"""Text encoders of text-to-image models: transformers' ``CLIPTextModel`` and its tokenizer, run by PyTorch."""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ensdiff.files.checksums import file_sum
from ensdiff.files.reading import installed, read_object

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.fp16.safetensors")
"""Files of weights; the first that exists is read."""
TOKENIZER = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
"""Files that a tokenizer is read from."""
MOST_TOKENS = 1024
"""Tokenizers without a limit of their own state an astronomical one."""


class TextEncoder:
    """A text encoder in PyTorch, which turns prompts into the token embeddings of a condition. Made by `text_encoder`.

    Attributes:
        digest: a SHA-256 of the files that the tokenizer and the encoder were read from, as hexadecimal digits.
        tokens: L, the number of tokens of every prompt, with the marks of its start and end and padding.
        width: D, the width of an embedding.
    """

    def __init__(self, tokenizer: Any, network: Any, digest: str):
        self.digest = digest
        self._tokenizer, self._network = tokenizer, network
        places = int(network.config.max_position_embeddings)
        limit = int(tokenizer.model_max_length)
        self.tokens = limit if limit <= MOST_TOKENS else places
        self.width = int(network.config.hidden_size)
        if self.tokens > places:
            raise ValueError(f"the tokenizer makes {self.tokens} tokens, and the text encoder takes {places}")
        if len(tokenizer) > network.config.vocab_size:
            raise ValueError(f"the tokenizer knows {len(tokenizer)} tokens, the encoder {network.config.vocab_size}")

    def describe(self) -> str:
        """Return what identifies the encoder by its content: its class and digest.

        A condition records it (`Leaf.encoder`), so that prompts are embedded by the encoder of the training data.
        """
        return _name(self.digest)

    def made(self, spec: Any) -> bool:
        """Return whether this encoder made the rows of a condition, by the digest in its `ConditionSpec`."""
        return spec is not None and any(self.describe() in (leaf.encoder or "") for leaf in spec.leaves)

    def encode(self, prompts: Sequence[str]) -> Float[np.ndarray, "B L D"]:
        """Return the token embeddings of prompts, as a pipeline of diffusers gives them to its network.

        Each distinct prompt is embedded on its own, so that its row does not depend on the others.

        Raises:
            TypeError: it is one text, not a list of them.
            ValueError: there is no prompt, or one has more tokens than the encoder takes; the message gives both
                numbers. Prompts are never cut.
        """
        if isinstance(prompts, str | bytes) or not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError(f"prompts={prompts!r:.60}: expected a list of texts")
        if not len(prompts):
            raise ValueError("no prompts: expected at least one text")
        distinct = dict.fromkeys(prompts)
        ids = [self._ids(prompt) for prompt in distinct]  # a prompt that is too long is found before anything is run
        rows = {prompt: self._run(some) for prompt, some in zip(distinct, ids, strict=True)}
        return np.stack([rows[prompt] for prompt in prompts])

    @functools.cached_property
    def null(self) -> Float[np.ndarray, "L D"]:
        """The embedding of the empty prompt, which stands for no condition in classifier-free guidance."""
        return self.encode([""])[0]

    def length(self, prompt: str) -> int:
        """Return the number of tokens of a prompt, without the marks of its start and end."""
        return len(self._tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])

    def _ids(self, prompt: str) -> list[int]:
        whole = self._tokenizer(prompt, padding="max_length", max_length=self.tokens, truncation=False, verbose=False)
        if len(whole["input_ids"]) > self.tokens:
            length = self.length(prompt)
            most = self.tokens - (len(whole["input_ids"]) - length)
            shown = prompt if len(prompt) <= 60 else f"{prompt[:60]}..."
            raise ValueError(
                f"the prompt {shown!r} has {length} tokens, and the text encoder takes at most {most} (besides the "
                "marks of start and end): shorten it"
            )
        return whole["input_ids"]

    def _run(self, ids: list[int]) -> np.ndarray:
        import torch

        with torch.no_grad():
            hidden = self._network(torch.tensor([ids], device=self._network.device))[0]
        return hidden[0].float().cpu().numpy()


def text_encoder(directory: str | os.PathLike, *, device: str | None = None) -> TextEncoder:
    """Open the text encoder and tokenizer of a saved pipeline of diffusers. Nothing is downloaded.

    Args:
        directory: the folder of the pipeline, or any folder with the folders ``text_encoder`` and ``tokenizer``.
        device: a device of PyTorch; by default ``"cuda"`` if there is one, or else ``"cpu"``.

    Raises:
        FileNotFoundError: a folder, the configuration, the weights or the vocabulary do not exist.
        ImportError: torch or transformers is not installed.
        ValueError: there are several text encoders or it is of another kind, or its files cannot be read or lack
            weights.
    """
    root = pathlib.Path(directory)
    encoder, words, files = _files(root)
    weights = files[1]
    with installed("a text encoder needs PyTorch and transformers", "text"):
        import torch
        from transformers import CLIPTextModel, CLIPTokenizer
        from transformers.utils import logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # the weights are read in a moment
    try:
        tokenizer = CLIPTokenizer.from_pretrained(words, local_files_only=True)
        network, found = CLIPTextModel.from_pretrained(
            encoder,
            local_files_only=True,
            use_safetensors=weights.suffix == ".safetensors",
            variant="fp16" if ".fp16." in weights.name else None,
            output_loading_info=True,
        )
    except Exception as error:  # damaged files can raise anything
        raise ValueError(f"{root} cannot be read as a text encoder and its tokenizer: {error}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    for kind in ("missing_keys", "mismatched_keys"):
        if found.get(kind):
            raise ValueError(
                f"{weights} does not hold the encoder's weights: {kind} {sorted(map(str, found[kind]))[:3]}"
            )
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    digest = _digest(files)
    try:
        return TextEncoder(tokenizer, network.float().to(place).eval(), digest)
    except ValueError as error:
        raise ValueError(f"{root}: {error}") from error


def description_of(directory: str | os.PathLike) -> str:
    """Return what ``text_encoder(directory).describe()`` would be, from the files alone: PyTorch is not needed.

    Raises:
        FileNotFoundError: a folder, the configuration, the weights or the vocabulary do not exist.
        ValueError: there are several text encoders, or it is of another kind.
    """
    return _name(_digest(_files(pathlib.Path(directory))[2]))


def _name(digest: str) -> str:
    return f"CLIPTextModel, SHA-256 of the files {digest}"


def _files(root: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path, list[pathlib.Path]]:
    """Return the folders of the encoder and of its tokenizer, and the files: configuration, weights and vocabulary."""
    more = [name for name in ("text_encoder_2", "text_encoder_3") if (root / name).is_dir()]
    if more:
        raise ValueError(
            f"{root} has also {' and '.join(more)}: pipelines with several text encoders are not supported"
        )
    encoder, words = root / "text_encoder", root / "tokenizer"
    config = read_object(encoder / "config.json")
    if config.get("model_type") != "clip_text_model":
        raise ValueError(
            f"{encoder / 'config.json'}: model_type={config.get('model_type')!r} is not supported: expected "
            "'clip_text_model', of CLIPTextModel"
        )
    if config.get("use_attention_mask"):
        raise ValueError(f"{encoder / 'config.json'}: use_attention_mask=True is not supported: expected False")
    weights = next((encoder / name for name in WEIGHTS if (encoder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{encoder} holds no weights: expected {' or '.join(WEIGHTS)}")
    vocabulary = [words / name for name in TOKENIZER if (words / name).is_file()]
    if not {"vocab.json", "tokenizer.json"} & {file.name for file in vocabulary}:
        raise FileNotFoundError(f"{words} holds no vocabulary: expected vocab.json and merges.txt, or tokenizer.json")
    return encoder, words, [encoder / "config.json", weights, *vocabulary]


def _digest(files: Iterable[pathlib.Path]) -> str:
    """Return a SHA-256 of the contents and names of files, each within its folder."""
    sums = {f"{file.parent.name}/{file.name}": file_sum(file) for file in files}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
