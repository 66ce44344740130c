"""Names of the tensors in files of low-rank adapters: which module and which factor each belongs to."""

import re
from collections.abc import Collection, Iterable

from ensdiff.files.reading import printable

OTHER_KINDS = {
    "lora_magnitude_vector": "DoRA", "dora_scale": "DoRA", "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT",
    "boft_": "BOFT", "vera_": "VeRA", "ia3_": "IA3", "lora_mid": "a convolution in Tucker form",
    "lora_embedding_": "the adapter of an embedding", "modules_to_save": "a fully trained module",
    "diff": "a full difference of weights", "diff_b": "a full difference of biases", "bias": "a trained bias",
}  # fmt: skip
"""Parts of the names of tensors that are no pair of factors, and what they are."""
TEXT = ("text_encoder.", "text_encoder_2.", "text_encoder_3.", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_")
_HALVES = {
    "lora_A": "down", "lora_B": "up", "lora_A.default": "down", "lora_B.default": "up", "lora.down": "down",
    "lora.up": "up", "lora_linear_layer.down": "down", "lora_linear_layer.up": "up", "lora_down": "down",
    "lora_up": "up",
}  # fmt: skip
_OLD = re.compile(r"\.to_(q|k|v|out)_lora\.(?=down|up)")


def split(key: str, source: str = "the file") -> tuple[str, str]:
    """Return the module and the part (``"down"``, ``"up"`` or ``"alpha"``) that the name of a tensor states.

    Raises:
        ValueError: it belongs to a text encoder, to an adapter of another kind, or to nothing that is known.

    >>> split("unet.mid_block.attentions.0.to_q.lora_A.weight")
    ('mid_block.attentions.0.to_q', 'down')
    >>> split("lora_unet_mid_block_attentions_0_to_q.alpha")
    ('mid_block_attentions_0_to_q', 'alpha')
    """
    name = key.removeprefix("base_model.model.")
    if name.startswith(TEXT):
        raise ValueError(
            f"{source}: {printable(key)} belongs to a text encoder, whose adapters are not supported: expected "
            "adapters of the denoising network alone. Train without the text encoder; leaving its part out "
            "changes the model"
        )
    for part, kind in OTHER_KINDS.items():
        if name.endswith(f".{part}") or f".{part}." in name or (part[-1] == "_" and f".{part}" in name):
            raise ValueError(
                f"{source}: {printable(key)} is {kind}, which is not supported: expected low-rank pairs, lora_A and "
                "lora_B or lora_down and lora_up"
            )
    name = (
        name.removeprefix("unet.")
        .removeprefix("transformer.")
        .removeprefix("lora_unet_")
        .removeprefix("lora_transformer_")
    )
    if name.endswith(".alpha"):
        return _module(name.removesuffix(".alpha")), "alpha"
    name = _OLD.sub(lambda m: f".to_{m[1]}{'.0' if m[1] == 'out' else ''}.lora.", name)
    for ending, half in _HALVES.items():
        if name.endswith(f".{ending}.weight"):
            return _module(name.removesuffix(f".{ending}.weight")), half
    raise ValueError(
        f"{source}: {printable(key)} is no key of an adapter: expected names such as unet.MODULE.lora_A.weight "
        "(diffusers), base_model.model.MODULE.lora_A.weight (peft) or lora_unet_MODULE.lora_down.weight (kohya)"
    )


def _module(name: str) -> str:
    return name.replace(".processor.", ".").removesuffix(".processor")


def underscored(module: str) -> str:
    """Return a module's name in kohya's files.

    >>> underscored("mid_block.attentions.0.to_out.0")
    'mid_block_attentions_0_to_out_0'
    """
    return module.replace(".", "_")


def known_modules(modules: Collection[str]) -> dict[str, str]:
    """Return the module that each name in a file stands for, with dots or with underscores.

    Raises:
        ValueError: two modules differ only in dots and underscores.
    """
    found: dict[str, str] = {}
    for name in modules:
        if found.setdefault(underscored(name), name) != name:
            raise ValueError(f"modules {found[underscored(name)]} and {name} have the same name in kohya's files")
    return {**found, **{name: name for name in modules}}


def few(names: Iterable[str]) -> str:
    """Return the first three names as text, with the number of the rest.

    >>> few("abcde")
    'a, b, c and 2 more'
    """
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
