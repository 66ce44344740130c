"""The content of a certificate, section by section, computed from a run.

Making and checking a certificate share the same computation: a check recomputes every section and compares it.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ensdiff.certificate.files import Files, strangers
from ensdiff.certificate.run import Run
from ensdiff.certificate.streams import Streams, read_streams
from ensdiff.codes import NoSurvivorError
from ensdiff.codes.capacity import remaining_capacity
from ensdiff.files.reading import printable
from ensdiff.models.space import Latents
from ensdiff.runs.description import MISSING, brief, decided, differences

LIMITS = (
    "It is about these members of this run. Other copies of the models, other runs and samples that were drawn before "
    "are not covered.",
    "It trusts the trainer and the data manifest: what the program that trained really read is shown only for the "
    "steps that --replay trains anew, on this machine's build of the libraries.",
    "It is about the units' own items. Pictures that look the same, other crops or edits of them, and what others "
    "wrote or drew after them, belong to other units; of these only copies that agree in every byte are found.",
    "Members are looked for where ensdiff would read them, and as files that do not belong to a run. What somebody hid "
    "inside the run's own files, such as a block that no array refers to, is not found.",
    "What was chosen by looking at all the data, such as the architecture and the learning rate, may depend on the "
    "units.",
    "It is not signed: who can change the run and the certificate together can make both agree. Keep the "
    "certificate's digest where they cannot change it.",
)
"""What a certificate does not prove. A change of this text requires a new `FORMAT`."""

ENCODER = (
    "The encoder of the latents or conditions that the members were trained on is not covered, nor are the mean and "
    "scale of latents: whatever they were computed from, which may include the units, can show in every item."
)
"""A further limit of runs on latents, and of runs whose conditions are more than classes."""
CLASSES = (
    "The number and the names of classes are those of all data: a class that only the units have leaves its place."
)
"""A further limit of runs on conditions."""
BASE = (
    "The base that the members adapt or started from is not covered: what it was trained on, which may include the "
    "units, shows in every sample, with and without them."
)
"""A further limit of runs whose members share their start."""
OWN_NETWORK = (
    "The network is the user's own code, of which the run records only the names and shapes of the parameters."
)
"""A further limit of runs with a network of one's own."""


class Facts:
    """A run, and the units that its survivors must not have seen.

    Args:
        run: the run.
        files: the content of its directory.
        units: the ids of the units.
        names: whether to name the units, if the run has their names.

    Raises:
        ValueError: the units are unknown, or there are none.
        NoSurvivorError: every member of the run saw some of the units.
    """

    def __init__(self, run: Run, files: Files, units: Sequence[int], names: bool = False):
        self.run = run
        self.files = files
        self.names = run.ensemble.names_of() if names else None
        if not len(units):
            raise ValueError("no units given: expected the ids of the units to be forgotten, such as units=[3]")
        saw_K = run.code.rows(list(units)).sum(0)
        self.units = sorted({int(i) for i in units})
        self.survivors = [k for k in run.held if not saw_K[k]]
        if not self.survivors:
            try:
                run.ensemble.code.ablate([self.units])
            except NoSurvivorError as error:
                raise NoSurvivorError(f"{run.path}: {error}") from None

    def items(self) -> np.ndarray:
        """Return the indices of the units' items."""
        return np.flatnonzero(np.isin(self.run.manifest.unit_of_item, self.units))

    def streams_of(self, members: Sequence[int]) -> Streams:
        """Return the draws of members over all steps."""
        config = self.run.config
        return read_streams(
            self.run.code, self.run.manifest, self.units, members,
            seed=config.seed, batch=config.batch_size, steps=self.run.last,
        )  # fmt: skip

    @functools.cached_property
    def streams(self) -> Streams:
        """The survivors' draws."""
        return self.streams_of(self.survivors)


def claim(facts: Facts) -> str:
    """Return what is certified, in words."""
    run, beside = facts.run, others(facts)
    if set(run.held) != set(facts.survivors):
        gone = "the run holds others too"
    elif beside:
        gone = "its checkpoints hold no other member, but other files lie in the run, which were not examined and may "
        gone += f"hold some ({len(beside)}): {', '.join(map(_quoted, beside))}"
    else:
        gone = "the run holds no other member"
    members, units = (", ".join(map(str, ids)) for ids in (facts.survivors, facts.units))
    names = facts.names
    if names is not None:
        units += f" ({', '.join(names.label(unit) for unit in facts.units)})"
    text = (
        f"Members {members} were trained for {run.last} steps of {run.config.batch_size} draws each, and no draw is "
        f"an item of units {units}; {gone}."
    )
    if run.unchecked:
        steps = ", ".join(map(str, run.unchecked))
        text += f" The checkpoints of steps {steps} were written without checksums: damage since cannot be seen."
    return text


def _quoted(name: str) -> str:
    """Return the name of a file as a JSON string, so that no name can pass for part of the sentence around it."""
    return printable(json.dumps(name, ensure_ascii=False))


def others(facts: Facts) -> list[str]:
    """Return the files in the run that may hold other members, or none if the run itself holds other members."""
    if set(facts.run.held) != set(facts.survivors):
        return []
    return strangers(facts.run.path, facts.files, len(facts.run.held), facts.run.last, FIELDS)


def units(facts: Facts) -> list[dict[str, Any]]:
    """Return the units, with their names if they are to be named, their code words and the hashes of their items."""
    manifest = facts.run.manifest
    words = facts.run.code.rows(facts.units)
    out = []
    for unit, word in zip(facts.units, words, strict=True):
        items = np.flatnonzero(manifest.unit_of_item == unit)
        hashes = [{"item": int(i), "sha256": manifest.sha256[i].decode()} for i in items]
        named = {} if facts.names is None else {"name": facts.names[unit]}
        out.append({"id": unit, **named, "word": "".join(map(str, word)), "items": hashes})
    return out


def code(facts: Facts) -> dict[str, Any]:
    """Return the code over all members that were trained."""
    values = facts.run.code.to_dict()
    long = {name: hashlib.sha256(repr(values.pop(name)).encode()).hexdigest() for name in LONG if name in values}
    return {**values, **{f"{name}_sha256": value for name, value in long.items()}}


LONG = ("matrix", "groups", "names")
"""Fields of a stored code of which the certificate holds only the hash."""


def members(facts: Facts) -> dict[str, Any]:
    """Return which members were trained, which the run holds, and which saw none of the units."""
    run = facts.run
    return {"trained": run.code.members, "held": list(run.held), "survivors": facts.survivors}


def config(facts: Facts) -> dict[str, Any]:
    """Return how the members were trained, after checking that ``run.json`` and every checkpoint agree.

    Older checkpoints may differ in settings that do not determine the parameters, because a run may be resumed with
    other values of them. Any checkpoint may have an older format than ``run.json``, which resuming rewrites.

    Raises:
        ValueError: they differ. The message names the fields.
    """
    run = facts.run
    names = (*SETTINGS, "code", "data", "origin")
    differences = []
    for step, checkpoint in run.checkpoints.items():
        text = checkpoint.description
        here, there = ({name: d[name] for name in names if name in d} for d in (run.description, text))
        if step != run.last:
            try:
                here, there = decided(run.description), decided(text)
            except ValueError as error:
                raise ValueError(f"checkpoints/{step} cannot be compared with run.json: {error}") from error
        differences += compare(here, there, ("run.json", f"checkpoints/{step}"))
        if bool(text.get("average")) != bool(run.config.ema):
            differences.append(f"checkpoints/{step}: average is {text.get('average')!r}, train.ema {run.config.ema}")
    if differences:
        raise ValueError("; ".join(differences))
    return {name: run.description[name] for name in ("format", "ensdiff", *SETTINGS) if name in run.description}


SETTINGS = (
    "model",
    "schedule",
    "image_shape",
    "value_range",
    "space",
    "condition",
    "base",
    "combine",
    "scale",
    "train",
)
"""Parts of a description that a certificate holds. Older runs have a value range, and newer ones a space."""


def data(facts: Facts) -> dict[str, Any]:
    """Return the description of the training data, whose digest is that of the manifest."""
    _ = facts.run.manifest  # checked against the digest
    return facts.run.description["data"]


def copies(facts: Facts) -> list[dict[str, int]]:
    """Return the items of other units that survivors saw and that equal an item of the units in every byte."""
    manifest = facts.run.manifest
    hashes = manifest.contents  # the same picture with another condition is a copy
    own = {hashes[i]: int(manifest.unit_of_item[i]) for i in facts.items()}
    same = np.flatnonzero(np.isin(hashes, list(own)) & ~np.isin(manifest.unit_of_item, facts.units))
    seen = facts.run.code.rows(manifest.unit_of_item[same])[:, facts.survivors].sum(1)
    return [{"item": int(i), "unit": int(manifest.unit_of_item[i]), "of_unit": own[hashes[i]]} for i in same[seen > 0]]


def streams(facts: Facts) -> dict[str, Any]:
    """Return hashes of every survivor's draws over all steps."""
    run = facts.run
    return {
        "seed": run.config.seed,
        "batch_size": run.config.batch_size,
        "steps": run.last,
        "sha256": {str(k): value for k, value in facts.streams.sha256.items()},
    }


def parameters(facts: Facts) -> dict[str, Any]:
    """Return hashes of every survivor's parameters, average and optimiser state at the newest checkpoint.

    Every checkpoint is read and compared with the checksums that were computed during training.

    Raises:
        DamagedError: a checkpoint is damaged.
        ValueError: a checkpoint holds anything other than the state of the held members at its step.
    """
    run = facts.run
    for step in run.steps[:-1]:
        run.state(step)  # compared, and freed before the next is read
    run.state(run.last)
    _ = run.base  # compared with its digest
    sums = run.sums(run.last)
    sha256 = {str(k): {part: sums[part][run.held.index(k)] for part in sorted(sums)} for k in facts.survivors}
    return {"step": run.last, "sha256": sha256}


def trained_on(facts: Facts) -> list[dict[str, Any]]:
    """Return the devices, versions and executions of the training, each with its first step."""
    return list(facts.run.environments)


def capacity(facts: Facts) -> dict[str, int]:
    """Return how many more units can be removed before no survivor is left."""
    rest = np.setdiff1d(np.arange(facts.run.code.units), [*facts.units, *facts.run.forgotten])
    if not len(rest):
        return remaining_capacity([], [0] * len(facts.survivors))._asdict()
    words = facts.run.code.rows(rest)[:, facts.survivors]
    return remaining_capacity(words.sum(1, dtype=int).tolist(), words.sum(0, dtype=int).tolist())._asdict()


def limits(facts: Facts) -> list[str]:
    """Return what the certificate does not prove."""
    ensemble = facts.run.ensemble
    leaves = () if ensemble.condition is None else ensemble.condition.leaves
    encoded = isinstance(ensemble.space, Latents) or any(leaf.classes is None for leaf in leaves)
    more = {
        ENCODER: encoded,
        CLASSES: any(leaf.classes is not None for leaf in leaves),
        BASE: ensemble.base_digest is not None,
        OWN_NETWORK: _network(facts.run.description["model"]).get("kind") == "own",
    }
    return [*LIMITS, *(text for text, applies in more.items() if applies)]


def _network(model: dict[str, Any]) -> dict[str, Any]:
    return model["base"] if model.get("kind") == "adapted" else model


SECTIONS: dict[str, Callable[[Facts], Any]] = {
    section.__name__: section
    for section in (
        claim, units, code, members, config, data, copies, parameters, streams, trained_on, capacity, others, limits,
    )
}  # fmt: skip


FIELDS = ("kind", "format", *SECTIONS, "files", "digest")
"""Fields of a certificate."""


def compare(one: Any, other: Any, names: tuple[str, str], place: str = "") -> list[str]:
    """Return one line per field in which two JSON values differ."""

    def says(name: str, value: Any) -> str:
        return f"{name} has no such field" if value is MISSING else f"{name} has {brief(value)}"

    return [
        f"{field.name}: {says(names[0], field.one)}, {says(names[1], field.other)}"
        for field in differences(one, other, place, exact=True)
    ]
