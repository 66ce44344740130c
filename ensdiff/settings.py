"""Checks of the types and choices of settings, so that a wrong setting is reported where it is given."""

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Hashable
from typing import Any


def check_fields(settings: Any) -> None:
    """Check every field of a settings dataclass against its annotation. Call it in ``__post_init__``.

    Raises:
        ValueError: see `check_value`.
    """
    kind: Any = type(settings)
    for name, hint in _hints(kind).items():
        check_value(name, getattr(settings, name), hint)


def check_value(name: str, value: Any, hint: Any) -> None:
    """Check one value against a type annotation.

    Raises:
        ValueError: the value has the wrong type, is not one of a ``Literal``'s choices, or is a number that is not
            finite. The message gives the name, the value and what was expected.

    >>> check_value("decay", "linear", typing.Literal["constant", "cosine"])
    Traceback (most recent call last):
    ValueError: decay='linear': expected one of 'constant', 'cosine'
    """
    if not _fits(value, hint):
        raise ValueError(f"{name}={value!r}: expected {_words(hint)}")


@functools.cache
def _hints(kind: Hashable) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


def _fits(value: Any, hint: Any) -> bool:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is typing.Literal:
        return any(_fits(value, type(one)) and value == one for one in inside)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(one, inside[0]) for one in value)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("None" if one is type(None) else _words(one) for one in inside)
    if origin is typing.Literal:
        return ("one of " if len(inside) > 1 else "") + ", ".join(map(repr, inside))
    if origin is tuple:
        return f"a tuple of {_words(inside[0]).split(' ', 1)[1]}s, such as (1, 2)"
    words = {
        int: "an integer",
        float: "a finite number",
        bool: "True or False",
        str: "a string",
        bytes: "bytes",
        Callable: "a function",
    }
    return words[hint]
