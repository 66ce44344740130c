"""Tables of the programs, built from rows that map columns to cells, and written as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from ensdiff.report import Table


def table(title: str, rows: Sequence[Mapping[str, Any]], note: str = "") -> Table:
    """Return a table of rows that map columns to cells; a row may lack columns.

    >>> table("Jobs", [{"job": "train", "ms": 3.0}, {"job": "sample"}]).rows
    [['train', 3.0], ['sample', None]]
    """
    header = list(dict.fromkeys(name for row in rows for name in row))
    return Table(title, header, [[row.get(name) for name in header] for row in rows], note)


def as_records(table: Table) -> dict[str, Any]:
    """Return a table as JSON-serialisable keyword arguments of `table`."""
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    return {"title": table.title, "rows": rows, "note": table.note}


def markdown(table: Table) -> str:
    """Return a table as Markdown, with three significant digits of each number."""
    body = tabulate(table.rows, headers=table.header, tablefmt="github", floatfmt=".3g")
    return "\n\n".join(part for part in (f"### {table.title}", table.note, body) if part) + "\n"


def interval(estimate: Any, digits: int = 2) -> str:
    """Return an estimate as the text ``value [low, high]``."""
    value, low, high = (f"{number:.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"
