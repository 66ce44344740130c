"""Imports go strictly downward, and the library pulls in nothing that belongs to the programs."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "ensdiff"
LEVELS = {
    "_version": 0, "typing": -1, "permute": 0, "combinations": 0, "images": 0, "hosts": 0, "storage": 0, "files": 0,
    "settings": 0, "npyfiles": 0, "environment": 1, "digest": 1, "integrity": 1, "preempt": 1, "pieces": 2, "codes": 1,
    "winograd": 0, "lowering": 1, "schedule": 1, "conv": 1, "packing": 1, "metrics": 1, "unet": 2, "data": 2,
    "flops": 3, "ensemble": 3, "denoise": 4, "train_step": 4, "estimates": 5, "sample": 5, "logs": 2, "stored": 4,
    "rundir": 5, "identity": 5, "checkpoint": 6, "attribution": 6, "baselines": 7, "interop": 6, "report": 7,
    "train": 8, "certificate": 9, "__init__": 10,
}  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def imports(tree, *, top_level=False):
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_imports_go_downward(path):
    own = part(path)
    for name in imports(ast.parse(path.read_text())):
        pieces = name.split(".")
        if pieces[0] == "ensdiff" and len(pieces) > 1 and pieces[1] in LEVELS and pieces[1] != own:
            assert LEVELS[pieces[1]] < LEVELS[own], f"{own} imports {name}"
        assert pieces[0] not in (
            "absl",
            "ml_collections",
            "tensorflow",
            "diffusers",
            "experiments",
        ), name
        assert pieces[0] not in ("torch", "safetensors") or own == "interop", name


def test_every_part_has_a_level():
    assert {part(path) for path in FILES} == set(LEVELS)


def test_settings_start_no_backend():
    """Programs choose their devices after importing and building settings, and cannot once JAX's backend runs."""
    code = (
        "import ensdiff, experiments.aot, experiments.benchmark; from jax._src import xla_bridge as bridge; "
        "ensdiff.UNetConfig(); ensdiff.TrainConfig(); ensdiff.Schedule(); ensdiff.Code.balanced(4, 6); "
        "raise SystemExit(bridge.backends_are_initialized())"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, check=False).returncode == 0
