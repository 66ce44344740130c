"""Documentation that cannot rot: an example in every public docstring (pytest runs them)."""

import doctest

import pytest

import ensdiff

PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (ensdiff, ensdiff.data)
    for name in module.__all__
    if callable(getattr(module, name))
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_callable_has_an_example(name):
    examples = doctest.DocTestParser().get_examples(PUBLIC[name].__doc__ or "")
    run = [e for e in examples if doctest.SKIP not in e.options]
    assert run, f"{name} has no runnable example in its docstring"
    assert any(e.want for e in run), f"the example of {name} shows no result"
