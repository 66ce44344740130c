"""The type checker of jaxtyping's import hook: shapes and dtypes of arrays, in every module of the library.

mypy checks all other types. Checking those at run time would hide the error that a user sees for a wrong argument. For
the same reason, a public function that checks an array itself annotates the type that it accepts before this check.
"""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray


def check_arrays(function: Callable) -> Callable:
    """Return the function with checks, at each call, of the annotations that contain an array with a shape.

    Arguments of constructors are not checked: pytrees may contain placeholders for arrays, such as shapes and partition
    specs, and settings check their own fields.
    """
    annotations = function.__annotations__
    made = function.__name__ == "__init__"
    kept = {name: hint for name, hint in annotations.items() if not made and _holds_array(hint)}
    if not kept:
        return function
    function.__annotations__ = {name: kept.get(name, Any) for name in annotations}
    return beartype(function)


def _holds_array(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    if typing.get_origin(hint) is Callable:
        return False
    return any(map(_holds_array, typing.get_args(hint)))


def _jaxtyped(what: Any = None, *, typechecker: Any) -> Any:
    """Decorate as `jaxtyping.jaxtyped` does, but only functions that `check_arrays` checks.

    jaxtyping binds the arguments of every function and calls two checkers, even those that check nothing.
    """
    if what is None:
        return functools.partial(_jaxtyped, typechecker=typechecker)
    unchecked = inspect.isfunction(what) and not any(map(_holds_array, what.__annotations__.values()))
    return what if unchecked or inspect.isclass(what) else _original(what, typechecker=typechecker)


_original: Any = jaxtyping.jaxtyped
jaxtyping.jaxtyped = _jaxtyped  # the import hook decorates with this name
