"""One self-contained HTML page per run: samples, the training units that move them most, and the counterfactuals."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from ensdiff.data.images import to_png
from ensdiff.files.writing import make_folder, write_atomically
from ensdiff.report.figures import data_uri

SHOWN = 4
"""Maximum number of training images shown per unit."""


class Table(NamedTuple):
    """A table with a title and a sentence on how to read it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


class Figure(NamedTuple):
    """A picture as a data URI, with its title and an alternative text."""

    title: str
    uri: str
    alt: str


class UnitCard(NamedTuple):
    """One training unit that a sample may depend on.

    Args:
        name: its name.
        images: (n, H, W, C) some of its training images that the data set still holds.
        counterfactual: (H, W, C) in [0, 1], the sample without the unit; None if it cannot be computed, because the
            picture was not generated here.
        influence: how far the sample moves without the unit, in the units of `Attribution.influence`.
        members: (K,) 1 for each member that saw the unit.
        extra: further values, such as a p-value.
        deleted: number of its training images that were deleted from the data set.
        error: the standard error of the influence, if it has one.
        meaning: what the influence is, in a few words.
        held: number of training images that the data set still holds; by default all are in ``images``.
        chosen: how the images were chosen among the unit's; by default they are its first.
    """

    name: str
    images: Shaped[np.ndarray, "n H W C"]
    counterfactual: Float[np.ndarray, "H W C"] | None
    influence: float
    members: Int[np.ndarray, " K"]
    extra: Mapping[str, str] = {}
    deleted: int = 0
    error: float | None = None
    meaning: str = "the distance that the sample moves without the unit"
    held: int | None = None
    chosen: str | None = None

    @property
    def hidden(self) -> int:
        """Return how many of its training images the page does not show."""
        return (len(self.images) if self.held is None else self.held) - min(len(self.images), SHOWN)

    @property
    def score(self) -> str:
        """Return the influence as the page shows it, with its error."""
        return f"{self.influence:.3f}" if self.error is None else f"{self.influence:.3g} ± {self.error:.2g}"


class SampleSection(NamedTuple):
    """One sample, or one picture from elsewhere.

    Args:
        heading: its name.
        image: (H, W, C) in [0, 1].
        note: the findings in detail.
        units: its units, most influential first.
        figure: a figure of its null.
        caption: a text for its condition.
        verdict: the finding in a few words, for the head of the page.
        named: number of the first units that the verdict names.
        origin: how the picture came to be.
    """

    heading: str
    image: Float[np.ndarray, "H W C"]
    note: str
    units: Sequence[UnitCard]
    figure: Figure | None = None
    caption: str | None = None
    verdict: str | None = None
    named: int = 0
    origin: str = "as generated"


class Page(NamedTuple):
    """The content of the report; the finding is one line on what was found in all samples."""

    title: str
    intro: Sequence[str]
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    samples: Sequence[SampleSection] = ()
    finding: str | None = None


def picture(image: np.ndarray, side: int = 96) -> str:
    """Return a data URI of an image, enlarged by an integer factor to about ``side`` pixels."""
    return data_uri(to_png(image, scale=max(1, side // max(image.shape[:2]))))


GAIN = 4
"""Factor by which differences are brightened."""


def difference(image: np.ndarray, counterfactual: np.ndarray) -> np.ndarray:
    """Return the absolute difference of two images in [0, 1], times `GAIN`. It is black where they agree."""
    return GAIN * np.abs(np.asarray(image, np.float32) - np.asarray(counterfactual, np.float32))


def write_page(path: str | os.PathLike, page: Page) -> pathlib.Path:
    """Write the page as one file, completely or not at all. The page loads nothing else, and names in it are escaped.

    Returns:
        The file's absolute path.
    """
    html = render("page.html.jinja", page=page, picture=picture, difference=difference, shown=SHOWN, gain=GAIN)
    path = pathlib.Path(path).resolve()
    make_folder(path.parent)
    write_atomically(path, html)
    return path


def render(template: str, **values: Any) -> str:
    """Return the HTML of a template of `ensdiff.report`, with all values escaped."""
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("ensdiff.report", ".")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**values)
