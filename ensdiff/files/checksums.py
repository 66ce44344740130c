"""Checksums of files: whether what is read is bit for bit what was written.

- A *sealed* JSON value holds the SHA-256 of its other content, so that one atomic write stores both.
- A sealed JSON file may hold the SHA-256 of files beside it, under ``files``.
- A *sealed line* is a JSON object whose last field is the CRC-32 of the others: for files that grow.

`ensdiff.runs.sums` computes the checksums of arrays. Checksums detect accidental damage only, because anyone who can
write the files can also write new checksums. `ensdiff.certify` covers deliberate changes.
"""

import hashlib
import json
import operator
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from ensdiff import hosts
from ensdiff.files.reading import parse_json, read_bytes
from ensdiff.files.writing import write_atomically

SEAL = "sha256"
"""Name of the checksum field in a sealed value. It must stay the same in all future formats."""
_SEALED = "sealed"
_FILES = "files"
_MARK = ', "crc32": '


class DamagedError(ValueError):
    """Raised when a file is not what was written: it was truncated, or changed afterwards.

    >>> import pathlib
    >>> file = pathlib.Path("runs/tiny/run.json")
    >>> _ = file.write_text(file.read_text().replace("digits", "digitz"))
    >>> ensdiff.check_run("runs/tiny")
    ['runs/tiny/run.json ...']
    """


class DamageWarning(UserWarning):
    """Issued when something damaged was found that is not needed to continue.

    >>> import pathlib, warnings
    >>> file = pathlib.Path("runs/tiny/metrics.jsonl")
    >>> _ = file.write_text(file.read_text().replace("loss", "boss"))
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     lines = ensdiff.read_metrics("runs/tiny")
    >>> caught[0].category.__name__, lines
    ('DamageWarning', [])
    """


def warn(message: str) -> None:
    """Issue a `DamageWarning` at the caller of the calling function, on one process only."""
    hosts.warn(message, DamageWarning, stacklevel=3)


def _text_sum(values: Mapping[str, Any]) -> str:
    text = json.dumps({name: value for name, value in values.items() if name != SEAL}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON-able values together with their checksum. Arrays in them become lists.

    >>> check_seal(seal({"a": 1}), "here")
    {'a': 1}
    """
    # as it will be read back: tuples and arrays become lists, keys become strings
    values = json.loads(json.dumps(values, default=operator.methodcaller("tolist")))
    return {**values, SEAL: _text_sum(values)}


def check_seal(values: Mapping[str, Any], where: Any) -> dict[str, Any]:
    """Return the values that were sealed, without their checksum.

    Raises:
        DamagedError: the values are not those that were sealed, or have no checksum. The message names ``where``.
    """
    if not isinstance(values, Mapping) or values.get(SEAL) != _text_sum(values):
        what = "has no checksum" if SEAL not in values else "does not match its checksum"
        raise DamagedError(f"{where} is damaged: it {what}")
    return {name: value for name, value in values.items() if name != SEAL}


def write_sealed(
    path: str | os.PathLike, values: Mapping[str, Any], *, beside: Mapping[str, bytes] | None = None
) -> None:
    """Write a sealed JSON file, atomically.

    Args:
        path: the file.
        values: what it holds, JSON-able.
        beside: the content of files with the same name and other suffixes (such as ``".npz"``), which are written
            first.
    """
    for suffix, content in (beside or {}).items():
        write_atomically(pathlib.Path(path).with_suffix(suffix), content)
    files = {suffix: hashlib.sha256(content).hexdigest() for suffix, content in (beside or {}).items()}
    values = {**values, **({_FILES: files} if files else {})}
    write_atomically(path, json.dumps(seal({**values, _SEALED: True}), indent=1) + "\n")


def file_sum(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_beside(path: str | os.PathLike, values: Mapping[str, Any]) -> None:
    """Compare the files beside a sealed file with their checksums. Files without one (older versions) are accepted.

    Args:
        path: the sealed file.
        values: what `read_sealed` returned.

    Raises:
        DamagedError: a file is missing or was changed. The message names it.
    """
    files = values.get(_FILES, {})
    if not isinstance(files, dict):
        raise DamagedError(f"{path} is damaged: {_FILES} are not files with their checksums")
    for suffix, expected in files.items():
        file = pathlib.Path(path).with_suffix(suffix)
        if not file.is_file():
            raise DamagedError(f"{file} is missing: {path} was written with it")
        if file_sum(file) != expected:
            raise DamagedError(f"{file} is damaged: it does not match its checksum in {path}")


def read_sealed(path: str | os.PathLike) -> dict[str, Any]:
    """Return what `write_sealed` wrote. A JSON object without a checksum (from an older version) is returned as it is.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedError: the file was truncated or changed.
    """
    content = _content(path)
    try:
        values = parse_json(content)
    except ValueError as error:
        raise DamagedError(f"{path} is damaged: it is not a JSON file ({error})") from None
    if not isinstance(values, dict):
        raise DamagedError(f"{path} is damaged: it is no JSON object")
    if SEAL in values or _SEALED in values:  # a single changed bit cannot hide both fields
        values = check_seal(values, path)
        values.pop(_SEALED, None)
    return values


def _content(path: str | os.PathLike) -> bytes:
    try:
        return read_bytes(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except ValueError as error:  # for example a pipe in place of the file
        raise DamagedError(f"{path} is damaged: {error}") from None


def seal_line(values: Mapping[str, Any]) -> str:
    """Return one line of JSON that ends with its CRC-32.

    >>> seal_line({"step": 3})
    '{"step": 3, "crc32": 145879999}'
    """
    text = json.dumps(values)
    return f"{text[:-1]}{_MARK}{zlib.crc32(text.encode())}}}"


def read_lines(path: str | os.PathLike) -> list[dict[str, Any] | None]:
    """Return the sealed lines of a file, with None in place of each line that was changed.

    An incomplete last line, which is still being written or was interrupted, is left out. The lines of a file without
    checksums (from an older version) are returned as they are.
    """
    lines = _content(path).split(b"\n")[:-1]
    checked = [_check_line(line) for line in lines]
    sealed = any(found is not None and found[1] for found in checked)
    return [None if found is None or found[1] != sealed else found[0] for found in checked]


def damage(lines: Sequence[Any]) -> str:
    """Describe which of the lines returned by `read_lines` are damaged, or return an empty string if none are.

    >>> damage([None, {}, None])
    'lines 1, 3 do not match their checksums'
    """
    numbers = [str(number) for number, line in enumerate(lines, start=1) if line is None]
    if len(numbers) < 2:
        return f"line {numbers[0]} does not match its checksum" if numbers else ""
    return f"lines {', '.join(numbers)} do not match their checksums"


def _check_line(line: bytes) -> tuple[dict[str, Any], bool] | None:
    """Return the values of a line and whether it has a checksum, or None if the checksum does not match."""
    try:
        text = line.decode()
        values = parse_json(line)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    found = values.pop("crc32", None)
    if found is None:
        head, _, last = text.rpartition(', "')
        hidden = last.rpartition(": ")[2] == f"{zlib.crc32(f'{head}}}'.encode())}}}"  # the field's name was changed
        return None if hidden else (values, False)
    head, mark, _ = text.rpartition(_MARK)
    return (values, True) if mark and zlib.crc32(f"{head}}}".encode()) == found else None
