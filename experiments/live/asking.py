"""The fields of requests, checked: every value has a bound, and every error is one sentence."""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

MOST_UNITS = 64
"""Most units that one request removes."""
MOST_SAMPLES = 16
"""Most samples that one request draws."""
LONGEST_TEXT = 1000
"""Most characters of a text, such as a prompt or names of units."""
LARGEST_FIELDS = 2**16
"""Most bytes of a request's fields."""
LARGEST_FILE = 2**24
"""Most bytes of a picture's file."""
LARGEST_PICTURE = 2**24
"""Most pixels of a picture."""
START = r"(?:file:|~|[A-Za-z]:|\.\.)?[/\\]"
"""The beginning of a path from the root, the home folder or the parent folder, as a regular expression."""


class Refused(Exception):
    """A request that is answered by an error: its status, and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def fields_of(content: bytes) -> dict[str, Any]:
    """Return the fields of a request, whose content is a JSON object.

    Raises:
        Refused: the content is not JSON, or not an object.
    """
    from ensdiff.files.reading import parse_json

    try:
        values = parse_json(content, finite=True)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The request is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise Refused(400, f"The request is a {type(values).__name__}: expected an object with fields.")
    return values


def only(values: Mapping[str, Any], *names: str) -> None:
    """Check that a request has no other fields than these.

    Raises:
        Refused: it has another field.
    """
    unknown = [name for name in values if name not in names]
    if unknown:
        raise Refused(400, f"Unknown field {str(unknown[0])[:40]!r}: expected some of {', '.join(names)}.")


def whole(values: Mapping[str, Any], name: str, low: int, high: int, default: int | None = None) -> int:
    """Return the whole number in a field, or ``default`` if the request lacks the field.

    A text of up to 12 digits counts as a number.

    Raises:
        Refused: it is not a whole number from ``low`` to ``high``, or the field is missing and has no default.
    """
    value = values.get(name, default)
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Refused(400, f"{name}={_short(value)}: expected a whole number, {low} to {high}.")
    return value


def number(values: Mapping[str, Any], name: str, most: float) -> float | None:
    """Return the number in a field, or None if the field is missing or null.

    Raises:
        Refused: it is not a number from ``-most`` to ``most``.
    """
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= most:
        raise Refused(400, f"{name}={_short(value)}: expected a number, {-most:g} to {most:g}.")
    return float(value)


def text(values: Mapping[str, Any], name: str) -> str | None:
    """Return the text in a field, without blanks around it; None if the field is missing, null or blank.

    Raises:
        Refused: it is not a text of at most `LONGEST_TEXT` characters.
    """
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise Refused(400, f"{name}={_short(value)}: expected a text of at most {LONGEST_TEXT:,} characters.")
    return value.strip() or None


def units_of(values: Mapping[str, Any]) -> list[int | str]:
    """Return the entries of the field ``units``, which are ids and names. A text becomes a list with this one entry.

    Raises:
        Refused: there are no units or more than `MOST_UNITS`, or an entry is no whole number and no `text`.
    """
    value = values.get("units")
    if isinstance(value, str):
        found = text(values, "units")
        value = [] if found is None else [found]
    if not isinstance(value, list) or not value:
        raise Refused(400, "No units: expected ids or names, such as 3 or 5,8.")
    if len(value) > MOST_UNITS:
        raise Refused(400, f"There are {len(value)} units in the request: expected at most {MOST_UNITS}.")
    for unit in value:
        if (
            isinstance(unit, bool)
            or not isinstance(unit, int | str)
            or (isinstance(unit, str) and len(unit) > LONGEST_TEXT)
        ):
            raise Refused(400, f"units={_short(value)}: expected ids or names.")
    return value


def sentence(error: BaseException, run: str | os.PathLike) -> str:
    """Return an error as one sentence, without paths of files outside of the run.

    >>> sentence(ValueError("/home/me/x.npz is damaged"), "runs/x")
    'A file of the server is damaged.'
    """
    from ensdiff.files.reading import printable

    if not isinstance(error, ValueError | OSError | ImportError | MemoryError | Refused):
        return f"The computation failed ({type(error).__name__}). Where the server was started, there is more about it."
    said = "Out of memory" if isinstance(error, MemoryError) else " ".join(str(error).split()) or type(error).__name__
    for root in {str(run), str(pathlib.Path(run).resolve())}:
        if len(root) > 1:
            said = said.replace(f"{root}{os.sep}", "").replace(root, "the run")
    said = re.sub(rf"(['\"]){START}.*?\1", r"\1a file of the server\1", said)
    said = re.sub(rf"(?<![\w.:/]){START}[^\s'\",;:()]+", "a file of the server", said)
    said = printable(said[:1].upper() + said[1:])
    return said if said.endswith((".", "!", "?")) else f"{said}."


def _short(value: Any) -> str:
    return f"{value!r:.60}"
