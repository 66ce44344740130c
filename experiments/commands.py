"""How the user starts the programs, for the commands in help texts and messages.

``python -m experiments.NAME`` works in a clone, and ``ensdiff NAME`` wherever the package is installed. Where a wheel
was installed only the latter works, because the wheel holds the programs as ``ensdiff.programs``.
"""

import pathlib
import re
import shlex
import sys

_FOLDER = pathlib.Path(__file__).parent
_script = __package__ != "experiments"


def launched() -> None:
    """Note that the console script started the program."""
    global _script
    _script = True


def command(program: str) -> str:
    """Return the words that start a program.

    >>> command("train")
    'python -m experiments.train'
    """
    return f"ensdiff {program}" if _script else f"python -m experiments.{program}"


def again(option: str) -> str:
    """Return the command that was typed, with another option such as ``--config.resume=True``, for a shell.

    >>> sys.argv[1:] = ["--config=digits", "--config.resume=False", "--config.run_dir=my runs"]
    >>> again("--config.resume=True").partition(" ")[2].partition(" ")[2].partition(" ")[2]
    "--config=digits '--config.run_dir=my runs' --config.resume=True"
    """
    name = option.partition("=")[0]
    given, words = sys.argv[1:], []
    for position, word in enumerate(given):
        if word.partition("=")[0] in (name, name.replace("--", "--no", 1)):
            continue
        if position and given[position - 1] == name and not word.startswith("-"):  # --name value
            continue
        words.append(word)
    return " ".join([command(pathlib.Path(sys.argv[0]).stem), *map(shlex.quote, [*words, option])])


def spoken(text: str) -> str:
    """Return a text in which each program is called as the user calls it: ``ensdiff train`` for experiments.train."""
    return re.sub(r"(?:python -m )?\bexperiments\.(\w+)\b", _call, text) if _script else text


def _call(found: re.Match) -> str:
    return f"ensdiff {found[1]}" if (_FOLDER / f"{found[1]}.py").exists() else found[0]
