"""Tables of the programs: rows as dictionaries, written as Markdown."""

import dataclasses
from typing import Any

from tabulate import tabulate


@dataclasses.dataclass
class Table:
    """One table of a report: every row a dictionary from column to cell."""

    title: str
    rows: list[dict[str, Any]]
    note: str = ""

    def __str__(self) -> str:
        body = tabulate(self.rows, headers="keys", tablefmt="github", floatfmt=".3g")
        return "\n\n".join(part for part in (f"### {self.title}", self.note, body) if part) + "\n"


def interval(estimate: Any, digits: int = 2) -> str:
    """``value [low, high]`` of anything with these fields."""
    value, low, high = (f"{number:.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"
