"""The command ``ensdiff``, which runs the programs by their names."""

import pathlib
import sys

import pytest

from ensdiff import __main__ as launcher
from experiments import commands
from tests.helpers import ROOT

KNOWN = launcher.programs("experiments")


@pytest.fixture
def ensdiff(monkeypatch, capsys):
    """Return a function that runs the command in this process, where no program starts, and returns what it did."""
    monkeypatch.setattr(commands, "_script", False)
    ran = []
    monkeypatch.setattr(launcher.runpy, "run_module", lambda name, **_: ran.append([name, *sys.argv[1:]]))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["ensdiff", *words])
        code = 0
        try:
            launcher.main()
        except SystemExit as end:
            code = end.code
        return code, ran, capsys.readouterr()

    return call


def test_help_lists_every_program_once_in_one_line(ensdiff):
    code, ran, said = ensdiff("--help")
    assert (code, ran, said.err) == (0, [], "")
    lines = [line for line in said.out.splitlines() if line.startswith("  ")]
    assert sorted(line.split()[0] for line in lines) == sorted(KNOWN)
    assert all(line.endswith((".", "?")) and len(line) <= 130 for line in lines)
    assert ensdiff()[0] == 2  # a command line without a program is wrong, but is shown the same


def test_a_program_gets_the_other_words(ensdiff):
    assert ensdiff("train", "--config=digits", "--help")[1] == [["experiments.train", "--config=digits", "--help"]]
    assert commands.command("train") == "ensdiff train"


def test_an_unknown_program_is_refused_with_near_ones(ensdiff):
    code, ran, said = ensdiff("atribute")
    assert (code, ran) == (2, [])
    assert "no program 'atribute': did you mean attribute?" in said.err
    assert "did you mean" not in ensdiff("xyz")[2].err
    assert ensdiff("config")[0] == 2  # a module of the programs that is no program


def test_texts_name_programs_as_the_user_calls_them(monkeypatch):
    text = "see experiments.train, python -m experiments.certify verify, experiments.none and experiments/configs"
    monkeypatch.setattr(commands, "_script", False)
    assert commands.spoken(text) == text
    commands.launched()
    assert commands.spoken(text) == (
        "see ensdiff train, ensdiff certify verify, experiments.none and experiments/configs"
    )


@pytest.mark.parametrize(
    ("typed", "want"),
    [
        (["--config=digits"], "--config=digits --config.resume=True"),
        (["--config.resume=False", "--config=a b"], "'--config=a b' --config.resume=True"),
        (["--config.resume", "False", "--x=$HOME"], "'--x=$HOME' --config.resume=True"),
        (["--noconfig.resume", "--config.resume", "--debug"], "--debug --config.resume=True"),
    ],
)
def test_the_command_to_type_again(monkeypatch, typed, want):
    monkeypatch.setattr(commands, "_script", False)
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py", *typed])
    assert commands.again("--config.resume=True") == f"python -m experiments.train {want}"


def test_the_command_runs_a_program(run, tmp_path):
    """Help, results and errors are those of ``python -m experiments``, in other words."""

    def typed(*words):
        done = run.start("ensdiff", *words, out=tmp_path / "out", err=tmp_path / "err", folder=ROOT)
        code = done.wait(60)
        texts = [(tmp_path / name).read_text() for name in ("out", "err")]
        for name in ("out", "err"):
            (tmp_path / name).unlink()
        return code, *texts

    code, out, err = typed("design", "--help")
    assert (code, err) == (0, "")
    assert "\n  ensdiff design --members=" in out
    assert "python -m" not in out
    code, out, _ = typed("design", "--members=4", "--removals=1")
    assert code == 0
    assert out.startswith("Members that survive")
    code, out, err = typed("sample", "--run=none")
    assert (code, out) == (1, "")
    assert "train with ensdiff train --config" in err


@pytest.mark.slow
def test_a_config_of_ones_own_imports_the_packaged_ones(run, tmp_path):
    """A copy of a packaged config works anywhere, with its relative imports."""
    text = pathlib.Path("experiments/configs/digits.py").read_text()
    (tmp_path / "mine.py").write_text(text.replace('"members": 16', '"members": 12'))
    done = run("plan", "--config=mine.py", "--image=8x8x1", "--units=30", "--accelerator=cpu2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "of all 12 members" in done.stdout
