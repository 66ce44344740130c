"""Build the code of a config's ``code`` section, and say what it can resolve."""

import math
from typing import Any


def build_code(values: dict[str, Any], data: Any) -> Any:
    """Build the code of a config's ``code`` section for the units of the data.

    With ``members=1`` it is one member that sees everything. With ``groups=label`` it is hierarchical: units inside
    classes. Classes may be any integers or strings. Groups are numbered in the sorted order of the classes and named
    after them; ``group_names`` is a form of these names, such as ``"digit {}"``.

    Raises:
        ValueError: a field is unknown, the data have no labels, an item has no label, items of one unit have different
            labels, or every class is one unit.
    """
    import numpy as np

    import ensdiff

    from .building import build

    values = dict(values)
    form = values.pop("group_names", None)
    if values.get("members") == 1:
        return ensdiff.Code.undivided(data.units)
    if "groups" not in values:
        return build(ensdiff.Code.balanced, "code", {**values, "units": data.units})
    if values["groups"] != "label":
        raise ValueError(f"config.code.groups={values['groups']!r}: expected 'label', the class of each item")
    if data.labels is None:
        raise ValueError("config.code.groups='label': the data need one label per item")
    labels, class_of_item = np.unique(data.labels, return_inverse=True)
    if labels.dtype.kind == "i" and labels[0] == -1:  # the convention of TensorFlow Datasets and scikit-learn
        items = np.flatnonzero(data.labels == -1)
        raise ValueError(
            f"config.code.groups='label': {len(items)} items have the label -1, which means no class; the first one "
            f"is item {items[0]} ({data.unit_names[data.unit_of_item[items[0]]]}). Leave them out, or give them a class"
        )
    class_of_item = class_of_item.reshape(-1)
    group_of_unit = np.zeros(data.units, np.int64)
    group_of_unit[data.unit_of_item] = class_of_item
    mixed = np.flatnonzero(group_of_unit[data.unit_of_item] != class_of_item)
    if len(mixed):
        unit = int(data.unit_of_item[mixed[0]])
        raise ValueError(
            f"config.code.groups='label': the items of unit {unit} ({data.unit_names[unit]}) have different labels: "
            "expected units inside classes"
        )
    if len(labels) == data.units:
        raise ValueError(
            f"config.code.groups='label': each of the {len(labels)} classes is one unit: expected units inside "
            "classes. Leave out config.code.groups if classes are the units, or config.data.groups if items are"
        )
    if form is not None and (not isinstance(form, str) or "{}" not in form):
        raise ValueError(f"config.code.group_names={form!r}: expected a text with {{}} in the place of the class")
    names: list[str] | None = [(form or "{}").format(label) for label in labels]
    if form is None and np.array_equal(labels, np.arange(len(labels))):
        names = None
    return build(ensdiff.Code.hierarchical, "code", {**values, "groups": group_of_unit, "group_names": names})


def group_weight(values: dict[str, Any], members: int) -> int | None:
    """Return how many members see a group, by a config's ``code`` section; None if its code has no groups."""
    return max(1, values.get("group_weight", 3 * members // 4)) if "groups" in values else None


def describe_code(study: Any, group_weight: int | None = None) -> str:
    """Return what attribution with the study's code can resolve, as text.

    It ends with a warning if there are fewer words than units, or if one unit alone cannot have a q-value of at most
    0.1. Of a hierarchical code, how many groups there are is not known, so that limits are those of any number.
    """
    from ensdiff.planning.estimates import code_estimate

    if group_weight is not None:
        K, w, N = study.members, study.weight, study.units
        words = math.comb(group_weight, w)
        groups = math.comb(K, group_weight)
        text = (
            f"Code: units inside groups. {groups:,} distinct words of {group_weight} of {K} members for the groups; "
            f"{K - group_weight} members survive the removal of a group. In each group, {words:,} words of {w} of its "
            f"{group_weight} members, of {N:,} units in all; {K - w} members survive the removal of a unit. Nulls are "
            "the words that the groups, or the units of the group, do not own, so one unit alone has "
            f"q > {min(1.0, N / words):.2g} among all units (resolution)."
        )
        few = "a unit cannot be attributed among all units at level 0.1: attribute to groups, or use more members"
        return text + (f"\nwarning: {few}" if N / words > 0.1 else "")
    e = code_estimate(study.members, study.weight, study.units)
    text = (
        f"Code: {e.words:,} distinct words of {study.weight} of {study.members} members for {study.units:,} units; "
        f"{e.survivors} members survive the removal of a unit. Null: {e.null:,} unowned words, so p >= {e.p:.2g}, and "
        f"one unit alone has q >= {e.q:.2g} (resolution)."
    )
    return text + (f"\nwarning: {e.warning}" if e.warning else "")
