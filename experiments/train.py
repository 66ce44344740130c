"""Train an encoded ensemble: all members at once, each on the units that the code assigns to it.

Checkpoints, metrics and the config go to the run directory, config.run_dir, which the other programs take as --run.

Examples:
  python -m experiments.train --config=digits
  python -m experiments.train --config=digits --config.train.steps=20 --config.run_dir=runs/try
  python -m experiments.train --config=digits --config.resume=True
  python -m experiments.train --config=folder --config.data.path=my_images --config.run_dir=runs/mine
  python -m experiments.train --config=my_config.py   # a config of your own, such as a copy of a packaged one

SIGTERM and Ctrl-C write a checkpoint and end with exit code 75; --config.resume=True continues from there.
"""

from absl import flags

from . import building, common
from .config import define_config

flags.adopt_module_key_flags(common)

CONFIG = define_config()
flags.declare_key_flag("config")


def main() -> None:
    """Train according to the config, and print where the run is."""
    config = CONFIG.value
    if config is None:
        raise ValueError("no config given; try --config=digits")
    params = building.train_from_config(config)
    print(f"{params}\ntrained: {config.run_dir} (load it with ensdiff.load({str(config.run_dir)!r}))")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    common.run(main, __doc__, preemptible=True)
