"""The notebooks: stored without outputs, linked from the README, and every cell executed."""

import glob
import importlib.util
import os
import pathlib
import re
import resource
import shutil

import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ("quickstart", "attribute_your_images", "adapters", "paper")


def read(name):
    return nbformat.read(ROOT / "colabs" / f"{name}.ipynb", as_version=4)


def code_cells(name):
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def test_all_notebooks_are_tested():
    assert sorted(path.stem for path in (ROOT / "colabs").glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_cells_are_stored(name):
    notebook = read(name)
    nbformat.validate(notebook)
    for cell in code_cells(name):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert set(cell.metadata) == set()
    assert "widgets" not in notebook.metadata


@pytest.mark.parametrize("name", NAMES)
def test_is_linked_and_contains_no_placeholder_address(name):
    """There is no public repository: the README links to the file, and no notebook has a placeholder address."""
    assert f"](colabs/{name}.ipynb)" in (ROOT / "README.md").read_text()
    first = read(name).cells[0]
    assert first.cell_type == "markdown"
    assert f"jupyter lab colabs/{name}.ipynb" in first.source
    assert not re.search(r"OWNER|github\.com", "\n".join(cell.source for cell in read(name).cells))


@pytest.mark.parametrize("name", NAMES)
def test_first_cell_installs_if_needed(name):
    """All notebooks have the same first cell."""
    source = code_cells(name)[0].source
    assert source == code_cells(NAMES[0])[0].source
    for text in ("[cuda12]", "[tpu]", "jax.devices()", "JAX_NUM_CPU_DEVICES"):
        assert text in source


@pytest.mark.parametrize("found", ["gpu", "tpu", "cpu", "ensdiff"])
def test_first_cell_chooses_the_extra(found, monkeypatch):
    """Fake signs of an accelerator or an installed ensdiff select the extra that the cell asks pip for."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if found == "ensdiff" else None)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if found == "gpu" else None)
    monkeypatch.setattr(glob, "glob", lambda pattern: ["/dev/accel0"] if found == "tpu" and "accel" in pattern else [])
    asked = []
    source = re.sub(r"%pip (.*)", r"asked.append(f'''\1''')", code_cells("quickstart")[0].source)
    exec(source, {"asked": asked})
    extras = {"gpu": ["[cuda12]"], "tpu": ["[tpu]"], "cpu": [""], "ensdiff": []}[found]
    assert asked == [f'install -q "..{extra}"' for extra in extras]


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_is_python(name):
    from IPython.core.inputtransformer2 import TransformerManager

    for cell in code_cells(name):
        compile(TransformerManager().transform_cell(cell.source), name, "exec")
    assert any(re.search(r"^SMALL = True\b", cell.source, re.MULTILINE) for cell in code_cells(name))


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_notebooks(name):
    text = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([a-z_]+)\.ipynb\)", text)
    assert set(links) == set(NAMES) - {name}


EXPECTED = {
    "quickstart": ["the most influential class", "two sets of real digits"],
    "attribute_your_images": ["holds: True", "smallest q that one unit alone can reach: 0.4"],
    "adapters": [
        "the base is unchanged: True",
        "cosine of both kinds of counterfactual",
        "holds: True",
        "- The base that",
    ],
    "paper": ["rank correlation over", "radius ~ N^slope", "planted eight times", "own unit first"],
}
FIGURES = {"quickstart": 4, "attribute_your_images": 3, "adapters": 1, "paper": 3}


SIZES = {
    "attribute_your_images": ("(12, 16, 150, 6, 119)", "(8, 8, 4, 2, 19)"),
    "paper": ("(12, 140, 8, 150, 40)", "(12, 4, 2, 60, 12)"),
}
"""The sizes of the longer notebooks with ``SMALL``, and what replaces them here."""


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_that_are_replaced_are_there(name):
    assert "\n".join(cell.source for cell in code_cells(name)).count(SIZES[name][0]) == 1


def test_the_stored_sizes_allow_a_verdict():
    """The smallest q of eight units is at most the level of .1; with the sizes of `SIZES` it is not."""
    null = int(SIZES["attribute_your_images"][0].strip("()").split(",")[-1])
    assert 8 / (null + 1) <= 0.1


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_executes(name, tmp_path, monkeypatch, record_property):
    """Execute every cell of the notebook in a separate folder; no other test executes the cells.

    The quickstart runs as it is stored, with a user's compiler settings and without a compilation cache. The adapters
    run as they are stored, and compile faster with the same optimisation. The longer notebooks run with smaller sizes,
    with which their results mean nothing, and with the settings of the tests.
    """
    from nbclient import NotebookClient

    notebook = read(name)
    if name == "quickstart":
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    elif name not in SIZES:
        flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "fusion_emit" in flag or "split_count" in flag]
        monkeypatch.setenv("XLA_FLAGS", " ".join(flags))
    else:
        stored, smaller = SIZES[name]
        sizes = next(cell for cell in notebook.cells if stored in cell.source)
        sizes.source = sizes.source.replace(stored, smaller)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "\n".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    for expected in EXPECTED[name]:
        assert expected in text
    assert not re.search(r"\bnan\b", text)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[name]
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    how = "smaller" if name in SIZES else "as stored"
    record_property("count", (f"seconds of one core for {name}.ipynb, {how}", round(used)))
