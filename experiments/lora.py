"""The average of a run's adapters as one file, which other programs read."""

import pathlib
import shutil
import tempfile


def check(run: str | pathlib.Path, file: str, out: str) -> None:
    """Check that a run's adapters can be written as a file of adapters, before anything else is written.

    Raises:
        ValueError: the run has no adapters, their base or some of them have no counterpart in diffusers, or the file is
            in the new run, whose certificate allows no other files.
        FileExistsError: the file exists.
    """
    from ensdiff.interop.lora import modules_of
    from ensdiff.interop.lora_members import check_modules
    from ensdiff.models.adapters import Adapted, abstract_of
    from ensdiff.models.denoiser import name_of
    from ensdiff.models.factors import factors_of
    from ensdiff.runs.checkpoints import run_description
    from ensdiff.runs.description import from_description

    model = from_description(run_description(pathlib.Path(run)), None).model
    if not isinstance(model, Adapted):
        raise ValueError(f"--lora={file}: the members of {run} are {name_of(model)}, not adapters: leave it out")
    if model.train_also is not None:
        raise ValueError(
            f"--lora={file}: members of {run} also train whole arrays (train_also={model.train_also!r}), which have no "
            "place in such a file: leave it out"
        )
    try:
        modules = modules_of(model.base)
    except ValueError as error:
        raise ValueError(f"--lora={file}: the base of {run} is no network of diffusers: {error}") from error
    try:
        check_modules(factors_of(abstract_of(model)[1]), modules)
    except ValueError as error:
        raise ValueError(f"--lora={file}: of the adapters of {run}, those of {error}; or leave --lora out") from error
    place = pathlib.Path(file)
    if place.suffix != ".safetensors":
        raise ValueError(f"--lora={file}: expected the name of a new file .safetensors")
    if place.exists():
        raise FileExistsError(f"{file} exists already; choose a new file")
    if pathlib.Path(out).resolve() in place.resolve().parents:
        raise ValueError(
            f"--lora={file} is in the new run, whose certificate allows no other files in it: choose another folder"
        )


def write(run: str, file: str, rank: int | None) -> str:
    """Write the average of all adapters of a run that forgot units as one file, and return a line about it."""
    import ensdiff
    from ensdiff.interop import lora
    from ensdiff.runs.checkpoints import run_description

    params, place = ensdiff.load(run), pathlib.Path(file)
    forgotten = run_description(pathlib.Path(run))["origin"]["forgotten"]
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        saved = lora.save(params, pathlib.Path(folder) / "average", removed=forgotten, average=True, rank=rank)
        shutil.move(saved.files[0], place)
    lost = f", relative error {saved.relative_error:.2g}" if rank is not None else ""
    if params.combine == "predictions":
        lost += "; the run itself averages predictions, not parameters"
    return f"wrote {file}, the average of {params.members} adapters{lost}"
