"""Documentation stays correct: the tests run the examples of all public docstrings and the commands of the pages."""

import doctest
import pkgutil
import re
import shlex

import numpy as np
import pytest

import ensdiff
from ensdiff.data.images import to_png
from tests.helpers import ROOT

PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (ensdiff, ensdiff.data, ensdiff.models, ensdiff.metrics, ensdiff.baselines)
    for name in module.__all__
    if callable(getattr(module, name))
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_callable_has_an_example(name):
    examples = doctest.DocTestParser().get_examples(PUBLIC[name].__doc__ or "")
    run = [e for e in examples if doctest.SKIP not in e.options]
    assert run, f"{name} has no runnable example in its docstring"
    assert any(e.want for e in run), f"the example of {name} shows no result"


@pytest.mark.parametrize("page", ["README.md", "BUILD.md"])
def test_links_and_paths_of_the_front_pages_exist(page):
    """The targets of all relative links exist, and so do all paths in backquotes."""
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^):#]+)\)", text)
    paths = re.findall(r"`((?:ensdiff|experiments|tests|docs|colabs)/(?:[\w./-]*(?:/|\.\w+))?)`", text)
    assert paths
    assert not [path for path in links + paths if not (ROOT / path).exists()]
    assert "OWNER" not in text


PAGES = ["README.md", "BUILD.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_code_exist(page):
    """Every `ensdiff.module.name` and every program on a page exists."""
    text = (ROOT / page).read_text()
    for name in re.findall(r"`(ensdiff(?:\.\w+)+)", text):
        pkgutil.resolve_name(name)
    programs = re.findall(r"\bexperiments\.([a-z]\w*)", text)  # not imported: two programs define the same flags
    assert not [name for name in programs if not (ROOT / "experiments" / f"{name}.py").exists()]


def test_functions_are_where_the_readme_says():
    """Each function is in the file where the README locates it."""
    named = re.findall(r"`(\w+)` in `(ensdiff/[\w/]+\.py)`", (ROOT / "README.md").read_text())
    assert named
    for function, file in named:
        assert f"\ndef {function}(" in (ROOT / file).read_text(), f"{file} has no {function}"


def test_every_page_is_in_the_index_and_every_link_exists():
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    index = (ROOT / "docs" / "index.md").read_text()
    listed = index.partition(":maxdepth: 1")[2].partition(":::")[0].split()
    assert set(listed) == pages - {"index"}
    for page in (ROOT / "docs").glob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "docs" / "examples").glob("own_*.py")), ids=lambda path: path.stem)
def test_example_runs(run, script, tmp_path):
    if "import equinox" in script.read_text():
        pytest.importorskip("equinox")
    done = run(script, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout


SMALL = [
    "--config.model.channels=4", "--config.model.multipliers=(1,)", "--config.model.norm_groups=2",
    "--config.model.middle_attention=False",
]  # fmt: skip


@pytest.mark.slow
def test_the_commands_for_your_own_images(run, tmp_path):
    """The commands of docs/your_images.md work as written, except for fewer steps and a smaller network."""
    text = (ROOT / "docs" / "your_images.md").read_text()
    lines = re.findall(r"<!-- run -->\n```\n(.*?)\n```", text, re.DOTALL)
    programs = [shlex.split(line)[2].partition(".")[2] for line in lines]
    assert programs == ["plan", "train", "sample", "attribute", "attribute", "forget", "certify"]
    rng = np.random.default_rng(0)
    for i in range(24):
        path = tmp_path / "my_images" / ("ada", "ben", "eve")[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_png(rng.random((20, 24, 3)).astype(np.float32)))
    short = {
        "train": ["--config.train.steps=3", *SMALL],
        "sample": ["--steps=3", "--n=2"],
        "attribute": ["--steps=3", "--n=2", "--null=9"],
    }
    for line in lines:
        words = shlex.split(line)
        program = words[2].partition(".")[2]
        more = short.get(program, []) if "--images=my_images/ada" not in words else ["--draws=64"]
        done = run(program, *words[3:], *more, folder=tmp_path)
        assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
        if program == "plan":
            [told] = re.findall(r"\n(Code: .*?)\n```", text, re.DOTALL)
            assert " ".join(told.split()) in " ".join(done.stdout.split())
    for written in re.findall(r"`(runs/mine[^`]*)`", text):
        assert (tmp_path / written).exists(), f"the page promises {written}"
