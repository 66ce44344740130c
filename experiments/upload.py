"""Upload a run to the Hugging Face Hub, from where others can download and load it.

The newest checkpoint, the run's own files, grids of samples and the model card (README.md, which is written if there is
none) are uploaded, and nothing else that lies in the folder. The repository is private unless --public is given. Read
the card first: the license is yours to state, and the names of units are in unit_names.json.

Examples:
  python -m experiments.upload --run=runs/digits --repo=me/digits --dry_run   # only lists the files
  python -m experiments.upload --run=runs/digits --repo=me/digits
  python -m experiments.upload --run=runs/digits --repo=me/digits --public --checkpoints

It needs huggingface_hub (pip install 'ensdiff[hub]') and its login (hf auth login, or $HF_TOKEN).
"""

import pathlib
import re
from typing import Any

from absl import flags

from . import common, runs
from .card import NAME as CARD
from .card import write_card

FILES = (
    "run.json", "data.manifest", "environment.jsonl", "unit_names.json", "base.npz", "tuning.json", "skipped.json",
    "metrics.jsonl", "certificate.json", CARD,
)  # fmt: skip
"""Files of a run that are uploaded."""


def files_of(run: pathlib.Path, *, checkpoints: bool, config: bool) -> list[str]:
    """Return the files of a run to upload, as sorted paths within it. Links are left out.

    Args:
        run: the run directory.
        checkpoints: all checkpoints instead of the newest.
        config: also ``config.json``, which holds paths of the machine.

    Raises:
        FileNotFoundError: the run has no checkpoint.
    """
    from ensdiff.certificate.files import CHECKPOINT
    from ensdiff.runs.checkpoints import steps_of

    steps = steps_of(run)
    if not (run / "run.json").exists() or not steps:
        raise FileNotFoundError(f"{run} holds no finished checkpoint: expected a run that experiments.train wrote")
    found = [run / name for name in FILES] + [run / "config.json"] * config
    found += sorted((run / "samples").glob("step_*.png"))
    for step in steps if checkpoints else steps[-1:]:
        folder = run / "checkpoints" / str(step)
        found += [file for file in folder.rglob("*") if CHECKPOINT.fullmatch(file.relative_to(folder).as_posix())]
    plain = [file.relative_to(run).as_posix() for file in found if file.is_file() and not file.is_symlink()]
    return sorted(plain)


def upload(run: pathlib.Path, repo: str, names: list[str], *, public: bool, api: Any) -> str:
    """Upload files of a run in one commit, and return the address of the repository.

    Args:
        run: the run directory.
        repo: the repository, ``name`` or ``owner/name``; it is made if there is none.
        names: the files, as `files_of` returns them.
        public: whether a new repository is public.
        api: a ``huggingface_hub.HfApi``.

    Raises:
        OSError: the Hub cannot be reached, or refuses the files.
    """
    try:
        address = api.create_repo(repo_id=repo, private=not public, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=getattr(address, "repo_id", repo), folder_path=str(run), repo_type="model", allow_patterns=names,
            commit_message=f"ensdiff run {run.resolve().name}",
        )  # fmt: skip
    except Exception as error:  # of the Hub's client, or of the network below it
        raise OSError(f"{repo} was not uploaded: {type(error).__name__}: {error}; is `hf auth login` done?") from error
    return str(address)


def hub() -> Any:
    """Return the client of the Hub.

    Raises:
        ImportError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ImportError("uploading needs huggingface_hub: pip install 'ensdiff[hub]'") from None
    return HfApi()


def main() -> None:
    """Check the run, list what is uploaded, and upload it."""
    import ensdiff

    f, run = flags.FLAGS, runs.run_folder()
    if not f.repo or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", f.repo, re.ASCII):
        raise ValueError(f"--repo={f.repo or ''}: expected the name of a repository, such as --repo=me/digits")
    files_of(run, checkpoints=False, config=False)  # that it is a run
    damaged = ensdiff.check_run(run)
    if damaged:
        raise ValueError(f"{run} is damaged and is not uploaded: {'; '.join(damaged)}")
    if not f.dry_run:
        api = hub()
        write_card(run)
    names = files_of(run, checkpoints=f.checkpoints, config=f.with_config)
    size = sum((run / name).stat().st_size for name in names)
    print("\n".join(names))
    print(f"{len(names)} files, {size / 2**20:.1f} MiB", flush=True)
    if not f.dry_run:
        print(f"uploaded: {upload(run, f.repo, names, public=f.public, api=api)}")


def define_flags() -> None:
    """Define the command line."""
    flags.DEFINE_string("repo", None, "The repository, such as me/digits; it is made if there is none.")
    flags.DEFINE_bool("public", False, "Make a new repository public.")
    flags.DEFINE_bool("checkpoints", False, "Upload all checkpoints instead of the newest.")
    flags.DEFINE_bool("with_config", False, "Also upload config.json, which holds paths of this machine.")
    flags.DEFINE_bool("dry_run", False, "Only list the files.")
    flags.declare_key_flag("run")
    flags.adopt_module_key_flags(common)


if __name__ == "__main__":
    define_flags()
    common.run(main, __doc__)
