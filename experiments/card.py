"""The model card of a run: README.md in its directory, with the header that the Hugging Face Hub reads."""

import hashlib
import pathlib
import re
from typing import Any

NAME = "README.md"
_MARK = re.compile(r"\n<!-- written by ensdiff: ([0-9a-f]{64}); edit freely, an edited card is kept -->\n\Z")


def write_card(run: pathlib.Path) -> bool:
    """Write the model card of a finished run, unless there is one that somebody else wrote or edited.

    Returns:
        Whether it was written.
    """
    from ensdiff.files.writing import write_atomically

    path = run / NAME
    if path.exists():
        text = path.read_text("utf-8", errors="replace")
        found = _MARK.search(text)
        if found is None or _digest(text[: found.start()]) != found[1]:
            return False
    text = card(run)
    mark = f"\n<!-- written by ensdiff: {_digest(text)}; edit freely, an edited card is kept -->\n"
    write_atomically(path, text + mark)
    return True


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def card(run: pathlib.Path) -> str:
    """Return the text of a run's model card.

    Raises:
        DamagedError: ``run.json`` was changed.
    """
    from ensdiff.files.checksums import read_sealed
    from ensdiff.runs.description import from_description
    from ensdiff.runs.skipped import read_skipped

    text = read_sealed(run / "run.json")
    params: Any = from_description(text, None)
    data, train, code = text.get("data", {}), text.get("train", {}), params.code
    H, W, C = params.image_shape
    items = f"{data['items']:,} items" if "items" in data else "items that the run does not count"
    skipped = len(read_skipped(run))
    lines = [
        "---",
        "library_name: ensdiff",
        "# license: choose one, and mind the rights in the training data",
        "tags:",
        "- diffusion",
        "- data-attribution",
        *([] if params.condition is not None else ["pipeline_tag: unconditional-image-generation"]),
        "---",
        "",
        f"# {_plain(run.resolve().name)}",
        "",
        f"An encoded ensemble of {code.members} diffusion models, made with [ensdiff]. Each training unit was seen by "
        "some members only, so the influence of any unit on a sample can be removed exactly, without retraining: the "
        "members that saw it are dropped, and the same noise is used again.",
        "",
        "[ensdiff]: https://arxiv.org/abs/2306.02174",
        "",
        "| | |",
        "|---|---|",
        f"| data | {_plain(str(data.get('name', 'not recorded')))}: {items} of {H}x{W}x{C} in {code.units:,} units |",
        f"| digest of the data | `{data.get('digest', 'not recorded')}` |",
        *([f"| left out | {skipped:,} pictures that could not be read (`skipped.json`) |"] if skipped else []),
        f"| members K | {code.members} |",
        *([f"| weight w, members that see a unit | {code.weight} |"] if code.weight is not None else []),
        f"| network | {type(params.model).__name__} |",
        f"| process | {params.schedule.kind}, predicting {params.schedule.prediction} |",
        *([f"| condition | {_plain(str(params.condition))} |"] if params.condition is not None else []),
        f"| generator | the mean of the members' {params.combine} |",
        *_training(train),
        "",
        "## What can be answered",
        "",
        *_answers(code),
        "",
        "Influence is about this ensemble: what it would have generated had the unit never existed. It does not say "
        "who made a picture, nor what another model would have done.",
        "",
        "## Use",
        "",
        "```python",
        "import ensdiff",
        "",
        'params = ensdiff.load("FOLDER")  # this folder, downloaded',
        "samples = ensdiff.sample(params, 0, 4)",
        "found = ensdiff.attribute(params, samples)",
        "```",
        "",
    ]
    return "\n".join(lines)


def _training(train: dict[str, Any]) -> list[str]:
    if not train:
        return ["| training | not recorded |"]
    rate = f"learning rate {train['learning_rate']:g}, {train['decay']}"
    steps = f"{train['steps']:,} steps of {train['batch_size']} items per member"
    return [f"| training | {steps}, {rate}, seed {train['seed']} |"]


def _answers(code: Any, what: str = "unit") -> list[str]:
    """Return what the code can say about units, and about groups of units."""
    from ensdiff.planning.estimates import code_estimate

    if code.groups is not None:
        return [*_answers(code.group_code(), "group"), "- Single units inside of a group can be removed too."]
    if code.weight is None:
        return ["- Units were seen by different numbers of members; `ensdiff.load` gives the code."]
    e = code_estimate(code.members, code.weight, code.units)
    if code.packed is not None:  # units of a stored matrix may share words
        distinct = len({word.tobytes() for word in code.matrix()})
        null = e.words - distinct
        e = e._replace(null=null, p=1 / (1 + null), q=min(1.0, code.units / (1 + null)))
    lines = [
        f"- Of {code.units:,} {what}s, any can be removed: {e.survivors} of {code.members} members survive it, and "
        f"{code.capacity(min(2, code.units)).expected:.1f} on average the removal of two.",
        f"- {e.null:,} code words belong to none of them and serve as null ablations, so that p-values are at least "
        f"{e.p:.2g}, and the q-value of one {what} among all is at least {e.q:.2g}.",
    ]
    return [*lines, *([f"- {e.warning[0].upper()}{e.warning[1:]}."] if e.warning else [])]


def _plain(text: str) -> str:
    """Return a text that means nothing to Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>|#&])", r"\\\1", " ".join(text.split()))
