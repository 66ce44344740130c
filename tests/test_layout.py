"""Imports only go strictly downward, from room to room and from module to module."""

import ast
import pathlib
import subprocess
import sys

import pytest

from tests.helpers import ROOT

PACKAGE = ROOT / "ensdiff"
FLOORS = (
    "typing terminal",
    "settings hosts",
    "files",
    "codes models diffusion metrics",
    "data ensemble",
    "sampling training.config",  # settings that a run records lie below runs, the training loop above them
    "runs",
    "training attribution",
    "baselines certificate interop planning",
    "report",
    "__init__",
    "__main__",  # the command, which names the programs without importing them
)
"""The rooms of the package from the lowest floor up. A room imports only from lower floors."""
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor.split()}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") or "__init__"


MODULES = {module_of(path): ast.parse(path.read_text()) for path in FILES}


def imported(tree: ast.AST):
    """Yield all names that a module imports, also inside of functions and for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def own_modules(module: str) -> set[str]:
    """Return the modules of the package that a module imports."""
    found = set()
    for name in imported(MODULES[module]):
        inside = name.removeprefix("ensdiff.") if name.startswith("ensdiff.") else ""
        while inside and inside not in MODULES:
            inside = inside.rpartition(".")[0]
        found |= {inside} - {""}
    return found


def level(module: str) -> int:
    return LEVEL.get(module, LEVEL[module.partition(".")[0]])


def room(module: str) -> str:
    return module if module in LEVEL else module.partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_from_lower_floors(module):
    for other in own_modules(module):
        assert room(other) == room(module) or level(other) < level(module), f"{module} imports {other}"


def test_modules_import_in_no_circle():
    done: set[str] = set()

    def visit(module, path=()):
        assert module not in path, " imports ".join((*path, module))
        if module not in done:
            for other in own_modules(module) - {module}:
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module)


def test_every_entry_of_the_package_is_a_room_with_a_floor():
    assert {module.partition(".")[0] for module in MODULES} == {name.partition(".")[0] for name in LEVEL}


@pytest.mark.parametrize("module", MODULES)
def test_the_library_imports_nothing_of_the_programs(module):
    top = {name.partition(".")[0] for name in imported(MODULES[module])}
    assert not top & {"absl", "ml_collections", "tensorflow", "experiments"}
    assert room(module) == "interop" or not top & {"torch", "safetensors", "diffusers", "transformers"}


def test_tests_mirror_the_package():
    """A folder of tests belongs to one room or to the programs; tests of several rooms lie beside the folders."""
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert {str(folder) for folder in folders} <= rooms | {".", "experiments"}


def test_settings_start_no_backend():
    """Programs choose their devices after importing and building settings, which must not start JAX's backend."""
    code = (
        "import ensdiff, experiments.aot, experiments.benchmark; from jax._src import xla_bridge as bridge; "
        "ensdiff.UNetConfig(); ensdiff.TrainConfig(); ensdiff.Schedule(); ensdiff.Code.balanced(4, 6); "
        "raise SystemExit(bridge.backends_are_initialized())"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
