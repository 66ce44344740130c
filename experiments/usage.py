"""The output of --help: the description with examples, the program's own flags, and groups that programs share."""

import textwrap

from absl import flags

from .commands import spoken

WIDTH = 110
HELP = ("--help", "-help", "-h", "-?")
OWN = "flags:"
SHARED = "flags of all programs:"
GROUPS = {
    "flags of the methods by loss or gradients:": (
        "draws", "first_level", "last_level", "levels", "weighting", "target_error", "gradients", "store",
    ),
    "flags of the samples:": (
        "n", "seed", "steps", "sampler", "eta", "cond", "prompt", "text", "guidance", "decode", "combine", "scale",
    ),
    "flags of the run:": ("run", "step", "data", "out"),
    SHARED: ("cache", "debug", "distributed", "coordinator", "num_processes", "process_id", "start_timeout"),
}  # fmt: skip
"""Flags that are listed after the program's own. A group of one flag stays with the program's own."""
REPEATED = "repeat this option to specify a list of values"


def wanted(argv: list[str]) -> bool:
    """Return whether the command line asks for help."""
    options = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    return any(option in HELP for option in options)


def usage(program: str, description: str) -> str:
    """Return the help text of a program; ``program`` is its sys.argv[0], the key of its flags in absl."""
    listed = flags.FLAGS.get_key_flags_for_module(program)
    sampling = any(flag.name == "sampler" for flag in listed)  # in other programs, steps and n mean other things
    titles: dict[str, list[flags.Flag]] = {OWN: [], **{title: [] for title in GROUPS}}
    for flag in listed:
        titles[next((title for title, names in GROUPS.items() if flag.name in names), OWN)].append(flag)
    for title in GROUPS:
        if len(titles[title]) < 2 or (title == "flags of the samples:" and not sampling):
            titles[OWN] += titles.pop(title)
    parts = [description.strip(), *(_flags(title, group) for title, group in titles.items() if group)]
    return spoken("\n\n".join(parts) + "\n")


def _flags(title: str, listed: list[flags.Flag]) -> str:
    return "\n".join([title, *(_describe(flag) for flag in sorted(listed, key=lambda f: f.name))])


def _describe(flag: flags.Flag) -> str:
    """Return ``--name: help (default ...)``, wrapped."""
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    words = " ".join(str(flag.help).split())
    values = getattr(flag.parser, "enum_values", None)
    if values:  # absl puts them before the help text
        *first, last = values
        described = words.removeprefix(f"<{'|'.join(values)}>: ")
        words = f"{', '.join(first)} or {last}. {described}"
    repeated = words.endswith(REPEATED)  # by absl
    if repeated:
        words = words.removesuffix(REPEATED).rstrip("; ").rstrip(".") + "."
    notes = ["can be repeated"] if repeated else []
    default = (flag.default_as_str or "").strip("'")
    if default not in ("", "[]") and flag.default is not False and flag.name != "config":
        notes.append(f"default {default}")
    text = f"{name}: {words}" + (f" ({', '.join(notes)})" if notes else "")
    wrapped = textwrap.wrap(
        text, WIDTH, initial_indent="  ", subsequent_indent=" " * 6, break_on_hyphens=False, break_long_words=False
    )
    return "\n".join(wrapped)
