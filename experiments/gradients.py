"""Compute the gradients of all training items under all members, and keep them for attribution by gradients.

They go to RUN/gradients, or to --out (required for a run that experiments.forget wrote). Each output takes items x
members x parts x dimension x 2 bytes. After an interruption the same command continues from what was finished. Outputs
can be added later: method trak needs loss, d-trak needs square, das needs loss and output. Gradients of pictures that
were held out of training are kept too, for p-values.

Examples:
  python -m experiments.gradients --run=runs/digits
  python -m experiments.gradients --run=runs/digits --outputs=loss,output --held_out=0
  python -m experiments.gradients --run=runs/digits --parts=2 --dimension=2048 --out=/scratch/gradients
"""

from typing import Any

from absl import flags

from . import common, runs

runs.define_data_flag()
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(runs)
flags.DEFINE_integer("step", None, "Step of the checkpoint to use; by default the newest.")
flags.DEFINE_string("out", None, "Folder to write to; by default RUN/gradients.")
OUTPUTS = flags.DEFINE_list("outputs", ["loss", "square"], "What to take gradients of: some of loss, square, output.")
DRAWS = flags.DEFINE_integer("draws", 16, "Draws of noise per picture; their levels are stratified.")
PARTS = flags.DEFINE_integer("parts", 4, "Parts of the noise levels whose gradients are kept apart.")
DIMENSION = flags.DEFINE_integer("dimension", 1024, "Numbers per gradient, after a random projection.")
PROJECTION = flags.DEFINE_enum("projection", None, ["sketch", "signs"], "Kind of the random projection.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the draws and of the projection.")
HELD_OUT = flags.DEFINE_integer(
    "held_out", None, "Pictures that the run was not trained on; by default as many as its config held out.", 0
)
CHUNK = flags.DEFINE_integer("chunk", 64, "Pictures per chunk. An interruption loses at most one chunk.")
MEMORY = flags.DEFINE_float("memory", None, "GiB of gradients that a device may hold at a time.", 0)


def main() -> None:
    """Compute the gradients, and print where they are."""
    from ensdiff.attribution.gradients.config import GradientConfig
    from ensdiff.attribution.gradients.store import write_gradients

    projection: Any = {} if PROJECTION.value is None else {"projection": PROJECTION.value}
    config = GradientConfig(DRAWS.value, PARTS.value, DIMENSION.value, seed=SEED.value, **projection)
    outputs: Any = OUTPUTS.value
    params = runs.load_run()
    data = runs.training_data()
    out = runs.output_folder("gradients")
    store = write_gradients(
        out, params, data, outputs, config,
        held_out=held_out_to_store(data, HELD_OUT.value),
        chunk=CHUNK.value,
        memory_budget=None if MEMORY.value is None else int(MEMORY.value * 2**30),
        progress=True,
        say=say,
    )  # fmt: skip
    if runs.is_writer():
        print(store)


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def held_out_to_store(data: Any, wanted: int | None) -> Any:
    """Return pictures that the run was not trained on, or None if there are none.

    Args:
        data: the training data.
        wanted: their number; None means as many as the config of the run held out. If the data of the run hold more,
            these are chosen at random, always in the same way.

    Raises:
        ValueError: there are fewer.
    """
    import numpy as np

    from . import building

    run = runs.run_folder()
    if wanted is None:
        known = (run / "config.json").exists()
        wanted = building.read_run_config(run)["data"].get("held_out", 0) if known else 0
    if not wanted:
        return None
    everything = runs.all_data()
    others = np.flatnonzero(~np.isin(everything.manifest().sha256, data.manifest().sha256))
    if len(others) < wanted and HELD_OUT.value is not None:
        raise ValueError(f"--held_out={wanted}: only {len(others)} pictures of the data were not used in training")
    if len(others) > wanted:
        others = np.sort(np.random.default_rng(0).permutation(others)[:wanted])
    return everything.subset(others) if len(others) else None


if __name__ == "__main__":
    common.run(main, __doc__)
