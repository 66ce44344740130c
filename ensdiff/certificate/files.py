"""The files of a run: which are certified, and what else lies in its directory."""

import itertools
import json
import math
import os
import pathlib
import re
import stat
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from ensdiff.data.manifest import NAME as MANIFEST
from ensdiff.files.checksums import file_sum, read_lines, seal_line
from ensdiff.files.reading import read_json, whole_number

FILES = ("run.json", "config.json", MANIFEST, "environment.jsonl")
"""What is certified beside the checkpoints; ``config.json`` is there when experiments.train wrote the run."""
NAME = "certificate.json"
"""Where a run's certificate is, unless told otherwise."""
KIND = "ensdiff deletion certificate"
CHECKPOINT = re.compile(
    r"_CHECKPOINT_METADATA|commit_success\.txt|state/"
    r"(_METADATA|_sharding|commit_success\.txt|array_metadatas/process_\d+"
    r"|(ocdbt\.process_\d+/)?(manifest\.ocdbt|d/[0-9a-f]{32}))",
    re.ASCII,
)
"""Files in the folder of a checkpoint: Orbax's description, and one tree of arrays that is called ``state``."""
_LOCK_BYTES = 300
"""Of the file ``.lock``: a process and the name of a host."""


class Files(NamedTuple):
    """What lies in a run directory, by name relative to it.

    Args:
        certified: plain files that are part of the run: `FILES`, and all in the folders of checkpoints.
        odd: links, pipes and the like in the places of such files.
        others: everything else, and files that no checkpoint has; folders without files do not count.
    """

    certified: tuple[str, ...]
    odd: tuple[str, ...]
    others: tuple[str, ...]


def find_files(path: pathlib.Path) -> Files:
    """Look through a run directory, which may be missing; nothing is opened and no link is followed.

    Raises:
        OSError: a folder in it cannot be read.
    """
    certified: list[str] = []
    odd: list[str] = []
    others: list[str] = []
    for name, plain in sorted(_entries(path)) if path.is_dir() else ():
        first, *rest = name.split("/", 2)
        own = name in FILES or name == "checkpoints"
        if first == "checkpoints" and rest and whole_number(rest[0]) is not None:
            own = len(rest) == 2 or not plain
            if plain and own and not CHECKPOINT.fullmatch(rest[1]):
                others.append(name)
        if own:
            (certified if plain else odd).append(name)
        else:
            others.append(name)
    return Files(tuple(certified), tuple(odd), tuple(others))


def _entries(path: pathlib.Path) -> Iterator[tuple[str, bool]]:
    """The name of everything below a folder but folders, and whether it is a plain file."""

    def fail(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(path, onerror=fail):
        for name in [*folders, *names]:
            found = pathlib.Path(folder, name)
            mode = found.lstat().st_mode
            if not stat.S_ISDIR(mode):
                yield found.relative_to(path).as_posix(), stat.S_ISREG(mode)


def check_files(path: pathlib.Path) -> Files:
    """`find_files`, where all certified files are plain ones.

    Raises:
        ValueError: some are links, pipes or the like; names them.
    """
    files = find_files(path)
    if files.odd:
        raise ValueError(f"{path} cannot be certified: {'; '.join(odd_files(files))}")
    return files


def odd_files(files: Files) -> list[str]:
    """A line for each certified file that is no plain one."""
    return [
        f"{name}: a link or a special file, which may lead out of the run; put a plain file or folder in its place"
        for name in files.odd
    ]


def hashes(path: pathlib.Path, files: Files) -> dict[str, str]:
    """SHA-256 of each certified file."""
    return {name: file_sum(path / name) for name in files.certified}


def strangers(path: pathlib.Path, files: Files, members: int, last: int, fields: Collection[str]) -> list[str]:
    """Of the other files, those that may hold anything, such as members that the run says it does not hold.

    Known are the run's lock, a certificate, and metrics.

    Args:
        path: the run directory.
        files: what lies in it.
        members: number of members that the metrics are of.
        last: the last step that they may be of.
        fields: that a certificate may have.
    """
    known = {
        ".lock": lambda file: file.stat().st_size <= _LOCK_BYTES,
        NAME: lambda file: _is_certificate(file, fields),
        "metrics.jsonl": lambda file: _is_log(file, members, last),
    }

    def is_known(name: str) -> bool:
        file = path / name
        return name in known and file.is_file() and not file.is_symlink() and known[name](file)

    return [name for name in files.others if not is_known(name)]


def _is_certificate(file: pathlib.Path, fields: Collection[str]) -> bool:
    try:
        values = read_json(file)
    except ValueError:
        return False
    return isinstance(values, dict) and values.get("kind") == KIND and set(values) <= set(fields)


_LOGGED = {"step", "time", "loss_K", "grad_norm_K"}
"""Fields of a line of the metrics."""


def _is_log(file: pathlib.Path, members: int, last: int) -> bool:
    """Whether a file is the metrics of that many members up to a step, and nothing but them.

    It must be what training writes, to the character: a number may not have more digits than it needs.
    """
    lines = [values for values in read_lines(file) if values is not None and _is_logged(values, members)]
    steps = [0, *(values["step"] for values in lines)]
    # older versions wrote lines without checksums
    written = ["".join(write(values) + "\n" for values in lines).encode() for write in (seal_line, json.dumps)]
    return file.read_bytes() in written and all(a < b for a, b in itertools.pairwise(steps)) and steps[-1] <= last


def _is_logged(values: dict[str, Any], members: int) -> bool:
    lists = [value for name, value in values.items() if name.endswith("_K")]
    return (
        set(values) == _LOGGED
        and type(values["step"]) is int
        and all(isinstance(value, list) and len(value) == members for value in lists)
        and all(type(x) is float and math.isfinite(x) for x in [values["time"], *itertools.chain(*lists)])
    )
