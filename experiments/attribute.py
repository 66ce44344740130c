"""Find out which training units generated samples, or any images, depend on.

The result and a report go to RUN/attribution, or to --out (required for a run that experiments.forget wrote). After an
interruption the same command continues from what was finished.

Examples:
  python -m experiments.attribute --run=runs/digits --n=8
  python -m experiments.attribute --run=runs/digits --n=4 --method=exact --units=0,1,2,3 --top=4 --null=99
  python -m experiments.attribute --run=runs/digits --method=differential --null=all
  python -m experiments.attribute --run=runs/digits --images=my_pictures --null=all     # by loss
  python -m experiments.attribute --run=runs/digits --n=8 --method=combined             # by gradients and losses
  python -m experiments.attribute --run=runs/digits --images=my_pictures --method=d-trak --store=runs/digits/gradients
  python -m experiments.attribute --run=runs/classes --cond=cat,dog --guidance=2        # one sample of each class
  python -m experiments.attribute --run=runs/classes --images=my_pictures --cond=cat
  python -m experiments.attribute --run=runs/captions --prompt="a red cat" --guidance=5
  python -m experiments.attribute --run=runs/digits --n=16 --compare                    # all methods against exact
  python -m experiments.attribute --run=runs/digits --values=shapley --units=1,2,3+4 --skip_empty
  python -m experiments.attribute --run=runs/digits --contrast --draws=32               # memorization, membership
"""

import pathlib
from typing import Any

import numpy as np
from absl import flags

from . import building, common, naming, runs
from .outside import outside_images
from .pages import write_report

runs.define_sampling_flags(n=8)
runs.define_data_flag()
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(runs)
METHOD = flags.DEFINE_enum(
    "method",
    "screen",
    ["exact", "differential", "screen", "loss", "trak", "d-trak", "das", "combined"],
    "See ensdiff.attribute. The last four use gradients, and the members judge them. Without --method, --images are "
    "scored by loss, and with --store groups by combined and single items by d-trak.",
)
TOP = flags.DEFINE_integer("top", 10, "Units to report per sample.")
VERIFY = flags.DEFINE_integer("verify", 50, "Units per sample that 'screen' verifies exactly.")
AUDIT = flags.DEFINE_integer("audit", 0, "Unverified units per sample that 'screen' checks, to estimate its recall.")
NULL = flags.DEFINE_string(
    "null",
    "auto",
    "Null ablations per sample, for p- and q-values: a number, 0 for none, 'all', or 'auto', as many as a verdict at "
    "--level needs. Gradient methods compare single items with the run's held-out items, groups with random groups.",
)
LEVEL = flags.DEFINE_float("level", 0.1, "The q-value up to which a sample is attributed to a unit.")
UNITS = flags.DEFINE_string(
    "units", "", f"Only these units; those joined by + are removed together. By default all. Units are {naming.HOW}"
)
GROUPS = flags.DEFINE_bool("groups", False, "Attribute to the groups of a hierarchical code instead of its items.")
IMAGES = flags.DEFINE_string(
    "images", None, "A folder of pictures to attribute by 'loss' or by a gradient method, instead of samples."
)
GRADIENTS = flags.DEFINE_list(
    "gradients",
    [],
    "Settings of the gradient methods, see ensdiff.GradientConfig, such as draws=32,dimension=2048,ridge=0.01. The "
    "members choose those that are left out.",
)
STORE = flags.DEFINE_string("store", None, "A folder of stored gradients, as experiments.gradients writes it.")
DRAWS = flags.DEFINE_integer("draws", 256, "Draws of noise per image, for 'loss' and to judge gradient methods.")
TARGET_ERROR = flags.DEFINE_float("target_error", None, "Draw until the standard error of the scores is at most this.")
WEIGHTING = flags.DEFINE_enum("weighting", "simple", ["simple", "snr"], "Weights of the noise levels, for 'loss'.")
LEVELS = flags.DEFINE_enum("levels", "stratified", ["stratified", "antithetic", "uniform"], "How to draw noise levels.")
FIRST = flags.DEFINE_integer("first_level", 0, "The smallest noise level of 'loss'.")
LAST = flags.DEFINE_integer("last_level", None, "The largest noise level of 'loss'; by default all.")
VALUES = flags.DEFINE_enum(
    "values",
    None,
    ["shapley", "banzhaf"],
    "Only compute the values of the --units (or --groups) as players of a game: from the loss with --method=loss or "
    "--images, otherwise from the Gram matrix.",
)
REMOVED = flags.DEFINE_float("removed", 0.5, "Chance that another group is removed, for Banzhaf values.")
SKIP = flags.DEFINE_bool("skip_empty", False, "Leave coalitions without survivors out of the values.")
CONTRAST = flags.DEFINE_bool("contrast", False, "Only measure memorization and membership of all units of the data.")
COMPARE = flags.DEFINE_bool("compare", False, "Only compare all methods with exact ablation of every unit.")


def main() -> None:
    """Attribute, print a table, and write the result and a report."""
    import ensdiff
    from ensdiff.attribution.judging import LEAST_MEMBERS
    from ensdiff.files.checksums import write_sealed
    from ensdiff.files.reading import printable

    by_default = "combined" if STORE.value else "loss" if IMAGES.value else METHOD.value
    method = METHOD.value if given("method") else by_default
    check_flags(method)
    null, loss, by_gradients = runs.null_value(NULL.value), loss_config(), method in BY_GRADIENTS
    params = runs.load_run()
    code = params.code.group_code() if GROUPS.value else params.code
    units = None
    if UNITS.value:
        with naming.groups_named(params, UNITS.value, code):
            names = naming.names_of(params, code)
            units = naming.unit_sets(UNITS.value, code.units, names, "group" if GROUPS.value else "unit")
    if COMPARE.value:
        compare(params)
        return
    data = None if VALUES.value else runs.training_data(required=CONTRAST.value or by_gradients)
    items = 0 if data is None else data.items
    groups = code.units < items
    if method == "combined" and not given("method") and not (groups and params.members > LEAST_MEMBERS):
        method = "d-trak"  # the members' losses say nothing about single items that gradients do not
    out = runs.output_folder("attribution")
    if CONTRAST.value:
        contrast(params, data, out)
        return
    names = cond = None
    samples: Any
    if IMAGES.value:
        samples, names, cond = outside_images(params, IMAGES.value)
    else:
        samples = runs.draw_samples(params)
    if VALUES.value:
        values(params, samples, cond, method, code, units, out)
        return
    options: dict[str, Any] = {"loss": loss} if method == "loss" or by_gradients else {}
    if by_gradients:
        held_out, null = null_of_gradients(data, code, units, null)
        options |= {
            "data": data,
            "gradients": gradient_settings(params, data),
            "store": STORE.value,
            "held_out": held_out,
        }
    possible = ensdiff.attribution.count_candidates(params, units, code)
    stem = f"{method}_images" if IMAGES.value else f"{method}_seed{flags.FLAGS.seed}"
    stem += "_groups" if GROUPS.value else ""
    att = ensdiff.attribute(
        params,
        samples,
        method,
        top=TOP.value if given("top") else min(TOP.value, possible),
        units=units,
        code=code,
        verify=VERIFY.value if given("verify") else None,
        audit=AUDIT.value,
        null=null,
        level=LEVEL.value,
        seed=flags.FLAGS.seed,
        cond=cond,
        progress=True,
        partial=out / f"{stem}.partial",
        **options,
    )
    if att.names is None and data is not None and not GROUPS.value:
        att = att.named(data.unit_names)  # runs of older versions do not have them
    print(att)
    if GROUPS.value and code.names is not None:
        shown = [int(unit) for unit in np.unique(att.units)[:NAMED]]
        print("groups: " + ", ".join(f"{unit} = {printable(code.names[unit])}" for unit in shown))
    if groups and not by_gradients and params.members > LEAST_MEMBERS:
        print(
            "which groups would retraining without them change the most? --method=combined predicted it better on "
            f"digits; it needs the gradients of {items:,} items under {params.members} members (experiments.gradients)"
        )
    writes = runs.is_writer()
    if writes:
        att.save(out / stem)
    print(f"wrote {out / stem}.json and .npz")
    if names is not None and writes:
        write_sealed(out / f"{stem}_names.json", {"names": names})
    if data is None:
        print("no report: a report shows the training data; pass --data=... to get one")
        return
    write_report(params, data, samples, att, out / stem, groups=GROUPS.value, names=names, cond=cond)


NAMED = 50
"""Most groups whose names are printed."""
BY_GRADIENTS = ("trak", "d-trak", "das", "combined")
"""The methods that use gradients."""


def null_of_gradients(data: Any, code: Any, units: Any, null: Any) -> tuple[Any, Any]:
    """Return the held-out images that a gradient method compares with, and the size of its null.

    Single items are compared with the run's held-out items; without any, there is no null. Groups and sets of units are
    compared with random ones.
    """
    single = data.items == data.units == code.units and not any(isinstance(unit, list) for unit in units or ())
    if not null or not single:
        return None, null
    try:
        held_out = runs.unseen_data()
    except ValueError as error:  # a run of an older version, without hashes of its items
        if given("null"):
            raise
        print(f"no p-values: {error}")
        return None, 0
    if held_out is None:
        print("no p-values: the run holds out no data, with which gradient scores of single items are compared")
        return None, 0
    return held_out, null


def gradient_settings(params: Any, data: Any) -> Any:
    """Return the settings of gradients that --gradients names; the others are those of the store, if there is one."""
    from ensdiff.attribution.gradients.store import open_gradients

    if not GRADIENTS.value:
        return None
    base = open_gradients(STORE.value, params, data).config if STORE.value else None
    return building.gradient_config(GRADIENTS.value, base)


def given(name: str) -> bool:
    """Return whether a flag was given on the command line, even with its default value."""
    return flags.FLAGS[name].present > 0


def check_flags(method: str) -> None:
    """Check that every given flag has an effect on what is requested.

    Raises:
        ValueError: a given flag would be ignored, or two flags exclude each other.
    """
    actions = [name for name in ("compare", "contrast", "values") if flags.FLAGS[name].value]
    if len(actions) > 1:
        raise ValueError(f"--{actions[0]} and --{actions[1]} exclude each other: leave one of them out")
    action = actions[0] if actions else "ranking"
    if IMAGES.value and given("method") and METHOD.value not in ("loss", *BY_GRADIENTS):
        raise ValueError(
            f"--method={METHOD.value}: the noise of --images is not known, so they are scored by loss, or by "
            f"{', '.join(BY_GRADIENTS)}; leave --method out, or give one of these"
        )
    ranking, screens = action == "ranking", action == "ranking" and method == "screen"
    of_gram = action == "values" and method in ("differential", "loss")
    by_gradients = ranking and method in BY_GRADIENTS
    for names, used, where in (
        (
            "n steps sampler eta guidance",
            action != "contrast" and not IMAGES.value,
            "samples, and not for --images or --contrast",
        ),
        (
            "cond prompt text",
            action != "contrast",
            "samples and --images, and not for --contrast, which takes those of the data",
        ),
        ("decode", ranking or action == "values", "rankings and --values"),
        ("images units groups", ranking or action == "values", "rankings and --values"),
        ("method", ranking or of_gram, "rankings; --values use the Gram matrix (differential) or the loss"),
        ("top", ranking or action == "contrast", "rankings and --contrast"),
        ("verify", screens or action == "compare", "--method=screen and --compare"),
        ("audit", screens, "--method=screen"),
        ("null level", ranking, "rankings"),
        (
            "draws target_error weighting levels first_level last_level",
            method == "loss" or by_gradients or action in ("compare", "contrast"),
            "--method=loss or a gradient method, --images, --compare and --contrast",
        ),
        ("gradients store", by_gradients, f"--method={', '.join(BY_GRADIENTS)}"),
        ("removed", VALUES.value == "banzhaf", "--values=banzhaf"),
        ("skip_empty", action == "values", "--values"),
        ("data", ranking or action == "contrast", "rankings and --contrast"),
        ("out", action != "compare", "requests that write files; --compare only prints"),
    ):
        for name in names.split():
            if given(name) and not used:
                value = flags.FLAGS[name].value
                value = value[0] if isinstance(value, list) and value else value
                raise ValueError(f"--{name}={value} is for {where}: leave it out")


def compare(params: Any) -> None:
    """Compare all methods on the same samples, over all units, and print a table."""
    from .comparison import compare_methods, methods_table
    from .tables import markdown

    samples = runs.draw_samples(params)
    results = compare_methods(
        params, samples, verify=VERIFY.value, loss=loss_config(), seed=flags.FLAGS.seed, progress=True
    )
    print(f"{len(samples)} samples, {params.code.units} units, {samples.config.steps} sampling steps")
    print(markdown(methods_table(results)))


def contrast(params: Any, data: Any, out: pathlib.Path) -> None:
    """Measure memorization (Feldman-Zhang) and membership (likelihood ratio) of every unit, and write the result."""
    import ensdiff
    from ensdiff.attribution.contrast import contrast_table

    result = ensdiff.contrast(params, data, flags.FLAGS.seed, loss_config(), progress=True)
    print(contrast_table(result, data.unit_names, TOP.value))
    path = out / f"contrast_seed{flags.FLAGS.seed}.npz"
    np.savez_compressed(path, **{**result._asdict(), "notes": np.array(result.notes, str)})
    print(f"wrote {path}")


def values(params: Any, samples: Any, cond: Any, method: str, code: Any, units: Any, out: pathlib.Path) -> None:
    """Compute, print and write Shapley or Banzhaf values of units or of groups of units."""
    import ensdiff
    from ensdiff.files.checksums import write_sealed

    if not UNITS.value and not GROUPS.value:
        raise ValueError("--values needs players: pass --units=1+2,3+4,... or --groups")
    seed, weights = flags.FLAGS.seed, None
    kind: Any = VALUES.value
    estimate: Any
    if method == "loss":
        estimate = ensdiff.loss_matrix(params, samples, seed, loss_config(), cond=cond, progress=True)
    else:
        estimate, weights = ensdiff.gram(params, samples, progress=True), np.asarray(samples.weights_K)
    removed = REMOVED.value if kind == "banzhaf" else None
    result = ensdiff.group_values(
        estimate, code, units, kind=kind, removed=removed, weights_K=weights, seed=seed,
        on_empty="skip" if SKIP.value else "baseline",
    )  # fmt: skip
    names, plain = params.names_of(code), "group " if units is None else ""
    players = [entry if isinstance(entry, list) else [entry] for entry in units or range(code.units)]
    labels = ["+".join(f"{plain}{unit}" if names is None else names.label(unit) for unit in p) for p in players]
    print(
        f"{result.kind} values ({'all' if result.exact else 'sampled'} coalitions); a positive value means that the "
        "sample depends on the group"
    )
    for b, (row, errors) in enumerate(zip(result.value_BG, result.standard_error_BG, strict=True)):
        cells = [f"{labels[g]}: {row[g]:.4g} +- {errors[g]:.2g}" for g in np.argsort(-row)]
        print(f"  sample {b}: " + ", ".join(cells))
    path = out / f"{result.kind}_{method}_seed{seed}.json"
    values = {"labels": labels, "value": result.value_BG, "standard_error": result.standard_error_BG}
    write_sealed(path, values)
    print(f"wrote {path}")


def loss_config() -> Any:
    """Return the settings that the flags of 'loss' describe."""
    import ensdiff

    values = {
        "draws": DRAWS.value,
        "block": min(32, max(2, DRAWS.value // 4 * 2)),  # at least two blocks, of pairs
        "target_error": TARGET_ERROR.value,
        "levels": LEVELS.value,
        "weighting": WEIGHTING.value,
        "first_level": FIRST.value,
        "last_level": LAST.value,
    }
    return building.build(ensdiff.LossConfig, "loss", values)


if __name__ == "__main__":
    common.run(main, __doc__)
