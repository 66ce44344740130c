"""Train an encoded ensemble.

Examples:
  python -m experiments.train --config=experiments/configs/digits.py
  python -m experiments.train --config=experiments/configs/digits.py --config.train.steps=20 --config.run_dir=runs/try
  python -m experiments.train --config=experiments/configs/digits.py --config.resume=True

SIGTERM and Ctrl-C write a checkpoint and end with exit code 75: start again with --config.resume=True.
"""

from absl import flags
from ml_collections import config_flags

from experiments import common

flags.adopt_module_key_flags(common)

CONFIG = config_flags.DEFINE_config_file("config", None, "The config, a Python file with get_config().")


def main() -> None:
    """Train as the config says and print where everything is."""
    config = CONFIG.value
    if config is None:
        raise ValueError("no config given; try --config=experiments/configs/digits.py")
    params = common.train_from_config(config)
    print(f"{params}\ntrained: {config.run_dir} (load it with ensdiff.load({str(config.run_dir)!r}))")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    common.run(main, __doc__, preemptible=True)
