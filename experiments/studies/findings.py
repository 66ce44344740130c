"""What a study found, and how it is written: tables as Markdown, numbers as JSON, figures as SVG."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from ensdiff.files.writing import write_atomically
from ensdiff.report import Table
from experiments.tables import markdown


@dataclasses.dataclass(frozen=True)
class Findings:
    """The result of one study.

    Args:
        title: what was asked.
        tables: the answer; their notes say how to read them.
        numbers: everything that the tables were made from, JSON-able but for arrays and NamedTuples.
        figures: SVG files by their names without a suffix.
    """

    title: str
    tables: list[Table]
    numbers: dict[str, Any]
    figures: dict[str, bytes] = dataclasses.field(default_factory=dict)

    def markdown(self) -> str:
        """Title, tables and figures."""
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
    """JSON-able: NamedTuples as objects, arrays as lists, floats to 6 digits, NaN and infinity as null."""
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
