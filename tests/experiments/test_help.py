"""--help of every program: a description and at least two examples, whose flags all exist."""

import importlib
import re
import shlex

import pytest

from experiments.config import names
from experiments.usage import wanted
from tests.helpers import ROOT

PROGRAMS = sorted(
    file.stem for file in (ROOT / "experiments").glob("*.py") if 'if __name__ == "__main__"' in file.read_text()
)


def examples(text):
    """Return the command lines of a text as lists of words, without comments after a # and without brackets."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = [line.strip() for line in lines if line.strip().startswith("python -m experiments.")]
    return [shlex.split(re.sub(r" \(.*", "", line), comments=True) for line in found]


def fields(name):
    """Return every --config.section.field that a packaged config accepts."""
    config = importlib.import_module(f"experiments.configs.{name}").get_config()
    inside = {f"config.{s}.{f}" for s in config for f in (config[s] if hasattr(config[s], "keys") else ())}
    return inside | {f"config.{s}" for s in config}


@pytest.fixture(scope="module")
def helps(run):
    """Return the help of each program."""
    found = {program: run(program, "--help") for program in PROGRAMS}
    assert all(done.returncode == 0 and not done.stderr for done in found.values())
    return {program: done.stdout for program, done in found.items()}


def flags_of(text):
    """Return the flags that a help text lists, boolean ones with and without their ``no``."""
    return {
        name
        for no, name in re.findall(r"^  --(\[no\])?([\w.]+):", text, re.MULTILINE)
        for name in ([name, f"no{name}"] if no else [name])
    }


def test_there_are_programs():
    assert {"train", "sample", "attribute", "quickstart", "design", "aot"} <= set(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_has_a_description_and_examples(helps, program):
    text = helps[program]
    first = text.splitlines()[0]
    assert first.endswith((".", "?"))
    assert len(first) > 30
    assert sum(words[2] == f"experiments.{program}" for words in examples(text)) >= 2
    assert "\nflags:\n" in text
    assert "--debug: Show the whole traceback" in text.replace("[no]", "").partition("flags of all programs:")[2]
    assert "--logtostderr" not in text  # absl's own flags are in --helpfull
    assert max(map(len, text.splitlines())) <= 120
    assert not re.search(r"repeat\s+this\s+option|\.;|default \[\]|: <|\w {2,}\w.*--", text.partition("\nflags:\n")[2])


def test_flags_that_programs_share_are_listed_in_groups(helps):
    own, _, rest = helps["sample"].partition("\nflags:\n")[2].partition("\n\nflags of the samples:\n")
    samples, _, run_and_all = rest.partition("\n\nflags of the run:\n")
    assert flags_of(own) == {"groups", "nogroups", "remove"}
    assert "(can be repeated)" in own
    assert {"n", "prompt", "sampler"} <= flags_of(samples)
    assert {"run", "step", "data", "out", "cache"} <= flags_of(run_and_all)
    assert "flags of the samples" not in helps["plan"]  # its steps are others
    assert "evaluate_digits" in helps["evaluate"]
    assert "evaluate_digits" not in helps["train"]
    assert "digits" in helps["train"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_flag_of_an_example_exists(helps, program):
    for words in examples(helps[program]):
        other = words[2].partition(".")[2]
        given = [word[2:].partition("=") for word in words[3:] if word.startswith("--")]
        config = next((value for name, _, value in given if name == "config"), "quickstart")
        known = flags_of(helps[other])
        if "config" in known and config in names():
            known |= fields(config)
        else:
            known |= {name for name, _, _ in given if name.startswith("config.")}
        unknown = {name for name, _, _ in given} - known
        assert not unknown, f"{' '.join(words)}: no flag {unknown}"


def test_only_programs_that_read_a_run_list_the_flag(helps):
    assert "run" in flags_of(helps["sample"])
    assert "run" not in flags_of(helps["design"]) | flags_of(helps["train"])


def test_help_is_recognised_among_other_arguments():
    assert wanted(["p", "create", "--run=x", "--help"])
    assert wanted(["p", "-h"])
    assert not wanted(["p", "--helpful=1"])
    assert not wanted(["p", "--", "--help"])
