"""Doctests: each runs in an empty folder, and those that use the examples' shared names get them."""

import os
import pathlib
import re
import runpy
import shutil

import pytest

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

ROOT = pathlib.Path(__file__).parent
SHARED = ROOT / "docs" / "examples" / "shared.py"
NAMES = ("data", "code", "model", "params", "samples")


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """What docs/examples/shared.py defines, and the folder that it was run in."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    folder, before = tmp_path_factory.mktemp("shared"), pathlib.Path.cwd()
    os.chdir(folder)
    try:
        values = runpy.run_path(str(SHARED))
    finally:
        os.chdir(before)
    return {name: values[name] for name in NAMES}, folder


@pytest.fixture(autouse=True)
def _doctest(request, doctest_namespace, tmp_path_factory, monkeypatch):
    if not isinstance(request.node, pytest.DoctestItem):
        return
    import numpy as np

    import ensdiff

    folder = tmp_path_factory.mktemp("doctest")
    monkeypatch.chdir(folder)
    for name in NAMES:
        doctest_namespace.pop(name, None)
    doctest_namespace.update(ensdiff=ensdiff, np=np)
    text = "".join(example.source for example in request.node.dtest.examples)
    if re.search(r"\b(params|samples)\b|runs/tiny", text):
        values, made_in = request.getfixturevalue("shared")
        doctest_namespace.update(values)
        if "runs/tiny" in text:
            shutil.copytree(made_in / "runs", folder / "runs")
