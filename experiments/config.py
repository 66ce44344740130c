"""The flag --config: the path of a config, or the name of a config that comes with the package."""

import os
import pathlib
from typing import Any

from absl import flags
from ml_collections import config_flags

FOLDER = pathlib.Path(__file__).parent / "configs"


def names() -> list[str]:
    """Return the names of the configs that come with the package."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in ("__init__", "base"))


def config_path(argument: str) -> str:
    """Return the file that --config names. A packaged config takes precedence over a file of the same name.

    Raises:
        ValueError: neither a packaged config nor a file has this name.
    """
    if argument in names():
        return str(FOLDER / f"{argument}.py")
    file = argument if os.path.exists(argument) else argument.partition(":")[0]  # path:text passes text to get_config
    if not os.path.exists(file):
        raise ValueError(
            f"{file} does not exist: expected one of the configs {', '.join(names())}, or the path of a Python file "
            f"with get_config() (the packaged configs are in {FOLDER})"
        )
    return argument


class _Parser(flags.ArgumentParser):
    """The parser of the flag, which looks up packaged names first."""

    syntactic_help = "a name or a path"

    def __init__(self, inner: flags.ArgumentParser) -> None:
        self.inner = inner

    def parse(self, argument):
        return self.inner.parse(config_path(argument))

    def flag_type(self) -> str:
        return "config"


def define_config(default: str | None = None, studies: bool = False) -> flags.FlagHolder:
    """Define --config, and --config.section.field for each field of the named config.

    The help lists the configs of runs, or with ``studies`` those of `experiments.evaluate`.
    """
    listed = [name for name in names() if name.startswith("evaluate") == studies]
    text = (
        f"{', '.join(listed)}, or the path of a Python file with get_config(). Set its fields with "
        "--config.section.field=value."
    )
    holder = config_flags.DEFINE_config_file("config", None, text)
    flag = flags.FLAGS["config"]
    # the name of the module that a config becomes: all configs can import the packaged ones, as in `from .base import`
    parser: Any = flag.parser
    parser.name = f"{__package__}.configs.{flag.name}"
    flag.parser = _Parser(parser)
    if default:
        flags.set_default(holder, default)
    return holder
