"""Helpers of the fault tests: they damage files, and train runs that are small enough to copy often."""

import json
import shutil
import warnings

import jax
import numpy as np

import ensdiff
from ensdiff.files import checksums
from ensdiff.runs.directory import RunDirectory
from ensdiff.training.loop import TrainConfig, init_state
from tests.helpers import CODE, SHORT, blobs

MODEL = ensdiff.UNetConfig(channels=4, norm_groups=2, multipliers=(1,), middle_attention=False)
CONFIG = TrainConfig(
    steps=4, batch_size=4, learning_rate=1e-2, warmup=1, ema=0.9, log_every=3, checkpoint_every=2, keep=3
)


def train(run_dir=None, *, config=CONFIG, **options):
    """Train a small run; ``options`` replace its settings, such as its length."""
    data = ensdiff.data.arrays(blobs())
    return ensdiff.train(data, CODE, MODEL, config, schedule=SHORT, run_dir=run_dir, progress=False, **options)


def new_state(mesh=None):
    return init_state(MODEL, (8, 8, 1), 4, CONFIG, ensdiff.make_mesh(4) if mesh is None else mesh)


def restore(folder, state):
    """Return the step, the state and the warnings of resuming in a folder."""
    with warnings.catch_warnings(record=True) as caught, RunDirectory.open(folder, keep=3, resume=True) as run:
        warnings.simplefilter("always")
        step, found, _ = run.restore(state)
    return step, found, [str(w.message) for w in caught if issubclass(w.category, ensdiff.DamageWarning)]


def same(a, b):
    """Return whether all arrays of two trees are equal bit for bit."""
    equal = jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
    return all(jax.tree.leaves(equal))


def copied(folder, place):
    shutil.rmtree(place, ignore_errors=True)
    return shutil.copytree(folder, place)


def cut(path, size=None):
    """Truncate a file, by default to half of its size."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 if size is None else size])


def flip(path, position, bit=0):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def flips(path, count, seed=0):
    """Return ``count`` random positions and bits for `flip`, or one per byte of a smaller file."""
    size = path.stat().st_size
    rng = np.random.default_rng(seed)
    places = np.arange(size) if size <= count else np.sort(rng.choice(size, count, replace=False))
    return [(int(place), int(rng.integers(8))) for place in places]


def reseal(checkpoint, change):
    """Change the description of a checkpoint, and give it a valid checksum."""
    path = checkpoint / "_CHECKPOINT_METADATA"
    values = json.loads(path.read_text())
    text = dict(values["custom_metadata"])
    text.pop(checksums.SEAL)
    change(text)
    values["custom_metadata"] = checksums.seal(text)
    path.write_text(json.dumps(values))
