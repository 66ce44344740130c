"""The configuration of low-rank adapters that peft and diffusers write, and what it says of each module's alpha."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ensdiff.files.reading import printable
from ensdiff.interop.options import Option, check_options

_NONE = "nothing of this kind"

PEFT: dict[str, Option] = {
    "peft_type": Option("fixed", "pairs of low-rank factors", ("LORA",)),
    "r": Option("honoured", "the rank, which must be that of the factors"),
    "lora_alpha": Option("honoured", "the factors' product is multiplied by lora_alpha / r"),
    "rank_pattern": Option("honoured", "ranks of some modules"),
    "alpha_pattern": Option("honoured", "lora_alpha of some modules"),
    "use_rslora": Option("honoured", "divide by the square root of the rank instead of the rank", (False, True)),
    "use_dora": Option("fixed", "no DoRA", (False,)),
    "fan_in_fan_out": Option("fixed", "weights as (out, in)", (False,)),
    "bias": Option("fixed", "no trained biases", ("none",)),
    "lora_bias": Option("fixed", "no biases of the factors", (False,)),
    "modules_to_save": Option("fixed", "no fully trained modules", (None,)),
    "init_lora_weights": Option(
        "fixed", "how training started: values that change the base's weights are refused", (
            True, False, "gaussian", "eva", "orthogonal", "mica",
        ),
    ),
    "use_qalora": Option("fixed", _NONE, (False,)),
    **{name: Option("fixed", _NONE, (None,)) for name in (
        "layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "use_bdlora",
        "kasa_config", "monteclora_config", "arrow_config", "megatron_config",
    )},
    "target_modules": Option("irrelevant", "which modules have factors; the file shows it"),
    **{name: Option("irrelevant", "as target_modules") for name in (
        "exclude_modules", "layers_to_transform", "layers_pattern",
    )},
    "base_model_name_or_path": Option("irrelevant", "a name of the base; shapes and names of modules are checked"),
    **{name: Option("irrelevant", "how it was trained") for name in (
        "task_type", "inference_mode", "lora_dropout", "eva_config", "corda_config", "lora_ga_config", "loftq_config",
        "velora_config", "qalora_group_size", "ensure_weight_tying",
    )},
    **{name: Option("irrelevant", "how it was written") for name in (
        "auto_mapping", "peft_version", "revision", "megatron_core", "runtime_config",
    )},
}  # fmt: skip
"""``adapter_config.json``, and the header's ``lora_adapter_metadata``: arguments of peft's `LoraConfig`. Unknown fields
that are null, false or empty are ignored, because newer versions of peft add fields that are switched off so."""


def alpha_rule(config: Mapping[str, Any], source: str) -> Callable[[str, int], float]:
    """Return the function that gives a module's alpha, from its name and the rank of its factors.

    The function raises ValueError if the configuration states another rank.

    Raises:
        ValueError: a field or a value is not supported. The message names it and the source.

    >>> alpha_rule({"r": 4, "lora_alpha": 2, "alpha_pattern": {"to_q": 8}}, "a.json")("mid_block.attentions.0.to_q", 4)
    8.0
    """
    given = {name: None if value in ([], {}) else value for name, value in config.items()}
    check_options({n: v for n, v in given.items() if n in PEFT or v not in (None, False)}, PEFT, source)
    missing = [name for name in ("r", "lora_alpha") if name not in given]
    if missing:
        raise ValueError(f"{source}: {missing[0]} is missing: expected the rank r and lora_alpha")
    shared = {name: _number(given[name], name, source) for name in ("r", "lora_alpha")}
    patterns = {name: _patterns(given.get(name), name, source) for name in ("rank_pattern", "alpha_pattern")}

    def of(name: str, module: str, otherwise: float) -> float:
        return next((value for pattern, value in patterns[name] if pattern.match(module)), otherwise)

    def alpha(module: str, rank: int) -> float:
        expected = of("rank_pattern", module, shared["r"])
        if rank != expected:
            raise ValueError(f"{source}: {printable(module)} has rank {expected:g} there, and {rank} in the weights")
        value = of("alpha_pattern", module, shared["lora_alpha"])
        return value * math.sqrt(rank) if given.get("use_rslora") else value

    return alpha


def _number(value: Any, name: str, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 2**53:
        raise ValueError(f"{source}: {name} has the value {value!r}: expected a number")
    return float(value)


def _patterns(some: Any, name: str, source: str) -> Collection[tuple[re.Pattern[str], float]]:
    if some is not None and not isinstance(some, dict):
        raise ValueError(f"{source}: {name}={some!r}: expected numbers by module")
    return [(_pattern(text, name, source), _number(value, name, source)) for text, value in (some or {}).items()]


def _pattern(text: str, name: str, source: str) -> re.Pattern[str]:
    """Return peft's meaning of a pattern: it matches the end of a module's name, from a dot or from the start.

    Patterns are restricted, because some regular expressions take forever to find out that they do not match.
    """
    if len(text) > 300 or text.count("*") > 2 or not re.fullmatch(r"\^?([\w-]|\\?\.|\.\*)*\$?", text, re.ASCII):
        raise ValueError(
            f"{source}: the pattern {printable(text[:80])} of {name} is not supported: expected names of modules, with "
            "at most two '.*'"
        )
    return re.compile(rf"(.*\.)?({text})$")
