"""Shared fixtures, marks and reports of the tests, and shape checks by jaxtyping's import hook (`tests.shapes`)."""

import gc
import os
import pathlib
import re
import subprocess

from jaxtyping import install_import_hook

import tests.shapes  # noqa: F401

# stays installed, for what `import ensdiff` leaves to its first use
install_import_hook("ensdiff", "tests.shapes.check_arrays")
import jax
import numpy as np
import pytest
from hypothesis import settings

import ensdiff  # noqa: F401
from tests.helpers import ROOT, command, environment

# the same examples in every CI run, which must not fail by chance; new examples in every manual run
settings.register_profile("ensdiff", deadline=None, max_examples=30, derandomize="CI" in os.environ)
settings.load_profile("ensdiff")


SMOKE = (
    "tests/attribution/test_score.py", "tests/codes/test_permute.py", "tests/diffusion", "tests/ensemble",
    "tests/experiments/test_programs.py", "tests/models/test_unet.py", "tests/runs/test_unit_names.py",
    "tests/sampling/test_sample.py", "tests/test_package.py", "tests/test_seam.py", "tests/test_strict.py",
)  # fmt: skip
"""Paths of the tests marked ``smoke``, which in a few minutes use every package that the library is built on, to check
another version of Python or of these packages."""
LONGEST = (
    "test_processes", "test_evaluate", "test_colabs", "test_planted", "test_certificate", "test_train", "test_seam",
    "test_explorer_browser", "test_groups", "test_estimates", "test_faults", "test_kills", "test_package", "test_aot",
    "test_pipelines", "test_adapters", "test_interop", "test_sample", "test_precision", "test_bad_input",
    "test_explorer", "test_flops", "test_attribution", "test_by_gradients", "test_unet", "test_pieces",
    "test_gradients", "test_tuning", "test_extend", "test_loss",
)  # fmt: skip
"""The modules whose tests take the longest in total."""
TORCH = re.compile(rb"^pytestmark = .*pytest\.mark\.torch\b", re.MULTILINE)
"""What a module contains whose tests all need the torch extra."""


def pytest_configure(config):
    """Let pytest-xdist start modules in the order below, instead of those with many tests first."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_ignore_collect(collection_path, config):
    """Do not import modules of which no test is selected: PyTorch and diffusers take ten seconds."""
    marks = config.option.markexpr
    if collection_path.suffix != ".py":
        return None
    if marks == "smoke":
        return None if _is_smoke(collection_path) else True
    return True if "not torch" in marks and TORCH.search(collection_path.read_bytes()) else None


def _is_smoke(path):
    place = path.relative_to(ROOT).as_posix()
    return any(place == smoke or place.startswith(f"{smoke}/") for smoke in SMOKE)


def pytest_collection_modifyitems(items):
    """Mark ``smoke``, and put the longest modules first, so that no core starts one of them when others are done."""
    for item in items:
        if _is_smoke(item.path) and not item.get_closest_marker("slow"):
            item.add_marker("smoke")
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True, scope="module")
def mappings():
    """Clear the compiled programs when there are many: they would take 5 GB of memory by the end of all tests.

    Each program also takes ten memory mappings. Beyond the kernel's limit of 65,530 per process, the compiler crashes
    with a segmentation fault, and all tests in one process would reach this limit.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")  # only on Linux
    if maps.exists() and len(maps.read_bytes().splitlines()) > 16_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny():
    """Return an untrained ensemble of four members for 8x8 images."""
    from tests.helpers import random_ensemble

    return random_ensemble()


@pytest.fixture(scope="session")
def deep():
    """Return an untrained ensemble of a network with two levels, for tests of what networks compute."""
    from tests.helpers import DEEP, random_ensemble

    return random_ensemble(model=DEEP)


@pytest.fixture(scope="session")
def typed():
    """Return a function that runs a program as a user does, in a new process: ``typed("train", "--config=...")``."""

    def call(program, *args):
        return subprocess.run(
            command(program, *args), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
        )

    return call


@pytest.fixture(scope="session")
def run():
    """Yield a function that runs a program in a fork with its imports, in seconds less: ``run("train", ...)``."""
    from tests.forks import Programs

    with Programs() as call:
        yield call


def pytest_terminal_summary(terminalreporter):
    """Show what tests measured or counted, also if they pass.

    Tests report it by ``record_property("largest difference", text)`` or ``record_property("count", (what, number))``.
    """
    counts: dict[str, int] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "count":
                counts[value[0]] = counts.get(value[0], 0) + value[1]
    if counts:
        terminalreporter.section("counts")
        terminalreporter.write_line("\n".join(f"{name}: {number}" for name, number in sorted(counts.items())))
    found = [
        f"{report.nodeid.rpartition('::')[2]}: {text}"
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        if report.when == "call"
        for name, text in report.user_properties
        if name == "largest difference"
    ]
    if found:
        terminalreporter.section("largest differences from the reference implementations")
        terminalreporter.write_line("\n".join(found))
