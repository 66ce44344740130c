"""The deletion certificate: which members of a run never drew certain units, and how anyone can check that."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from ensdiff.certificate.files import KIND, NAME, check_files, find_files, hashes, odd_files
from ensdiff.certificate.replay import replay as train_anew
from ensdiff.certificate.run import Run
from ensdiff.certificate.sections import FIELDS, LIMITS, SECTIONS, Facts, compare
from ensdiff.data import Dataset
from ensdiff.data.matching import unit_differences
from ensdiff.files.reading import printable, read_json
from ensdiff.files.writing import write_atomically
from ensdiff.models.denoiser import Denoiser

__all__ = ["LIMITS", "NAME", "Certificate", "Verification", "certify"]

FORMAT = 2
"""Format number of certificates. Format 1 covers less, so such a certificate must be reissued."""


class Verification(NamedTuple):
    """The result of `Certificate.verify`.

    Args:
        failures: one line per difference; empty if the certificate holds.
        checked: what was checked, in words.

    >>> found = ensdiff.certify("runs/tiny", units=[3]).verify("runs/tiny")
    >>> found.ok, found.failures
    (True, ())
    """

    failures: tuple[str, ...]
    checked: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the certificate holds."""
        return not self.failures


@dataclasses.dataclass(frozen=True)
class Certificate:
    """A deletion certificate, made by `certify` or `load`.

    Args:
        values: its content as JSON-able values.

    >>> certificate = ensdiff.certify("runs/tiny", units=[3])
    >>> certificate.units, len(certificate.survivors)
    ((3,), 4)
    >>> certificate.save("certificate.json")
    >>> ensdiff.Certificate.load("certificate.json").digest == certificate.digest
    True
    """

    values: Mapping[str, Any]

    @property
    def units(self) -> tuple[int, ...]:
        """The units that no survivor drew.

        Raises:
            ValueError: the certificate is forged and lists something else.
        """
        return tuple(_unit_ids(self.values.get("units")))

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the units, in the order of `units`, for reading only; None if the certificate has none."""
        if not _is_named(self.values):
            return None
        return tuple(str(entry.get("name", "")) if isinstance(entry, dict) else "" for entry in self.values["units"])

    @property
    def survivors(self) -> tuple[int, ...]:
        """The members that drew none of the units, by their numbers in training."""
        return tuple(self.values["members"]["survivors"])

    @property
    def digest(self) -> str:
        """SHA-256 of all other fields. This is the value to store elsewhere or to sign."""
        return self.values["digest"]

    def __repr__(self) -> str:
        return printable(f"Certificate({self.values.get('claim', 'no claim')} digest {self.values.get('digest')})")

    def save(self, path: str | os.PathLike) -> None:
        """Write the certificate as JSON."""
        write_atomically(path, json.dumps(self.values, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Certificate":
        """Load a certificate that `save` wrote. Its content is not trusted until `verify` has checked it.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is not a certificate, has another format, or is not JSON that every parser reads in
                the same way (see `ensdiff.files.reading.parse_json`).
        """
        values = read_json(path, finite=True)
        if not isinstance(values, dict) or values.get("kind") != KIND:
            raise ValueError(f"{path} is not a deletion certificate of ensdiff")
        found = values.get("format")
        if type(found) is int and 0 < found < FORMAT:
            raise ValueError(
                f"{path} has format {found}, which did not look at everything in the run; this ensdiff reads {FORMAT}. "
                "Make the certificate again: python -m experiments.certify create --run=... --units=..."
            )
        if type(found) is not int or found != FORMAT:
            raise ValueError(f"{path} has format {found!r}, this ensdiff reads {FORMAT}: upgrade ensdiff")
        return cls(values)

    def verify(
        self,
        run: str | os.PathLike,
        *,
        data: Dataset | None = None,
        replay: int = 0,
        model: Denoiser | None = None,
    ) -> Verification:
        """Check every statement of the certificate against a run.

        Every section is recomputed from the run and compared, so that a change of any byte of the certified files or
        of the certificate is detected. Every checkpoint is read and compared with its own checksums. The survivors'
        index streams are recomputed over all steps and searched for the units.

        Args:
            run: the run directory.
            data: the training data. They must hold all items of units that survivors saw. Items of one unit of the
                manifest must also form one unit of the data, whatever its number and name.
            replay: retrain at most this many of the last steps (needs ``data``) and compare the results bit for bit; 0
                retrains none.
            model: the network, if it is one of your own.

        Returns:
            All failures, not only the first, as text that is safe to print whatever the files hold.
        """
        failures = [] if _seal(self.values) == self.values.get("digest") else [
            "digest: the certificate was altered after it was made"
        ]  # fmt: skip
        failures += [f"{name}: not a field of a certificate" for name in self.values if name not in FIELDS]
        failures += [f"{name}: missing from the certificate" for name in FIELDS if name not in self.values]
        checked = ["the certificate's own digest"]
        try:
            found = _examine(pathlib.Path(run), self.units, model, names=_is_named(self.values))
            failures += self._compare(found.sections) + found.failures
            checked.append("every byte of the run's description, config, data manifest and checkpoints")
            if found.facts is not None:
                trusted = "streams" in found.sections
                if trusted:
                    failures += self._verify_streams(found.facts, checked)
                if "parameters" in found.sections:
                    checked.append(f"the parameters of these members at step {found.facts.run.last}")
                    checked.append("every checkpoint against its checksums")
                failures += _verify_data(found.facts, data, replay if trusted else 0, checked)
        except (ValueError, OSError) as error:
            failures.append(str(error))
        return Verification(tuple(dict.fromkeys(map(printable, failures))), tuple(checked))

    def _compare(self, sections: Mapping[str, Any]) -> list[str]:
        """Return a line for each difference from the sections of a run."""
        failures = []
        for name, value in sections.items():
            if name == "files":
                failures += _compare_files(self.values.get(name), value)
            elif name == "others":
                failures += _compare_others(self.values.get(name), value)
            elif name in self.values:
                failures += compare(self.values[name], value, ("the certificate", "the run"), name)
        return failures

    def _verify_streams(self, facts: Facts, checked: list[str]) -> list[str]:
        """Return a line for each survivor, real or only listed as one, that drew a unit it must not have seen.

        A line about the examined draws is added to ``checked``.
        """
        failures = [f"streams: {line}" for line in (*facts.streams.violations, *self._claimed(facts))]
        draws = facts.run.last * facts.run.config.batch_size * len(facts.survivors)
        checked.append(f"{draws:,} draws of {len(facts.survivors)} members, none of them of units {facts.units}")
        return failures

    def _claimed(self, facts: Facts) -> list[str]:
        """Return a line for each member wrongly listed as a survivor that drew a unit it must not have seen."""
        members = self.values.get("members")
        claimed = members.get("survivors") if isinstance(members, dict) else None
        entries = claimed if isinstance(claimed, list) else []
        known = [k for k in entries if type(k) is int and 0 <= k < facts.run.code.members]
        return facts.streams_of(sorted(set(known) - set(facts.survivors))).violations


class _Found(NamedTuple):
    """The recomputed content of a certificate for a run and some units.

    Args:
        facts: the run and the units; None if the run cannot be opened.
        sections: the sections that could be computed.
        failures: one line per section that could not be computed.
    """

    facts: Facts | None
    sections: dict[str, Any]
    failures: list[str]


def _examine(path: pathlib.Path, units: tuple[int, ...], model: Denoiser | None, names: bool) -> _Found:
    """Recompute all sections. An error in one section becomes a failure, and the remaining sections are still computed.

    The number of the newest checkpoint gives the number of steps of the streams. The streams are computed only if all
    checkpoints belong to the run and to their steps, because an empty folder can have any number as its name.
    """
    files = find_files(path)
    sections: dict[str, Any] = {"files": hashes(path, files)}
    if files.odd:  # never read through a link, or from a pipe that may not end
        return _Found(None, sections, odd_files(files))
    try:
        facts = Facts(Run.open(path, model), files, units, names)
    except (ValueError, OSError) as error:
        return _Found(None, sections, [str(error)])
    failures = []
    for name, section in SECTIONS.items():
        if name == "streams" and not {"config", "parameters"} <= set(sections):
            continue
        try:
            sections[name] = json.loads(json.dumps(section(facts)))
        except (ValueError, OSError) as error:
            failures.append(f"{name}: {error}")
    return _Found(facts, sections, failures)


def _verify_data(facts: Facts, data: Dataset | None, replay: int, checked: list[str]) -> list[str]:
    """Compare the data with the manifest, and retrain the last steps on them."""
    if replay < 0:
        raise ValueError(f"replay={replay}: expected a number of steps, 0 for none")
    if data is None:
        return ["replay: it needs the training data, pass data="] if replay else []
    manifest = facts.run.manifest
    unseen = np.flatnonzero(~facts.run.code.matrix()[:, facts.survivors].any(1)).tolist()
    found = data.places(manifest, absent=unseen)
    aligned = data.align(manifest, absent=unseen, names=facts.run.code.names, found=found)
    failures = [f"data: {line}" for line in unit_differences(manifest, found, data.unit_of_item, data.unit_names)]
    checked.append("that the data hold every item of units that these members saw, in the manifest's units")
    if replay:
        start, differences = train_anew(facts.run, aligned, facts.survivors, replay)
        checked.append(f"steps {start} to {facts.run.last} of these members, retrained, bit for bit")
        failures += differences
    return failures


def certify(
    run: str | os.PathLike, units: Collection[int | str], *, model: Denoiser | None = None, names: bool = True
) -> Certificate:
    """Certify which members of a run never saw certain units (see `Certificate.verify`).

    The members that did see the units are still in the run; `ensdiff.forget` writes a run without them. The certificate
    states that the run holds no other member only if its directory holds nothing except what training and forgetting
    write. Otherwise the claim lists the files that were not examined.

    Args:
        run: the directory of a finished run that `ensdiff.train` wrote.
        units: the ids or names of the units.
        model: the network, if it is one of your own.
        names: whether the certificate names the units, if the run has their names. They are for reading only: units are
            identified by their ids and the hashes of their items.

    Raises:
        FileNotFoundError: the run does not exist, or files that a certificate needs are missing.
        ValueError: the units are unknown, the run is damaged, a checkpoint is not the state of the run's members at its
            step, a file is a link, or a survivor did draw one of the units.
        NoSurvivorError: every member saw some of the units.

    >>> ensdiff.certify("runs/tiny", units=[3, 7]).units
    (3, 7)
    """
    path = pathlib.Path(run)
    files = check_files(path)
    opened = Run.open(path, model)
    facts = Facts(opened, files, _given(units, opened), names)
    values: dict[str, Any] = {"kind": KIND, "format": FORMAT}
    values |= {name: section(facts) for name, section in SECTIONS.items()}
    values["files"] = hashes(path, files)
    if facts.streams.violations:
        raise ValueError(f"{path} cannot be certified: {'; '.join(facts.streams.violations)}")
    values = json.loads(json.dumps(values))
    return Certificate({**values, "digest": _seal(values)})


def _given(units: Any, run: Run) -> list[int]:
    """Return the unit ids in an argument, which is one id or a collection of ids and names."""
    if isinstance(units, str):
        raise ValueError(f"units={units!r}: expected unit ids or names in a list, such as [3, 7] or [{units!r}]")
    return list(run.ensemble.ids_of(list(units))) if isinstance(units, Collection) else [units]


def _is_named(values: Mapping[str, Any]) -> bool:
    """Return whether a certificate, which may be forged, names its units."""
    entries = values.get("units")
    return isinstance(entries, list) and any(isinstance(entry, dict) and "name" in entry for entry in entries)


def _unit_ids(entries: Any) -> list[int]:
    """Return the ids in the section ``units`` of a certificate, which may be forged."""
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and type(entry.get("id")) is int for entry in entries
    ):
        raise ValueError("units: not a list of units with their ids")
    return [entry["id"] for entry in entries]


def _seal(values: Mapping[str, Any]) -> str:
    content = {name: value for name, value in values.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _compare_files(certified: Any, found: dict[str, str]) -> list[str]:
    if not isinstance(certified, dict):
        return ["files: not a list of files with their hashes"]
    out = []
    for name in sorted({*certified, *found}):
        if name not in found:
            out.append(f"{name}: the file is missing")
        elif name not in certified:
            out.append(f"{name}: the file is not one that was certified")
        elif certified[name] != found[name]:
            out.append(f"{name}: the file differs from the certified one (SHA-256 {found[name]})")
    return out


def _compare_others(certified: Any, found: list[str]) -> list[str]:
    """Compare the files beside a run with those that its certificate lists."""
    if not isinstance(certified, list):
        return ["others: not a list of files"]
    new = [
        f"{name}: it is not of the certified run and may hold other members; move it out of the run, or certify the "
        "run again, with a claim that names it"
        for name in found if name not in certified
    ]  # fmt: skip
    return new + [f"others: {name} is no longer in the run" for name in certified if name not in found]
