"""Open other implementations' ensembles in ensdiff, and write files for their tools.

Commands:
  genens      GenEns checkpoints (*_split{k}_ckpt.pt) to a run directory
  diffusers   checkpoints of diffusers' UNet2DModel or DiTTransformer2DModel (Shard{k}/, or any folders) to a run
              directory, or with --run the reverse: a run directory to checkpoints that from_pretrained opens
  ctf         with --run: samples and the exact counterfactual without every unit, to a counterfactual universe file;
              with --from: such a file to an .npz of arrays

Examples:
  python -m experiments.convert genens --from=checkpoints --code=code.pkl --to=runs/genens
  python -m experiments.convert diffusers --from=models --code=code.npy --to=runs/zoo
  python -m experiments.convert diffusers --from=ada --from=bob --from=eve --code=who_saw_what.npy --to=runs/zoo
  python -m experiments.convert diffusers --run=runs/digits --to=models
  python -m experiments.convert ctf --run=runs/digits --n=16 --to=digits.ctf
  python -m experiments.convert ctf --run=runs/adapters --n=16 --prompt="a red cat" --to=cats.ctf
  python -m experiments.convert ctf --from=digits.ctf --to=digits.npz

A code is an (N, K) matrix in a .npy, .npz, .pkl or .json file: 1 where member k was trained on unit i, 0 elsewhere.
If writing a universe was interrupted, the same command continues it.
"""

import pathlib
from typing import Any

import numpy as np
from absl import flags

from . import common, decoding, runs
from .commands import command as called

runs.define_sampling_flags(n=16)
runs.define_data_flag()
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(runs)
SOURCE = flags.DEFINE_multi_string("from", [], "Folder or file to read, or one per member")
TO = flags.DEFINE_string("to", None, "The new run directory, folder or file.")
CODE = flags.DEFINE_string("code", None, "File of the code matrix; without it, unit k is what only member k saw.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Height and width, if the checkpoints do not give them.")
UNET = flags.DEFINE_string("unet", None, "JSON file of the network's arguments, if there is no config.json.")
CLASSES = flags.DEFINE_integer(
    "classes", None, "Number of classes of a UNet2DModel whose table has one row more, for no class."
)
FORMAT = flags.DEFINE_enum("format", "safetensors", ["safetensors", "bin"], "Format of the weights for diffusers.")


def main(command: str) -> None:
    """Convert, and print where the result is."""
    import jax

    target = _target()
    if jax.process_count() > 1 and not (command == "ctf" and flags.FLAGS.run):
        raise ValueError(
            f"{jax.process_count()} processes: only ctf --run=... can use several; run this conversion in one process"
        )
    if bool(SOURCE.value) == bool(flags.FLAGS.run):
        raise ValueError("pass either --from=... to read other files, or --run=... to convert a run directory")
    if flags.FLAGS.run:
        if command == "genens":
            raise ValueError(
                "GenEns checkpoints cannot be written, because GenEns only reads those that it wrote itself: use the "
                "command diffusers"
            )
        _write_universe(target) if command == "ctf" else _write_diffusers(target)
    elif command == "ctf":
        _unpack_universe(target)
    else:
        _read_checkpoints(command, target)


def _target() -> pathlib.Path:
    if not TO.value:
        raise ValueError("no output given: pass --to=...")
    return pathlib.Path(TO.value)


def _one_source() -> str:
    if len(SOURCE.value) > 1:
        raise ValueError(f"{len(SOURCE.value)} values of --from: expected one file or folder")
    return SOURCE.value[0]


def _read_checkpoints(command: str, target: pathlib.Path) -> None:
    import ensdiff
    from ensdiff.files.reading import read_object
    from ensdiff.interop import diffusers, genens

    paths = SOURCE.value if len(SOURCE.value) > 1 else _one_source()
    if command == "genens":
        params = genens.load(paths, CODE.value, image_size=IMAGE_SIZE.value)
    else:
        if isinstance(paths, str) and not any(pathlib.Path(paths).glob("Shard*")):
            raise ValueError(
                f"{paths} has no folders Shard0, Shard1, ...: pass one --from=... per member, with its folder"
            )
        config = read_object(UNET.value) if UNET.value else None
        params = diffusers.load(paths, CODE.value, config=config, image_size=IMAGE_SIZE.value, classes=CLASSES.value)
    ensdiff.save(params, target)
    print(f"{params}\n{params.model}\n{params.code}")
    print(f"wrote {target}; try: {called('sample')} --run={target} --sampler={command}")


def _write_diffusers(target: pathlib.Path) -> None:
    from ensdiff.interop import diffusers
    from ensdiff.models.adapters import Adapted

    params = runs.load_run()
    if isinstance(params.model, Adapted):
        raise ValueError(
            f"{runs.run_folder()} holds adapters, not whole networks: {called('forget')} --lora=FILE.safetensors "
            "writes their average without some units, and ensdiff.interop.lora.save the adapters themselves"
        )
    diffusers.save(params, target, format=FORMAT.value)
    name = diffusers.model_options(params)["_class_name"]
    print(f"wrote {params.members} checkpoints to {target}; open one with {name}.from_pretrained('{target}/Shard0')")


def _write_universe(target: pathlib.Path) -> None:
    from ensdiff.interop import ctf
    from ensdiff.models.space import Latents

    params = runs.load_run()
    data = runs.training_data()
    decode = None
    if isinstance(params.space, Latents):
        decode = decoding.needed(params, "a counterfactual universe, which holds pictures,").decode
    samples = runs.draw_samples(params)
    with ctf.write(target, params, samples, data, progress=True, decode=decode) as universe:
        print(f"{universe}\nwrote {target}")


def _unpack_universe(target: pathlib.Path) -> None:
    from ensdiff.interop import ctf

    if target.suffix != ".npz":
        raise ValueError(f"--to={target}: expected a name that ends in .npz")
    with ctf.read(_one_source()) as universe:
        told: dict[str, Any] = (
            {} if universe.conditions is None else {"captions": np.array(universe.conditions["captions"])}
        )
        if universe.unit_names is not None:
            told["unit_names"] = np.array(universe.unit_names)
        training = [universe.training(i) for i in range(universe.units)]
        np.savez_compressed(
            target,
            factual=universe.factual,
            counterfactuals=np.stack(list(universe.counterfactuals())),
            training=np.concatenate(training),
            unit_of_item=np.repeat(np.arange(universe.units), list(map(len, training))),
            **told,
        )
        print(f"{universe}\nwrote {target}: " + ", ".join(["factual, counterfactuals, training, unit_of_item", *told]))


if __name__ == "__main__":
    common.run(main, __doc__, commands=("genens", "diffusers", "ctf"))
