"""Are the numbers right on this device: against a reference implementation, between equal runs, and across members."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import ensdiff
from ensdiff.files.npy import read_npz
from ensdiff.interop import channels_last, genens
from ensdiff.interop.tensors import stack

from .journal import Row

REFERENCE = pathlib.Path(__file__).parents[2] / "tests" / "data" / "genens_member1.npz"
"""A member of GenEns, with predictions and a sample that GenEns computed from it (float32, CPU)."""

PRECISIONS: dict[str, tuple[str, str, float, float]] = {
    "float32, highest precision": ("float32", "highest", 1e-4, 1e-2),
    "float32, default precision": ("float32", "default", 2e-2, 0.3),
    "bfloat16": ("bfloat16", "default", 0.1, 1.0),
}
"""Compute dtype, precision of products of float32, and the largest allowed differences of a prediction and of a sample
after 1,000 steps, in standard deviations of the reference. On NVIDIA GPUs the default precision of float32 is TF32."""


def parity(left: Callable[[], float], precisions: Sequence[str] = tuple(PRECISIONS)) -> Iterable[Row]:
    """Yield the differences from the reference numbers, in each of some `PRECISIONS`."""
    content = read_npz(REFERENCE)
    state = {name.removeprefix("state/"): value for name, value in content.items() if name.startswith("state/")}
    config = genens.infer_config(state, REFERENCE.name)
    reference = stack([state], [REFERENCE.name], config, genens._style(config), (8, 8, 1), None)
    for name in precisions:
        dtype, precision, *allowed = PRECISIONS[name]
        if left() <= 0:
            return
        options: Any = {"compute_dtype": dtype, "precision": precision}
        params = dataclasses.replace(reference, model=dataclasses.replace(reference.model, **options))
        begin = time.perf_counter()
        got = {
            "eps": ensdiff.predict(params, channels_last(content["x"]), content["t"])[0],
            "sample": ensdiff.sample(params, noise=channels_last(content["noise"]), sampler=genens.SAMPLER).images,
        }
        found: Row = {}
        good = True
        for what, limit in zip(got, allowed, strict=True):
            want = channels_last(content[what])
            error = float(np.abs(np.asarray(got[what]) - want).max() / want.std())
            good &= error <= limit
            found |= {f"{what} difference": error, f"{what} allowed": limit}
        seconds = time.perf_counter() - begin
        yield {"precision": name, **found, "holds": good, "seconds": seconds}
        if precision == "highest" or not good:
            yield {
                "finding": f"Numbers of the reference implementation, {name}: "
                + ("reproduced" if good else "**not reproduced**")
                + f" (predictions differ by {found['eps difference']:.0e}, samples by {found['sample difference']:.0e} "
                "of the standard deviation)."
            }


def isolation(
    left: Callable[[], float], ways: Sequence[Mapping[str, Any]], model: ensdiff.UNetConfig, side: int, batch: int
) -> Iterable[Row]:
    """Yield for each way of computing members whether a changed unit changes the bits only of members that saw it.

    Each way trains for four steps: twice on the same data, and once with all pixels of one unit changed.

    Args:
        left: the seconds that remain.
        ways: fields of the model, for each way.
        model: the network.
        side: height and width of the images.
        batch: images per member.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, side, side, model.image_channels), np.uint8)
    changed = images.copy()
    changed[3] = 255 - changed[3]
    code = ensdiff.Code.balanced(members=6, units=len(images))
    saw_K = code.rows([3])[0].astype(bool)
    for way in ways:
        if left() <= 0:
            return
        begin = time.perf_counter()
        label = ", ".join(f"{name}={value}" for name, value in way.items())
        try:
            own = dataclasses.replace(model, **way)
            first, again, other = (_train(own, code, data, batch) for data in (images, images, changed))
        except Exception as error:  # a way that this device cannot compute is a result
            yield {"way": label, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
            continue
        same_K, isolated_K = _equal(first, again), _equal(first, other)
        twice, isolated = bool(same_K.all()), bool((isolated_K == ~saw_K).all())
        yield {
            "way": label,
            "equal runs are equal": twice,
            "isolated": isolated,
            "members changed": f"{int((~isolated_K).sum())} of {len(saw_K)}, {int(saw_K.sum())} saw the unit",
            "seconds": time.perf_counter() - begin,
        }
        if not (twice and isolated):
            yield {"finding": f"**{label}: {'equal runs differ' if not twice else 'members are not isolated'}.**"}


def _train(model: ensdiff.UNetConfig, code: ensdiff.Code, images: np.ndarray, batch: int) -> list[np.ndarray]:
    trained = ensdiff.train(
        ensdiff.data.arrays(images), code, model, steps=4, batch_size=batch, warmup=0, learning_rate=1e-3,
        progress=False,
    )  # fmt: skip
    return [np.asarray(leaf) for leaf in jax.tree.leaves(trained.params)]


def _equal(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    """Return for each member whether all bits of its parameters are equal."""
    return np.all([[np.array_equal(x[k], y[k]) for k in range(len(x))] for x, y in zip(a, b, strict=True)], axis=0)
