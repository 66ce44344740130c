"""Execute notebooks as they are stored, and print how long each takes, as rows for docs/performance.md.

Run it from the root of the repository on a machine that does nothing else, with the extra ``test``:

    python docs/examples/notebook_times.py                          # all of them
    python docs/examples/notebook_times.py quickstart --out=build/notebooks   # and keep the outputs

Each notebook runs in a new process and an empty folder, with two CPU devices and without a compilation cache.
"""

import argparse
import os
import pathlib
import resource
import tempfile
import time

import nbformat
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def main() -> None:
    """Execute the notebooks that are asked for."""
    known = sorted(path.stem for path in (ROOT / "colabs").glob("*.ipynb"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=known, help=f"Of {known}; by default all.")
    parser.add_argument("--out", type=pathlib.Path, help="A folder for the notebooks with their outputs.")
    asked = parser.parse_args()
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    os.environ["JAX_NUM_CPU_DEVICES"] = "2"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    print("| notebook | minutes on 2 cores | core-seconds |\n|---|---|---|")
    for name in asked.names:
        notebook = nbformat.read(ROOT / "colabs" / f"{name}.ipynb", as_version=4)
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            place = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=place).execute()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"| `{name}` | {(time.monotonic() - begin) / 60:.1f} | {used:.0f} |", flush=True)
        if asked.out:
            asked.out.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, asked.out / f"{name}.ipynb")


if __name__ == "__main__":
    main()
