"""Forgetting units: writing a smaller run without the members that saw them."""

import dataclasses
import json
import numbers
import os
import pathlib
import shutil
from collections.abc import Collection, Sequence

import jax
import numpy as np

from ensdiff.certificate.certificate import Certificate, _given, certify
from ensdiff.certificate.files import FILES, NAME, check_files
from ensdiff.certificate.run import Run
from ensdiff.certificate.sections import Facts, config
from ensdiff.codes import Code
from ensdiff.files.checksums import read_sealed, write_sealed
from ensdiff.models.denoiser import Denoiser
from ensdiff.runs.description import FORMAT
from ensdiff.runs.directory import RunDirectory
from ensdiff.runs.logs import METRICS, read_metrics, write_lines
from ensdiff.runs.unit_names import NAME as UNIT_NAMES


def forget(
    run: str | os.PathLike,
    units: Collection[int | str],
    out: str | os.PathLike,
    *,
    model: Denoiser | None = None,
    names: bool = True,
) -> Certificate:
    """Write a new run without the members that saw the units, and leave the old run unchanged.

    The new run loads, samples and attributes like any other. It keeps its members' numbers from training and the code
    over all members, so that their training can still be checked and replayed. Its own code is that code without the
    columns of the removed members; units keep their ids. Sample grids, reports and TensorBoard files are not copied,
    because all members contributed to them. The working directory of the training is not copied either, because the
    new run may be published. Send the output of other programs elsewhere (``--out=``): the certificate cannot tell
    whether files that they leave in the new run hold members, so such files make `Certificate.verify` fail.

    Args:
        run: a run that `ensdiff.train` wrote, or one that has already forgotten units.
        units: the ids or names of the units to forget together.
        out: a new directory; it appears only when it is complete.
        model: the network, if it is one of your own.
        names: whether the certificate names the units, and the new run keeps the names of all forgotten units. Without,
            the new run calls these units ``"unit 3"``. What lies in ``config.json``, in the name of the data or in
            names of classes is kept in either case.

    Returns:
        The certificate for all units that were forgotten, which the new run also holds as ``certificate.json``.

    Raises:
        FileExistsError: ``out`` exists and is not an empty folder.
        ValueError: the units are unknown or already forgotten, or the run is damaged.
        NoSurvivorError: every member saw some of the units.

    >>> certificate = ensdiff.forget("runs/tiny", [3], "runs/without_3")
    >>> ensdiff.load("runs/without_3").members
    4
    >>> certificate.verify("runs/without_3").ok
    True
    """
    files = check_files(pathlib.Path(run))
    old, out = Run.open(run, model), pathlib.Path(out)
    if jax.process_count() > 1:
        raise ValueError("forgetting runs in a single process: start it in one process only")
    wanted = _given(units, old)
    again = sorted({int(i) for i in wanted if isinstance(i, numbers.Integral)} & set(old.forgotten))
    if again:
        raise ValueError(f"units {again} are forgotten already: {old.path} was made without them")
    facts = Facts(old, files, [*wanted, *old.forgotten] if wanted else [])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists already; choose a new folder")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        config(facts)  # every checkpoint must be of this run before it is given the run's description
        _write(old, facts, partial, names)
        certificate = certify(partial, facts.units, model=model, names=names)
        certificate.save(partial / NAME)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return certificate


def _write(old: Run, facts: Facts, path: pathlib.Path, names: bool) -> None:
    place = [old.held.index(k) for k in facts.survivors]
    unnamed = set() if names else set(facts.units)
    description = {
        **old.description,
        "format": FORMAT,
        "code": _without_names(old.ensemble.code.only(place), unnamed).to_dict(),
        "origin": {
            "members": facts.survivors,
            "forgotten": facts.units,
            "code": _without_names(old.code, unnamed).to_dict(),
        },
    }
    if old.unchecked:
        description["origin"]["unchecked"] = old.unchecked
    with RunDirectory.open(path, keep=len(old.steps), resume=False) as new:
        new.adopt(json.loads(json.dumps(description)))
        for step in old.steps:
            new.save(step, jax.tree.map(lambda leaf: np.ascontiguousarray(leaf[place]), old.state(step)))
    for name in FILES:
        if name != "run.json" and (old.path / name).is_file():
            shutil.copyfile(old.path / name, path / name)
    if unnamed and (path / UNIT_NAMES).is_file():
        values = read_sealed(path / UNIT_NAMES)
        write_sealed(path / UNIT_NAMES, {**values, "names": _blanked(values["names"], unnamed)})
    if (path / "config.json").is_file():
        values = read_sealed(path / "config.json")
        if values.pop("working_directory", None) is not None:
            write_sealed(path / "config.json", values)
    lines = [
        {name: [value[i] for i in place] if name.endswith("_K") else value for name, value in line.items()}
        for line in read_metrics(old.path)
    ]
    if lines:
        write_lines(path / METRICS, lines)


def _without_names(code: Code, units: set[int]) -> Code:
    """Return a code in which some units, and groups of which no other unit is left, have no name of their own."""
    if not units:
        return code
    if code.names is not None:
        code = dataclasses.replace(code, names=tuple(_blanked(code.names, units)))
    if code.groups is not None and code.groups.names is not None:
        left = {int(group) for unit, group in enumerate(code.group_of_unit()) if unit not in units}
        gone = set(range(code.groups.count)) - left
        names = tuple(_blanked(code.groups.names, gone, "group"))
        code = dataclasses.replace(code, groups=dataclasses.replace(code.groups, names=names))
    return code


def _blanked(names: Sequence[str], units: set[int], what: str = "unit") -> list[str]:
    return [f"{what} {unit}" if unit in units else name for unit, name in enumerate(names)]
