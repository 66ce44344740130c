"""The output of --help: the description with examples, the program's own flags, and the flags of all programs."""

import textwrap

from absl import flags

WIDTH = 110
HELP = ("--help", "-help", "-h", "-?")
SHARED = ("cache", "debug", "distributed", "coordinator", "num_processes", "process_id", "start_timeout")


def wanted(argv: list[str]) -> bool:
    """Return whether the command line asks for help."""
    options = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    return any(option in HELP for option in options)


def usage(program: str, description: str) -> str:
    """Return the help text of a program; ``program`` is its sys.argv[0], the key of its flags in absl."""
    known = flags.FLAGS.get_key_flags_for_module(program)
    own = [flag for flag in known if flag.name not in SHARED]
    shared = [flag for flag in known if flag.name in SHARED]
    parts = [description.strip(), _flags("flags:", own), _flags("flags of all programs:", shared)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _flags(title: str, listed: list[flags.Flag]) -> str:
    return "\n".join([title, *(_describe(flag) for flag in sorted(listed, key=lambda f: f.name))]) if listed else ""


def _describe(flag: flags.Flag) -> str:
    """Return ``--name: help (default ...)``, wrapped."""
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    text = f"{name}: {flag.help}"
    values = getattr(flag.parser, "enum_values", None)
    if values:  # absl puts them before the help text
        text = text.replace(f": <{'|'.join(values)}>: ", f": {', '.join(values)}. ")
    default = (flag.default_as_str or "").strip("'")
    if default and flag.default is not False and flag.name != "config":
        text += f" (default {default})"
    wrapped = textwrap.wrap(
        text, WIDTH, initial_indent="  ", subsequent_indent=" " * 6, break_on_hyphens=False, break_long_words=False
    )
    return "\n".join(wrapped)
