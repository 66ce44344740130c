"""Generate images with a trained ensemble, and remove training units from them.

Pictures and an .npz of the arrays go to RUN/samples, or to --out.

Examples:
  python -m experiments.sample --run=runs/digits --n=64
  python -m experiments.sample --run=runs/digits --n=16 --sampler=ddim --steps=25
  python -m experiments.sample --run=runs/digits --n=16 --remove=3 --remove=5,8 (unit 3; units 5 and 8 together)
  python -m experiments.sample --run=runs/nested --n=16 --groups --remove=2  (a whole group of a hierarchical code)
"""

from typing import Any

import numpy as np
from absl import flags

from experiments import common, runs

runs.define_sampling_flags(n=36)
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(runs)
REMOVE = flags.DEFINE_multi_string("remove", [], "Unit to regenerate without, or units 5,8 to remove together")
GROUPS = flags.DEFINE_bool("groups", False, "Let --remove name groups of a hierarchical code instead of its items.")


def main() -> None:
    """Sample, write a grid and an .npz, and print where they are."""
    import ensdiff
    from ensdiff.data.images import grid, to_png

    units = [runs.unit_ids(text) for text in REMOVE.value]
    params = runs.load_run()
    code = params.code.group_code() if GROUPS.value else params.code
    if units:
        code.ablate(units)  # raises before sampling if the units cannot be removed
    out = runs.output_folder("samples")
    samples = runs.draw_samples(params)
    scale = max(1, 64 // params.image_shape[0])
    arrays: dict[str, Any] = {"images": np.asarray(samples.images)}
    pictures = {f"samples_seed{flags.FLAGS.seed}": samples.images}
    kind = "group_" if GROUPS.value else ""
    if REMOVE.value:
        arrays["counterfactuals"] = ensdiff.counterfactuals(params, samples, units, code=code, progress=True)
        for text, images in zip(REMOVE.value, arrays["counterfactuals"], strict=True):
            pictures[f"samples_seed{flags.FLAGS.seed}_without_{kind}{text.replace(',', '_')}"] = images
    if not runs.is_writer():
        return
    written = [out / f"{name}.png" for name in pictures]
    for path, images in zip(written, pictures.values(), strict=True):
        path.write_bytes(to_png(grid(images), scale=scale))
    written.append(out / f"samples_seed{flags.FLAGS.seed}.npz")
    np.savez_compressed(written[-1], **arrays)
    print("wrote " + ", ".join(map(str, written)))


if __name__ == "__main__":
    common.run(main, __doc__)
