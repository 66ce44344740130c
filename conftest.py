"""Settings of JAX for every test and what tests start: four CPU devices, strict types, a cache of compiled programs.

Doctests: each runs in an empty folder, and those that use the examples' shared names get them.
"""

import importlib.metadata
import os
import pathlib
import re
import runpy
import shutil

import pytest

ROOT = pathlib.Path(__file__).parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "ensdiff" / "tests"

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
# arrays of other dtypes or numbers of axes are combined only where the code says how
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
# tiny programs spend their time in the compiler: let it optimise less
FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",  # fewer mappings; two workers fill the cores
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # takes a third of the time; other versions may not know the flag, and an unknown one ends the process
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
# threads of linear algebra that wait for each other on busy cores made small fits six times as slow
os.environ.setdefault("OMP_NUM_THREADS", "1")
# what is compiled is kept outside of the clone, for every later run and for the programs that tests start
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

SHARED = ROOT / "docs" / "examples" / "shared.py"
NAMES = ("data", "code", "model", "params", "samples")


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """What docs/examples/shared.py defines, and the folder that it was run in."""
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
