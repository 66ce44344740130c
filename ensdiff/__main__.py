"""The command ``ensdiff``, which runs the programs: ``ensdiff train --config=digits``; ``ensdiff --help`` lists them.

In a clone the programs are the package ``experiments`` beside this one, and ``python -m experiments.train`` runs the
same program. An installed wheel holds them as ``ensdiff.programs``.
"""

import ast
import difflib
import importlib
import importlib.util
import pathlib
import runpy
import sys

GROUPS = {
    "Start here": ("quickstart", "train", "sample", "attribute", "report", "serve", "units"),
    "Removal": ("certify", "forget"),
    "Data and models of others": ("encode", "convert", "upload"),
    "Before training": ("design", "plan", "aot"),
    "Studies and measurements": ("evaluate", "gradients", "score", "benchmark", "device"),
}
"""The order of the list of programs. A program that is not named here is listed last."""
HELP = ("--help", "-help", "-h", "-?", "help")


def package() -> str:
    """Return the name of the package with the programs.

    Raises:
        ModuleNotFoundError: this installation has no programs.
    """
    if importlib.util.find_spec("ensdiff.programs"):
        return "ensdiff.programs"
    root = pathlib.Path(__file__).parent.parent
    if not (root / "experiments" / "train.py").exists():
        raise ModuleNotFoundError(f"the programs of ensdiff are neither in ensdiff/programs nor in {root}/experiments")
    if str(root) not in sys.path[:1]:
        sys.path.insert(0, str(root))  # before other packages of this name
    return "experiments"


def programs(name: str) -> dict[str, str]:
    """Return the names of the programs in a package, with the first line of their description."""
    (folder,) = importlib.import_module(name).__path__
    found = {}
    for file in sorted(pathlib.Path(folder).glob("*.py")):
        text = file.read_text("utf-8")
        if '\nif __name__ == "__main__":' in text:
            found[file.stem] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return found


def listing(known: dict[str, str]) -> str:
    """Return the text of ``ensdiff --help``.

    >>> print(listing({"train": "Train an ensemble.", "facts": "Print facts."}))
    Encoded ensembles of diffusion models: which training data does this sample depend on?
    <BLANKLINE>
    Usage: ensdiff PROGRAM [options]; ensdiff PROGRAM --help explains a program
    <BLANKLINE>
    Start here:
      train  Train an ensemble.
    <BLANKLINE>
    More:
      facts  Print facts.
    """
    grouped = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "More": tuple(name for name in known if name not in grouped)}
    width = max(map(len, known))
    parts = [
        "Encoded ensembles of diffusion models: which training data does this sample depend on?",
        "Usage: ensdiff PROGRAM [options]; ensdiff PROGRAM --help explains a program",
    ]
    for title, names in groups.items():
        lines = [f"  {name:{width}}  {known[name]}" for name in names if name in known]
        if lines:
            parts.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(parts)


def main() -> None:
    """Run the program that the first argument names, with the others.

    Raises:
        SystemExit: with code 0 after the list of programs, 2 if there is no such program, or the program's own.
    """
    words = sys.argv[1:]
    if words == ["--version"]:
        print(f"ensdiff {importlib.import_module('ensdiff').__version__}")
        return
    name = package()
    known = programs(name)
    if not words or words[0] in HELP:
        print(listing(known))
        raise SystemExit(0 if words else 2)
    program = words[0]
    if program not in known:
        near = difflib.get_close_matches(program, known, n=3)
        meant = f": did you mean {' or '.join(near)}?" if near else ""
        print(f"error: there is no program {program!r}{meant} (ensdiff --help lists the programs)", file=sys.stderr)
        raise SystemExit(2)
    importlib.import_module(f"{name}.commands").launched()
    del sys.argv[1]
    runpy.run_module(f"{name}.{program}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
