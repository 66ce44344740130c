"""Run directories that experiments.quickstart made, which it replaces when it is called again."""

import pathlib
import shutil

MARK = "quickstart.txt"
"""The file by which this program knows its own runs."""


def begin_run(run_dir: pathlib.Path, resume: bool, images: str | None = None) -> None:
    """Remove what an earlier call of this program left in its run directory, and mark the directory as its own.

    Only a folder that this program created, or found empty, gets its mark, and only such a folder is ever removed.

    Args:
        run_dir: the run directory.
        resume: whether to go on with the run that it holds, which then stays as it is.
        images: the folder of pictures, which may not be in the run directory.

    Raises:
        ValueError: the folder holds files that are not of this program, or the pictures or the working directory.
    """
    for inside, what in ((images, "--images"), (".", "the working directory")):
        if inside is not None and run_dir.resolve() in (place := pathlib.Path(inside).resolve(), *place.parents):
            raise ValueError(f"{run_dir} holds {what}, and this program replaces it: choose another --config.run_dir")
    if resume and (run_dir / "run.json").exists():
        return
    if run_dir.exists() and any(run_dir.iterdir()):
        if not (run_dir / MARK).exists():
            raise ValueError(f"{run_dir} holds files that this program did not make: choose another --config.run_dir")
        if (run_dir / "run.json").exists():
            shutil.rmtree(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / MARK).write_text("experiments.quickstart replaces this run when it is called again\n")
