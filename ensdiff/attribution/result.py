"""`Attribution`: the most influential units of each sample, and their significance."""

import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ensdiff.attribution.audit import Audit, Recall
from ensdiff.attribution.figure import draw
from ensdiff.attribution.judging import Judgement, judgement_of
from ensdiff.attribution.measures import distance_words
from ensdiff.codes.unit_names import UnitNames, labels
from ensdiff.data.viewing import Decode
from ensdiff.files.checksums import check_beside, read_sealed, write_sealed
from ensdiff.files.npy import read_npz
from ensdiff.files.reading import installed
from ensdiff.metrics.arrays import at_most

_ARRAYS = ("units", "influence", "p_value", "q_value", "q_value_of_call", "standard_error", "null_BL")
NULLS = {
    "ablations": "null ablations",
    "held-out": "held-out items",
    "groups": "random groups",
    "sets": "random sets",
}
"""What the influences of a call are compared with, by the kind of null in its settings."""


@dataclasses.dataclass(frozen=True, eq=False)
class Attribution:
    """The most influential units of each sample, most influential first.

    Args:
        units: (B, top) unit ids; for sets, their positions in ``sets``.
        influence: (B, top). For ``"exact"``, ``"screen"`` and ``"differential"``: distances between the sample and its
            counterfactual, >= 0, in units of ``distance``. For ``"loss"``: how much the removal of the unit raises the
            image's loss (7), squared noise summed over pixels; positive means less likely without the unit. For the
            gradient methods and ``"combined"``: how much the unit's presence in training lowers the image's loss for a
            single model, in the same units if ``distance`` is ``"loss"``.
        p_value: (B, top) share of the null that reaches the influence (n1); None without a null.
        q_value: (B, top) Benjamini-Hochberg q among all candidates of the same sample (n2); None without a null. If
            every unit with q <= a is called a cause of its sample, on average at most a share a of one sample's causes
            is false.
        null_BL: (B, L) influences of the null: ablations that remove no unit, or for gradient methods held-out items,
            random groups or random sets (``settings["null_kind"]``); None without a null.
        method: name of the method that computed the influences.
        distance: ``"l2"`` over [0, 1] pixels, ``"l2 over latents"``, the name of the feature or distance function,
            ``"loss"``, or ``"score"`` for a caller's own method and for gradient scores of which the members cannot
            tell the scale.
        settings: all other settings of the call.
        level: level of the verdicts: units with q <= level (up to rounding) are attributed.
        standard_error: (B, top) of the influence: for ``"loss"`` from its draws, for gradient methods from the spread
            of the members, for ``"combined"`` the posterior standard deviation; None for other methods.
        sets: the candidate sets of units, if sets were given.
        audit: estimate of what a screen missed; None without an audit.
        judgement: how well the scores predict the members' own losses of these queries (9), for gradient methods; None
            for other methods, and where there are too few members to judge.
        q_value_of_call: (B, top) `q_value` among the candidates of all samples of the call, for statements on all
            samples at once; None without a null, and in files of older versions.
        names: the names of these units, and of others with the same names, by their ids; None if they have none.

    >>> att = ensdiff.attribute(params, samples, "differential", top=3, null=9)
    >>> att.units.shape, att.p_value.shape
    ((2, 3), (2, 3))
    >>> att.save("att")
    >>> ensdiff.Attribution.load("att").verdict == att.verdict
    True
    """

    units: Int[np.ndarray, "B top"]
    influence: Float[np.ndarray, "B top"]
    p_value: Float[np.ndarray, "B top"] | None
    null_BL: Float[np.ndarray, "B L"] | None
    method: str
    distance: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    q_value: Float[np.ndarray, "B top"] | None = None
    level: float = 0.1
    standard_error: Float[np.ndarray, "B top"] | None = None
    sets: tuple[tuple[int, ...], ...] | None = None
    audit: Audit | None = None
    judgement: Judgement | None = None
    q_value_of_call: Float[np.ndarray, "B top"] | None = None
    names: Mapping[int, str] | None = None

    def named(self, names: Sequence[Any] | None) -> "Attribution":
        """Return this attribution with the names of its units; unchanged without names, or if they only number units.

        Args:
            names: the names of all units of the code, such as ``data.unit_names``.

        >>> att = ensdiff.attribute(params, samples, "differential", units=[3, 7], top=1)
        >>> att.named([f"artist {i}" for i in range(40)]).to_pandas()["name"][0] in ("artist 3", "artist 7")
        True
        """
        known = UnitNames.of(names)
        if known is None:
            return self
        ids = np.unique(self.units) if self.sets is None else {unit for entry in self.sets for unit in entry}
        return dataclasses.replace(self, names=known.some(ids))

    @property
    def verdict(self) -> list[str] | None:
        """Return one sentence per sample: the units it is attributable to at ``level``, if any. None without a null."""
        if self.q_value is None:
            return None
        out = []
        for b, (units, q_T) in enumerate(zip(self.units, self.q_value, strict=True)):
            names = [self.label(unit) for unit in units[at_most(q_T, self.level)]]
            every = self.settings.get("attributed")
            if every is not None and every[b] > len(names):
                shown = f"{', '.join(names)} and " if names else ""
                out.append(
                    f"attributable to {shown}{every[b] - len(names)} units outside of the top {len(units)} at level "
                    f"{self.level:g}"
                )
            elif names:
                more = f" and perhaps more than the top {len(units)}" if len(names) == len(units) else ""
                out.append(f"attributable to {', '.join(names)}{more} at level {self.level:g}")
            else:
                out.append(f"unattributable at level {self.level:g}")
        return out

    @property
    def resolution(self) -> float | None:
        """Return the lowest q that a single unit could reach: candidates / (1 + null ablations), at most 1.

        If it exceeds ``level``, "unattributable" may only mean that the null is too small. None without a null.
        """
        if self.null_BL is None:
            return None
        candidates = self.settings["candidates"] * (len(self) if self._of_call else 1)
        return min(1.0, candidates / (1.0 + self.settings["null_of_a_kind"]))

    @property
    def limitation(self) -> str | None:
        """Return a warning if the null is too small for a single unit to be attributable; otherwise None."""
        if self.resolution is None or at_most(self.resolution, self.level):
            return None
        more = {
            "ablations": "give more null ablations, or train with more members if there are no more",
            "held-out": "give more held-out items",
        }.get(self._null_kind, "give a larger null")
        return (
            f"with this null one unit alone cannot reach q <= {self.level:g}: its q is at least {self.resolution:.2g}; "
            f"{more}"
        )

    @property
    def _of_call(self) -> bool:
        return self.settings.get("q_among") == "call"

    def over_call(self) -> "Attribution":
        """Return the same result with verdicts by `q_value_of_call`, which allow for the number of samples too.

        A group whose code word happens to move many samples then gives no verdict for a few of them. It needs a larger
        null: candidates times samples / level - 1 for one unit of one sample alone.

        Raises:
            ValueError: there is no null, or the result was saved by an older version.

        >>> att = ensdiff.attribute(params, samples, "differential", top=3, null=9)
        >>> bool((att.over_call().q_value == att.q_value_of_call).all())
        True
        """
        if self.q_value_of_call is None:
            raise ValueError("there are no q-values among all samples: attribute with null=, by this version")
        settings = {name: value for name, value in self.settings.items() if name != "attributed"}
        return dataclasses.replace(self, q_value=self.q_value_of_call, settings=settings | {"q_among": "call"})

    @property
    def _null_kind(self) -> str:
        return self.settings.get("null_kind", "ablations")

    def __len__(self) -> int:
        return len(self.units)

    def __repr__(self) -> str:
        B, top = self.units.shape
        null = "no null" if self.null_BL is None else f"{self.null_BL.shape[1]:,} {NULLS[self._null_kind]}"
        candidates = f"{self.settings['candidates']:,} candidates, " if "candidates" in self.settings else ""
        unit = self.distance if self.distance in ("loss", "score") else distance_words(self.distance)
        lines = [f"Attribution({self.method}, {unit}, {candidates}{null}, top {top} of {B} samples)"]
        captions = self.settings.get("captions")
        for b in range(min(B, 8)):
            cells = []
            for i in range(min(top, 4)):
                error = "" if self.standard_error is None else f" +- {self.standard_error[b, i]:.1g}"
                p = "" if self.p_value is None else f", p={self.p_value[b, i]:.3g}"
                q = "" if self.q_value is None else f", q={self.q_value[b, i]:.2g}"
                cells.append(f"{self.label(self.units[b, i])} ({self.influence[b, i]:.3g}{error}{p}{q})")
            told = f" ({captions[b]})" if captions else ""
            lines.append(f"  sample {b}{told}: " + ", ".join(cells) + (", ..." if top > 4 else ""))
            if self.verdict is not None:
                lines.append(f"    {self.verdict[b]}")
        lines += ["  ..."] if B > 8 else []
        if self._of_call:
            lines.append(f"  q compares the candidates of all {B} samples")
        elif self.q_value_of_call is not None and B > 1:
            with_any = int(at_most(self.q_value_of_call, self.level).any(1).sum())
            lines.append(
                f"  q compares the candidates of one sample; among those of all {B} samples, {with_any} of the samples "
                f"have one with q <= {self.level:g} (q_value_of_call)"
            )
        if self.limitation is not None:
            lines.append(f"  {self.limitation}")
        if self.judgement is not None:
            lines.append(f"  {self.judgement}")
        if self.audit is not None:
            recall = self.audit.pooled
            lines.append(
                f"  audit of {self.audit.checked} unverified units per sample: recall {recall.value:.3f} "
                f"({self.audit.confidence:.0%} interval {recall.low:.3f} .. {recall.high:.3f}, samples pooled)"
            )
        return "\n".join(lines)

    @functools.cached_property
    def _labels(self) -> Mapping[int, str]:
        return {} if self.names is None else labels(self.names)

    def label(self, unit: Any) -> str:
        """Return the name of an entry of ``units`` for a reader, with the id where names repeat; without names, the id.

        >>> ensdiff.attribute(params, samples, "differential", units=[3, {4, 7}], top=1).label(1)
        '{4, 7}'
        """
        ids = [int(unit)] if self.sets is None else self.sets[int(unit)]
        text = ", ".join(self._labels.get(i, str(i)) for i in ids)
        return text if self.sets is None else "{" + text + "}"

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame with one row per sample and unit: sample, rank, unit, influence and its statistics.

        The column ``unit`` has the id and, if units have names, ``name`` the name. For sets, ``unit`` is the position
        in `sets`, and the columns ``set`` and ``name`` have tuples of ids and of names.

        Raises:
            ImportError: pandas is not installed; it comes with ``pip install 'ensdiff[pandas]'``.
        """
        with installed("to_pandas needs pandas", "pandas"):
            import pandas
        B, top = self.units.shape
        columns: dict[str, Any] = {"sample": np.repeat(np.arange(B), top), "rank": np.tile(np.arange(1, top + 1), B)}
        columns["unit"] = self.units.reshape(-1)
        if self.sets is not None:
            columns["set"] = [self.sets[int(i)] for i in columns["unit"]]
        names = self.names
        if names is not None:
            columns["name"] = [names[int(i)] for i in columns["unit"]] if self.sets is None else [
                tuple(names[i] for i in entry) for entry in columns["set"]
            ]  # fmt: skip
        for name in ("influence", "standard_error", "p_value", "q_value", "q_value_of_call"):
            values = getattr(self, name)
            if values is not None:
                columns[name] = values.reshape(-1)
        return pandas.DataFrame(columns)

    def save(self, path: str | os.PathLike) -> None:
        """Write ``path.npz`` (the arrays) and ``path.json`` (the other values, readable text, and both checksums).

        Raises:
            OSError: the files cannot be written.
        """
        stem, arrays = pathlib.Path(path), io.BytesIO()
        np.savez_compressed(
            arrays, **{name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        )
        values: dict[str, Any] = {
            "method": self.method,
            "distance": self.distance,
            "level": self.level,
            "settings": self.settings,
            "sets": self.sets,
            "unit_names": self.names,
            "audit": None if self.audit is None else self.audit._asdict(),
            "judgement": None if self.judgement is None else self.judgement._asdict(),
            "verdict": self.verdict,
            **{name: getattr(self, name) for name in _ARRAYS if name != "null_BL"},
        }
        write_sealed(_with(stem, ".json"), values, beside={".npz": arrays.getvalue()})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Attribution":
        """Load what `save` wrote to the same path.

        Raises:
            FileNotFoundError: one of the two files is missing.
            DamagedError: a file changed after it was written; the message names it. Files of older versions have no
                checksums, so this is not checked for them.
            ValueError: a file was not written by `save`.
        """
        stem = pathlib.Path(path)
        values = read_sealed(_with(stem, ".json"))
        check_beside(_with(stem, ".json"), values)
        file = read_npz(_with(stem, ".npz"))
        arrays: dict[str, Any] = {name: file.get(name) for name in _ARRAYS}
        try:
            return cls._from_values(values, arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{stem}.json is not what Attribution.save writes: {error!r}") from error

    @classmethod
    def _from_values(cls, values: dict[str, Any], arrays: dict[str, Any]) -> "Attribution":
        sets = values["sets"]
        audit = values["audit"]
        if audit is not None:
            audit = {name: np.asarray(value) if isinstance(value, list) else value for name, value in audit.items()}
            audit = Audit(**{**audit, "pooled": Recall(*np.atleast_1d(audit["pooled"]).tolist())})
        out = cls(
            method=values["method"],
            distance=values["distance"],
            level=values["level"],
            settings=values["settings"],
            sets=None if sets is None else tuple(tuple(entry) for entry in sets),
            audit=audit,
            judgement=judgement_of(values.get("judgement")),
            **arrays,
        )
        stored = values.get("unit_names")
        if stored is None:  # older versions stored only the names in a code, all of them
            return out.named(out.settings.get("names"))
        return dataclasses.replace(out, names={int(unit): str(name) for unit, name in stored.items()})

    def plot(self, images: Any, data: Any = None, *, top: int = 6, decode: Decode | None = None) -> Any:
        """Return a matplotlib figure that shows each sample, with its condition, beside its top units.

        Args:
            images: the samples, or (B, H, W, C) their images, in [0, 1] or latents.
            data: the training data, to show each unit's first item; without it only the units' names are shown.
            top: units shown per sample.
            decode: a function from latents (n, H, W, C) to pictures (n, h, w, c) in [0, 1]; without it latents are
                shown as `ensdiff.data.viewing.rough_view`.

        Raises:
            ValueError: the number of images is not the number of samples, or the data do not have the units of this
                attribution.
        """
        return draw(self, images, data, top=top, decode=decode)


def _with(stem: pathlib.Path, suffix: str) -> pathlib.Path:
    return stem.with_name(stem.name + suffix)
