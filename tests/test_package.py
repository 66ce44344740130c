"""The wheel and the sdist: both are built, and the wheel is used as by a user without a clone."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest

import ensdiff
from experiments.config import config_path, names
from tests.helpers import ROOT, environment

TINY = [
    "--config.model.channels=4", "--config.model.multipliers=(1,)", "--config.model.norm_groups=2",
    "--config.model.middle_attention=False", "--config.train.steps=2", "--config.train.batch_size=2",
    "--config.schedule.timesteps=20", "--samples=1", "--steps=2", "--evaluated=12",
]  # fmt: skip


def test_packaged_configs_have_names(tmp_path, monkeypatch):
    """A bare name means the package's config in any folder; a path means a file."""
    assert {"digits", "folder", "quickstart"} <= set(names())
    assert not {"base", "__init__"} & set(names())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert pathlib.Path(config_path("digits")).samefile(ROOT / "experiments" / "configs" / "digits.py")
    (tmp_path / "mine.py").write_text("")
    assert config_path("mine.py") == "mine.py"
    assert config_path("mine.py:text") == "mine.py:text"
    with pytest.raises(ValueError, match=r"none does not exist.* digits, .*path of a Python file"):
        config_path("none")


@pytest.mark.parametrize("name", names())
def test_every_packaged_config_can_be_read(name):
    from experiments import building, evaluate
    from experiments.studies import STUDIES

    module = importlib.import_module(f"experiments.configs.{name}")
    config = module.get_config()
    if name.startswith("evaluate"):
        assert evaluate.check_config(config, tuple(STUDIES))
    else:
        building.check_config(config)
    assert f"--config={name}" in module.__doc__ or f"experiments.{name}" in module.__doc__


def test_import_is_light():
    """Packages for few calls are imported by these calls: scipy.stats would double the time to import ensdiff."""
    heavy = {"scipy", "matplotlib", "pandas", "tensorflow", "tensorflow_datasets", "torch", "PIL", "IPython"}
    code = f"import sys, ensdiff; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr[-2000:]


def test_import_without_extras():
    """Every module of the library can be imported without any extra."""
    extras = {
        "tensorflow_datasets",
        "array_record",
        "torch",
        "safetensors",
        "diffusers",
        "pandas",
        "libtpu",
        "datasets",
    }
    code = (
        f"import importlib, pkgutil, sys; sys.modules.update(dict.fromkeys({extras})); import ensdiff; "
        "print(sum(1 for m in pkgutil.walk_packages(ensdiff.__path__, 'ensdiff.') if importlib.import_module(m.name)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 80


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the folder of both archives."""
    if importlib.util.find_spec("build") is None:
        pytest.skip("needs build: pip install -e '.[dev]'")
    out = tmp_path_factory.mktemp("dist")
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    subprocess.run([sys.executable, "-m", "build", *isolation, f"--outdir={out}", ROOT], check=True)
    return out


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """Return a function that runs the Python of a new environment, with the wheel, in an empty folder.

    The environment uses the installed dependencies of the wheel.
    """
    root = tmp_path_factory.mktemp("fresh")
    venv.create(root / "venv", with_pip=True)
    executable = root / "venv" / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    subprocess.run([executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    paths = {"base": str(root / "venv"), "platbase": str(root / "venv")}
    site = pathlib.Path(sysconfig.get_path("purelib", vars=paths))
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # paths from a .pth file are searched last, and .pth files in them, such as an editable install's, are not read
    (site / "outer.pth").write_text("\n".join(sorted(outer)) + "\n")
    empty = root / "empty"
    empty.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["JAX_NUM_CPU_DEVICES"] = "2"

    def call(*args):
        return subprocess.run(
            [executable, *args], cwd=empty, env=environment, capture_output=True, text=True, check=False
        )

    def command(*args):
        """Run the console script."""
        return call(executable.with_name("ensdiff"), *args)

    call.empty, call.site, call.ensdiff = empty, site, command
    return call


@pytest.mark.slow
def test_archives_hold_what_is_needed(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {"ensdiff/py.typed", "ensdiff/report/page.html.jinja", "ensdiff/programs/configs/digits.py"} <= held
    assert {name.partition("/")[0] for name in held if ".dist-info/" not in name} == {"ensdiff"}
    assert not [name for name in held if name.startswith(("tests/", "docs/", "colabs/"))]
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "ensdiff/py.typed",
        "experiments/train.py",
        "tests/test_package.py",
    } <= inside


@pytest.mark.slow
def test_import_from_the_wheel(python):
    done = python("-c", "import ensdiff; print(ensdiff.__version__, ensdiff.__file__)")
    assert done.returncode == 0, done.stderr
    version, file = done.stdout.split()
    assert version == ensdiff.__version__
    assert pathlib.Path(file).is_relative_to(python.site)
    assert pathlib.Path(file).with_name("py.typed").exists()


@pytest.mark.slow
def test_programs_from_the_wheel(python):
    """Help, an error about configs and a tiny quickstart work without the repository.

    No other test runs the quickstart as a program.
    """
    done = python.ensdiff("quickstart", "--help")
    assert "  ensdiff quickstart --samples=" in done.stdout
    assert "experiments" not in done.stdout
    assert "ensdiff quickstart" in python("-m", "ensdiff.programs.quickstart", "--help").stdout
    assert "  quickstart " in python("-m", "ensdiff", "--help").stdout
    assert python("-c", "import experiments").returncode == 1
    done = python.ensdiff("design", "--members=4", "--removals=1")
    assert done.stdout.startswith("Members that survive"), done.stderr
    done = python.ensdiff("train", "--config=experiments/configs/digits.py")
    assert done.returncode == 2
    assert "expected one of the configs" in done.stderr
    done = python.ensdiff("quickstart", *TINY)
    assert done.returncode == 0, done.stderr
    assert f"report: {python.empty / 'runs' / 'quickstart' / 'report.html'}" in done.stdout.splitlines()
    for text in ("ensemble", "one model on all the data", "real images (the floor)"):
        assert text in done.stdout
    page = (python.empty / "runs" / "quickstart" / "report.html").read_text()
    assert "<!doctype html>" in page
    assert page.count("<article") == 3
