"""The deletion certificate: which members of a run never drew some units, and how anyone can check it."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ensdiff.certificate.replay import replay as train_anew
from ensdiff.certificate.run import Run, file_hashes
from ensdiff.certificate.sections import LIMITS, SECTIONS, Facts, compare
from ensdiff.data import Dataset
from ensdiff.files import read_json
from ensdiff.storage import write_atomically

__all__ = ["LIMITS", "NAME", "Certificate", "Verification", "certify"]

FORMAT = 1
KIND = "ensdiff deletion certificate"
NAME = "certificate.json"
"""Where a run's certificate is, unless told otherwise."""


class Verification(NamedTuple):
    """What `Certificate.verify` found.

    Args:
        failures: a line for each difference; none where the certificate holds.
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
    """A certificate; made by `certify`, or `load`.

    Args:
        values: its content, JSON-able.

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
        """The units that no survivor drew."""
        return tuple(unit["id"] for unit in self.values["units"])

    @property
    def survivors(self) -> tuple[int, ...]:
        """The members that drew none of them, by the numbers they were trained under."""
        return tuple(self.values["members"]["survivors"])

    @property
    def digest(self) -> str:
        """SHA-256 of all other fields: what to keep elsewhere, or to sign."""
        return self.values["digest"]

    def __repr__(self) -> str:
        return f"Certificate({self.values.get('claim', 'no claim')} digest {self.values.get('digest')})"

    def save(self, path: str | os.PathLike) -> None:
        """Write it as JSON."""
        write_atomically(path, json.dumps(self.values, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Certificate":
        """What `save` wrote; nothing of it is believed before `verify`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a certificate, or one of a newer version.
        """
        values = read_json(path)
        if not isinstance(values, dict) or values.get("kind") != KIND:
            raise ValueError(f"{path} is not a deletion certificate of ensdiff")
        if values.get("format") != FORMAT or type(values["format"]) is not int:
            raise ValueError(
                f"{path} has format {values.get('format')!r}, this ensdiff reads {FORMAT}: upgrade ensdiff, or make "
                "the certificate again"
            )
        return cls(values)

    def verify(self, run: str | os.PathLike, *, data: Dataset | None = None, replay: int = 0) -> Verification:
        """Check everything that the certificate says against a run.

        Every section is computed anew from the run and compared, so that a change of any byte of the certified files
        or of the certificate is found. The survivors' index streams are computed over all steps, and looked through
        for the units.

        Args:
            run: the run directory.
            data: the training data; then all items of units that survivors saw must be among them.
            replay: train up to so many of the last steps anew (needs ``data``) and compare bit for bit; 0 trains none.

        Returns:
            All failures, not only the first.
        """
        path, checked = pathlib.Path(run), ["the certificate's own digest"]
        failures = [] if _seal(self.values) == self.values.get("digest") else [
            "digest: the certificate was altered after it was made"
        ]  # fmt: skip
        failures += [f"{name}: not a field of a certificate" for name in self.values if name not in _FIELDS]
        failures += [f"{name}: missing from the certificate" for name in _FIELDS if name not in self.values]
        failures += _compare_files(self.values.get("files"), file_hashes(path))
        checked.append("every byte of the run's description, config, data manifest and checkpoints")
        try:
            facts = Facts(Run.open(path), _unit_ids(self.values.get("units")))
        except (ValueError, OSError) as error:
            return Verification((*failures, str(error)), tuple(checked))
        for name, section in SECTIONS.items():
            try:
                anew = json.loads(json.dumps(section(facts)))
            except (ValueError, OSError) as error:
                failures.append(f"{name}: {error}")
                continue
            if name in self.values:
                failures += compare(self.values[name], anew, ("the certificate", "the run"), name)
        try:
            claimed = self._claimed(facts)
            failures += [f"streams: {line}" for line in (*facts.streams.violations, *claimed)]
            draws = facts.run.last * facts.run.config.batch_size * len(facts.survivors)
            checked.append(f"{draws:,} draws of {len(facts.survivors)} members, none of them of units {facts.units}")
            checked.append(f"the parameters of these members at step {facts.run.last}")
            failures += self._verify_data(facts, data, replay, checked)
        except (ValueError, OSError) as error:
            failures.append(str(error))
        return Verification(tuple(dict.fromkeys(failures)), tuple(checked))

    def _claimed(self, facts: Facts) -> list[str]:
        """Draws of the units by members that the certificate, wrongly, calls survivors."""
        members = self.values.get("members")
        claimed = members.get("survivors") if isinstance(members, dict) else None
        entries = claimed if isinstance(claimed, list) else []
        known = [k for k in entries if type(k) is int and 0 <= k < facts.run.code.members]
        return facts.streams_of(sorted(set(known) - set(facts.survivors))).violations

    @staticmethod
    def _verify_data(facts: Facts, data: Dataset | None, replay: int, checked: list[str]) -> list[str]:
        if replay < 0:
            raise ValueError(f"replay={replay}: expected a number of steps, 0 for none")
        if data is None:
            return ["replay: it needs the training data, give data="] if replay else []
        if not replay:
            data.align(facts.run.manifest, absent=[*facts.units, *facts.run.forgotten])
            checked.append("that the data hold every item of the manifest but the units'")
            return []
        start, differences = train_anew(facts.run, data, facts.survivors, replay)
        checked.append(f"steps {start} to {facts.run.last} of these members, trained anew, bit for bit")
        return differences


def certify(run: str | os.PathLike, units: Collection[int]) -> Certificate:
    """Certify that the members of a run that never saw some units did not: see `Certificate.verify`.

    The members that did see them are still in the run; `ensdiff.forget` writes a run without them.

    Args:
        run: the directory of a finished run that `ensdiff.train` wrote.
        units: the ids of the units.

    Raises:
        FileNotFoundError: no such run, or files that a certificate needs are missing.
        ValueError: unknown units, a damaged run, or a survivor that did draw one of the units.
        NoSurvivorError: every member saw some of the units.

    >>> ensdiff.certify("runs/tiny", units=[3, 7]).units
    (3, 7)
    """
    path = pathlib.Path(run)
    facts = Facts(Run.open(path), _given(units))
    values: dict[str, Any] = {"kind": KIND, "format": FORMAT}
    values |= {name: section(facts) for name, section in SECTIONS.items()}
    if facts.streams.violations:
        raise ValueError(f"{path} cannot be certified: {'; '.join(facts.streams.violations)}")
    values["files"] = file_hashes(path)
    values = json.loads(json.dumps(values))
    return Certificate({**values, "digest": _seal(values)})


_FIELDS = ("kind", "format", *SECTIONS, "files", "digest")


def _given(units: Any) -> list[int]:
    """Unit ids from an argument: one id or a collection of them."""
    if isinstance(units, str):
        raise ValueError(f"units={units!r}: expected unit ids, such as [3, 7]")
    return list(units) if isinstance(units, Collection) else [units]


def _unit_ids(entries: Any) -> list[int]:
    """The ids in the section ``units`` of a certificate that may be forged."""
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
            out.append(f"{name}: the file is another than the certified one (SHA-256 {found[name]})")
    return out
