"""Conditions on the command line: --cond and --guidance."""

from typing import Any, NamedTuple

import numpy as np

CLASSES_ONLY = "--cond takes classes; call ensdiff.sample(cond=...) for other conditions"


class Asked(NamedTuple):
    """The conditions that the command line asks for.

    Args:
        cond: what `ensdiff.sample` takes as ``cond``; None samples without condition.
        samples: their number.
        told: a line to print, or empty text.
        captions: a text for each sample, if the conditions were made from texts.
    """

    cond: Any
    samples: int
    told: str = ""
    captions: tuple[str, ...] | None = None


def asked(spec: Any, text: str | None, count: int, fixed: bool = True) -> Asked:
    """Return the conditions of samples.

    Args:
        spec: the members' `ConditionSpec`; None for unconditional members.
        text: the value of --cond: ids or names of classes separated by commas, one per sample or one for all;
            ``"none"``; or None, with which the classes take turns.
        count: number of samples.
        fixed: whether the number was given; otherwise there are as many samples as classes in ``text``.

    Raises:
        ValueError: the members are unconditional, or the text does not name classes for that many samples.

    >>> from ensdiff.models.condition import ConditionSpec, Leaf
    >>> asked(ConditionSpec((Leaf(classes=2, names=("cat", "dog")),)), "dog,cat,1", 3).cond.tolist()
    [1, 0, 1]
    """
    if spec is None:
        if text is not None:
            raise ValueError(f"--cond={text}: the members were trained without conditions; leave it out")
        return Asked(None, count)
    if text is None:
        cond = spec.in_turn(count)
        if cond is None and any(leaf.encoder is not None for leaf in spec.leaves):
            return Asked(None, count, "conditions: none (--prompt=... gives a caption for the samples)")
        if cond is None:
            return Asked(None, count, f"conditions: none, because {CLASSES_ONLY}")
        classes = spec.leaves[0].classes
        return Asked(cond, count, f"conditions: each of the {classes} classes in turn (--cond=none: none)")
    if text == "none":
        return Asked(None, count)
    ids = class_ids(spec, text)
    if not fixed and len(ids) > 1:
        count = len(ids)
    if len(ids) not in (1, count):
        raise ValueError(
            f"--cond={text}: {len(ids)} classes for {count} samples: expected one per sample, or one for all"
        )
    from ensdiff.models.condition import unflatten

    return Asked(unflatten({spec.leaves[0].path: np.resize(ids, count)}), count)


def class_ids(spec: Any, text: str) -> np.ndarray:
    """Return the ids of classes in a text, such as ``"3"``, ``"cat"`` or ``"1,2,3"``. A name goes before an id.

    Raises:
        ValueError: the condition is not one class per image, or a class does not exist.
    """
    from ensdiff.files.reading import whole_number
    from ensdiff.models.condition import flatten, unflatten

    if spec.in_turn(1) is None:
        if any(leaf.encoder is not None for leaf in spec.leaves):
            raise ValueError(f"--cond={text}: --cond takes classes, and this run has captions: give --prompt=...")
        raise ValueError(f"--cond={text}: {CLASSES_ONLY}")
    (leaf,) = spec.leaves
    names = leaf.names or ()
    entries = [text] if text in names else [part.strip(" ") for part in text.split(",")]
    if names:
        given: Any = np.array(entries, str)
    else:
        numbers = [whole_number(entry) for entry in entries]
        if None in numbers:
            raise ValueError(f"--cond={text}: the classes have no names: expected ids 0 .. {leaf.classes - 1}")
        given = np.array(numbers)
    try:
        checked = spec.check(unflatten({leaf.path: given}), len(entries))
    except ValueError as error:
        raise ValueError(f"--cond={text}: {error}") from None
    return flatten(checked)[leaf.path]
