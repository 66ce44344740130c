"""Generate images with a trained ensemble, and remove training units from them.

Pictures and an .npz of the arrays go to RUN/samples, or to --out. The classes of a conditional run take turns, unless
--cond names some. Latents are decoded for the pictures; the arrays hold the latents.

Examples:
  python -m experiments.sample --run=runs/digits --n=64
  python -m experiments.sample --run=runs/digits --n=16 --sampler=ddim --steps=25
  python -m experiments.sample --run=runs/digits --n=16 --remove=3 --remove=5,8 (unit 3; units 5 and 8 together)
  python -m experiments.sample --run=runs/classes --cond=3 --guidance=2  (all of class 3; --cond=1,2,3: one of each)
  python -m experiments.sample --run=runs/captions --prompt="a red cat" --prompt="a dog" --guidance=5
  python -m experiments.sample --run=runs/latents --decode=models/vae
  python -m experiments.sample --run=runs/nested --n=16 --groups --remove=2  (a whole group of a hierarchical code)
  python -m experiments.sample --run=runs/artists --remove=ada   (by name, or by a part of it that no other name has)
  python -m experiments.sample --run=runs/artists --remove=ganson,calder --remove='"Smith, John"'
"""

from typing import Any

import numpy as np
from absl import flags

from . import common, decoding, naming, runs

runs.define_sampling_flags(n=36)
runs.define_data_flag()
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(runs)
REMOVE = flags.DEFINE_multi_string(
    "remove", [], f"Unit to regenerate without, or units 5,8 to remove together: {naming.HOW.rstrip('.')}"
)
GROUPS = flags.DEFINE_bool("groups", False, "Let --remove name groups of a hierarchical code instead of its items.")


def main() -> None:
    """Sample, write a grid and an .npz, and print where they are."""
    import ensdiff
    from ensdiff.data.images import grid, to_png
    from ensdiff.data.viewing import viewer
    from ensdiff.files.reading import printable

    params = runs.load_run()
    code = params.code.group_code() if GROUPS.value else params.code
    names = naming.names_of(params, code)
    with naming.groups_named(params, ",".join(REMOVE.value), code):
        removals = naming.removals(REMOVE.value, code.units, names, "group" if GROUPS.value else "unit")
    units = [removal.units for removal in removals]
    naming.check_removals(code, units, names)  # before sampling
    for removal in removals:
        if not code.rows(np.asarray(removal.units)).any():
            told = printable(naming.called(removal.units, names))
            print(f"no member of this run saw {told}: without it, the samples are the same")
    out = runs.output_folder("samples")
    samples = runs.draw_samples(params)
    view = viewer(params.space, decoding.decoder_of(params, samples.images))
    arrays: dict[str, Any] = {"images": np.asarray(samples.images), **condition_arrays(params, samples)}
    pictures = {f"samples_seed{flags.FLAGS.seed}": samples.images}
    kind = "group_" if GROUPS.value else ""
    if REMOVE.value:
        arrays["counterfactuals"] = ensdiff.counterfactuals(params, samples, units, code=code, progress=True)
        for removal, images in zip(removals, arrays["counterfactuals"], strict=True):
            ids = "_".join(map(str, removal.units))
            told = naming.called(removal.units, names)
            if ids != removal.text.replace(",", "_"):
                print(f"{printable(removal.text)} is {'group' if GROUPS.value else 'unit'} {ids.replace('_', ', ')}")
            elif told != ids.replace("_", ", "):
                print(f"{'group' if GROUPS.value else 'unit'} {ids.replace('_', ', ')} is {told}")
            pictures[f"samples_seed{flags.FLAGS.seed}_without_{kind}{ids}"] = images
    if not runs.is_writer():
        return
    written = [out / f"{name}.png" for name in pictures]
    for path, images in zip(written, pictures.values(), strict=True):
        shown = view(images)
        path.write_bytes(to_png(grid(shown), scale=max(1, 64 // shown.shape[1])))
    written.append(out / f"samples_seed{flags.FLAGS.seed}.npz")
    np.savez_compressed(written[-1], **arrays)
    print("wrote " + ", ".join(map(str, written)))
    if "captions" in arrays:
        columns = int(np.ceil(np.sqrt(len(samples))))  # of the grid
        for row in range(0, len(samples), columns):
            print(f"row {row // columns + 1}: " + ", ".join(map(printable, arrays["captions"][row : row + columns])))


def condition_arrays(params: Any, samples: Any) -> dict[str, Any]:
    """Return the conditions of samples as arrays of the .npz file: captions, guidance, and cond or cond/PATH."""
    from ensdiff.models.condition import flatten
    from ensdiff.sampling.captions import captions_of

    captions = captions_of(params, samples.cond, samples.captions)
    if captions is None:
        return {}
    rows = {f"cond/{path}" if path else "cond": array for path, array in flatten(samples.cond).items()}
    return {"captions": np.array(captions), "guidance": np.array(samples.guidance), **rows}


if __name__ == "__main__":
    common.run(main, __doc__)
