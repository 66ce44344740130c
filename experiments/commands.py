"""How the user starts the programs, for the commands in help texts and messages.

``python -m experiments.NAME`` works in a clone, and ``ensdiff NAME`` wherever the package is installed. Where a wheel
was installed only the latter works, because the wheel holds the programs as ``ensdiff.programs``.
"""

import pathlib
import re

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


def spoken(text: str) -> str:
    """Return a text in which each program is called as the user calls it: ``ensdiff train`` for experiments.train."""
    return re.sub(r"(?:python -m )?\bexperiments\.(\w+)\b", _call, text) if _script else text


def _call(found: re.Match) -> str:
    return f"ensdiff {found[1]}" if (_FOLDER / f"{found[1]}.py").exists() else found[0]
