"""The result of a study, written as Markdown tables, JSON numbers and SVG figures."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from ensdiff.files.writing import write_atomically
from ensdiff.report import Table

from ..tables import markdown


@dataclasses.dataclass(frozen=True)
class Findings:
    """The result of one study.

    Args:
        title: question of the study.
        tables: answers, with notes that explain how to read them.
        numbers: all numbers behind the tables; JSON-serialisable values, arrays and NamedTuples.
        figures: contents of SVG files, by file name without suffix.
    """

    title: str
    tables: list[Table]
    numbers: dict[str, Any]
    figures: dict[str, bytes] = dataclasses.field(default_factory=dict)

    def markdown(self) -> str:
        """Return the title, tables and figures as Markdown."""
        figures = [f"![{name}]({name}.svg)\n" for name in self.figures]
        return "\n".join([f"## {self.title}\n", *map(markdown, self.tables), *figures])

    def write(self, folder: pathlib.Path, name: str, record: dict[str, Any]) -> None:
        """Write ``name.md``, ``name.json`` (with ``record``) and the figures."""
        folder.mkdir(parents=True, exist_ok=True)
        for figure, content in self.figures.items():
            write_atomically(folder / f"{figure}.svg", content)
        values = {**record, "title": self.title, "numbers": plain(self.numbers)}
        write_atomically(folder / f"{name}.json", json.dumps(values, indent=1) + "\n")
        write_atomically(folder / f"{name}.md", self.markdown())


def plain(value: Any) -> Any:
    """Convert to JSON-serialisable values: NamedTuples to objects, arrays to lists, NaN and infinity to None.

    Floats are rounded to 6 significant digits.
    """
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
