"""The files of a run: which of them are certified, and what else its directory holds."""

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
from ensdiff.runs.base import NAME as BASE
from ensdiff.runs.unit_names import NAME as UNIT_NAMES

FILES = ("run.json", "config.json", MANIFEST, "environment.jsonl", BASE, UNIT_NAMES)
"""Files that are certified besides the checkpoints. ``config.json`` exists if experiments.train wrote the run."""
NAME = "certificate.json"
"""Default name of a run's certificate."""
KIND = "ensdiff deletion certificate"
CHECKPOINT = re.compile(
    r"_CHECKPOINT_METADATA|commit_success\.txt|state/"
    r"(_METADATA|_sharding|commit_success\.txt|array_metadatas/process_\d+"
    r"|(ocdbt\.process_\d+/)?(manifest\.ocdbt|d/[0-9a-f]{32}))",
    re.ASCII,
)
"""Files in the folder of a checkpoint: Orbax's description, and one tree of arrays named ``state``."""
_LOCK_BYTES = 300
"""Maximum size of the file ``.lock``, which holds a process id and a host name."""


class Files(NamedTuple):
    """The content of a run directory, as names relative to it.

    Args:
        certified: regular files that are part of the run: `FILES`, and all files in the folders of checkpoints.
        odd: links, pipes and similar in place of such files.
        others: everything else, including files that do not belong in a checkpoint. Folders without files are ignored.
    """

    certified: tuple[str, ...]
    odd: tuple[str, ...]
    others: tuple[str, ...]


def find_files(path: pathlib.Path) -> Files:
    """List the files of a run directory, which may not exist. No file is opened and no link is followed.

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
    """Yield the name of everything below a folder except folders, and whether it is a regular file."""

    def fail(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(path, onerror=fail):
        for name in [*folders, *names]:
            found = pathlib.Path(folder, name)
            mode = found.lstat().st_mode
            if not stat.S_ISDIR(mode):
                yield found.relative_to(path).as_posix(), stat.S_ISREG(mode)


def check_files(path: pathlib.Path) -> Files:
    """Return `find_files` after checking that all certified files are regular files.

    Raises:
        ValueError: some are links, pipes or similar. The message names them.
    """
    files = find_files(path)
    if files.odd:
        raise ValueError(f"{path} cannot be certified: {'; '.join(odd_files(files))}")
    return files


def odd_files(files: Files) -> list[str]:
    """Return one line per certified file that is not a regular file."""
    return [
        f"{name}: a link or a special file, which may lead out of the run; put a plain file or folder in its place"
        for name in files.odd
    ]


def hashes(path: pathlib.Path, files: Files) -> dict[str, str]:
    """Return the SHA-256 of each certified file, keyed by its path within the run."""
    return {name: file_sum(path / name) for name in files.certified}


def strangers(path: pathlib.Path, files: Files, members: int, last: int, fields: Collection[str]) -> list[str]:
    """Return the other files whose content is unknown, and which may therefore hold further members.

    The known files are the run's lock, a certificate and the metrics.

    Args:
        path: the run directory.
        files: its content.
        members: number of members in the metrics.
        last: the last step that the metrics may hold.
        fields: the fields that a certificate may have.
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
"""Fields of one line of the metrics."""


def _is_log(file: pathlib.Path, members: int, last: int) -> bool:
    """Return whether a file holds only metrics, of ``members`` members and of steps up to ``last``.

    It must be exactly what training writes, character for character, so that extra digits cannot hide anything.
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
