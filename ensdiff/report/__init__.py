"""The figures and the HTML report."""

from ensdiff.data.images import grid, to_png
from ensdiff.report.build import attribution_sections
from ensdiff.report.figures import capacity_figure, data_uri, loss_figure, null_figure
from ensdiff.report.page import Figure, Page, SampleSection, Table, UnitCard, picture, write_page
from ensdiff.report.paper import comparison_figure, comparison_table, landscape_figure, radius_figure
from ensdiff.report.reading import HOW_TO_READ, how_to_read
from ensdiff.report.wording import finding, verdict_words

__all__ = [
    "HOW_TO_READ",
    "Figure",
    "Page",
    "SampleSection",
    "Table",
    "UnitCard",
    "attribution_sections",
    "capacity_figure",
    "comparison_figure",
    "comparison_table",
    "data_uri",
    "finding",
    "grid",
    "how_to_read",
    "landscape_figure",
    "loss_figure",
    "null_figure",
    "picture",
    "radius_figure",
    "to_png",
    "verdict_words",
    "write_page",
]
