"""Reading files that others may have written."""

import json
import os
import pathlib
from typing import Any


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or nested too deep; names the file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    try:
        return json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file, or is damaged: {error}") from error
