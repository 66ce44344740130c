"""Samples and their counterfactuals: `ensdiff.sample` and `ensdiff.counterfactuals`."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ensdiff.codes import Code
from ensdiff.diffusion.samplers import SamplerConfig, StepFunction, stages
from ensdiff.ensemble.ensemble import WEIGHT_SUM, Ensemble, member_weights
from ensdiff.ensemble.memory import Resources
from ensdiff.models.space import PIXELS, Pixels
from ensdiff.sampling.blended import generate
from ensdiff.sampling.captions import check_captions
from ensdiff.sampling.denoise import Exogenous, Noise
from ensdiff.typing import Array, ArrayLike, Key, as_key, unmasked


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["images", "noise", "weights_K", "cond"],
    meta_fields=["config", "fingerprint", "guidance", "captions"],
)
@dataclasses.dataclass(frozen=True)
class Samples:
    """Generated images with everything needed to generate their counterfactuals. ``samples[2:5]`` selects some.

    Args:
        images: (B, H, W, C) float32: pixels in [0, 1], or latents as the training data store them.
        noise: the exogenous noise that the images were generated from.
        weights_K: the member weights that they were generated with.
        config: the sampler.
        fingerprint: `Ensemble.fingerprint` of the ensemble that generated them. Functions that regenerate or
            differentiate the samples refuse any other ensemble. With None (set by `unbound`, or in samples made by
            hand), any ensemble with the same number of members and the same image shape is accepted.
        cond: the condition tree that they were generated with, one row per image; None for unconditional members.
        guidance: the scale of guidance that they were generated with.
        captions: a text for the condition of each image, such as its prompt, for people; None for that of the members.

    >>> len(samples), samples.images.shape
    (2, (2, 8, 8, 1))
    >>> samples[1:].images.shape
    (1, 8, 8, 1)
    """

    images: Float[Array, "B H W C"]
    noise: Noise
    weights_K: Float[Array, " K"]
    config: SamplerConfig
    fingerprint: str | None = None
    cond: Any = None
    guidance: float = 1.0
    captions: tuple[str, ...] | None = None

    @property
    def exogenous(self) -> Exogenous:
        """Everything that the images were generated from, except the weights of the members."""
        return Exogenous(self.noise, self.cond, np.arange(len(self)), self.guidance)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index) -> "Samples":
        index = np.arange(len(self))[index]
        if np.ndim(index) == 0:
            index = index[None]
        cond = jax.tree.map(lambda rows: rows[index], self.cond)
        told = None if self.captions is None else tuple(self.captions[i] for i in index)
        return dataclasses.replace(
            self, images=self.images[index], noise=self.noise.take(index), cond=cond, captions=told
        )

    def unbound(self) -> "Samples":
        """Return the same samples for use with an ensemble other than the one that generated them.

        The other ensemble's counterfactuals start from the same noise, but their distance to these images mixes the
        effect of removing a unit with the difference between the two ensembles.

        >>> samples.unbound().fingerprint is None
        True
        """
        return dataclasses.replace(self, fingerprint=None)

    def __repr__(self) -> str:
        source = "a noise array" if self.noise.key is None else "a key"
        return f"Samples({len(self)} images of {self.images.shape[1:]}, {self.config}, noise from {source})"


def sampler_config(
    params: Ensemble, steps: int | None, sampler: str | StepFunction | SamplerConfig, **options
) -> SamplerConfig:
    """Return the `SamplerConfig` that `sample`'s arguments describe, checked against the ensemble and made concrete.

    Raises:
        ValueError: an option is unknown, options or different steps are given together with a whole `SamplerConfig`, or
            there are more steps than the schedule has levels.
    """
    if isinstance(sampler, SamplerConfig):
        if options:
            raise ValueError(f"sampler is already a SamplerConfig: set {sorted(options)} in it instead")
        if steps is not None and steps != sampler.steps:
            raise ValueError(
                f"steps={steps}, but the sampler is a SamplerConfig of {sampler.steps} steps: omit steps, or give "
                f"dataclasses.replace(sampler, steps={steps})"
            )
        config = sampler
    else:
        names = {field.name for field in dataclasses.fields(SamplerConfig)}
        unknown = sorted(set(options) - names)
        if unknown:
            raise ValueError(f"unknown sampler options {unknown}: expected some of {sorted(names)}")
        steps = SamplerConfig().steps if steps is None else steps
        config = SamplerConfig(sampler=sampler, steps=steps, **options)  # type: ignore[arg-type]
    pixels = isinstance(params.space, Pixels)
    if config.clip and not pixels:
        raise ValueError("clip=True, but the members generate latents, which have no range to clip to: leave clip out")
    if config.clip and params.space != PIXELS:
        raise ValueError(f"clip=True clips to [-1, 1], which is not the range of {params.space}: leave clip out")
    stages(params.schedule, config)
    return config.resolved(params.schedule, clip=params.space == PIXELS)


def sample(
    params: Ensemble,
    key: Key | None = None,
    n: int | None = None,
    *,
    steps: int | None = None,
    sampler: str | StepFunction | SamplerConfig = "ddpm",
    noise: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    cond: Any = None,
    guidance: float | None = None,
    captions: Sequence[str] | None = None,
    chunk: int | None = None,
    progress: bool = False,
    **options,
) -> Samples:
    """Generate images with the ensemble (2), or with its averaged parameters (8) (`Ensemble.combine`).

    Args:
        params: the ensemble.
        key: int seed or JAX key of the noise; the noise itself is not stored.
        n: number of images.
        steps: sampling steps S; by default 50, or those of a `SamplerConfig`.
        sampler: ``"ddpm"`` (ancestral), ``"ddim"``, ``"euler"``, ``"heun"``, ``"dpm++2m"``, your own step function
            (see `SamplerConfig`), or a whole `SamplerConfig`.
        noise: an (S + 1, B, H, W, C) array, x_T first, instead of ``key`` and ``n``.
        weights: (K,) member weights, by default 1/K each. Give numbers that sum to 1 within 1e-5, or a mask of the
            members to keep (booleans, or integers that are all 0 or 1), which then get equal weights.
        cond: the conditions, for conditional members: a condition tree with one row per image or one row for all; for
            classes an id, a name, or one per image. None generates without condition.
        guidance: the scale of classifier-free guidance (s4), by default 1: the condition alone, one prediction per
            step. 0 is no condition, and all other numbers need two predictions per step.
        captions: a text for the condition of each image, such as its prompt, or one for all; reports show them.
        chunk: number of images generated at a time; by default as many as fit in memory.
        progress: show a progress bar.
        **options: other fields of `SamplerConfig`, such as ``eta`` or ``clip``.

    Returns:
        `Samples`; ``.images`` is (n, H, W, C), float32: pixels in [0, 1], or latents as the training data store them.

    Raises:
        ValueError: both or neither of key and noise are given, shapes do not fit, weights do not sum to 1, an option is
            unknown, ``steps`` contradicts a `SamplerConfig`, or the conditions are not those of the members.

    >>> ensdiff.sample(params, 0, 4, steps=3, sampler="ddim").images.shape
    (4, 8, 8, 1)
    >>> noise = np.zeros((4, 2, 8, 8, 1), np.float32)  # x_T, and the noise of each of 3 steps
    >>> ensdiff.sample(params, noise=noise, steps=3)
    Samples(2 images of (8, 8, 1), ..., noise from a noise array)
    >>> without_3 = ensdiff.sample(params, 0, 4, steps=3, weights=code.rows(3)[0] == 0)  # members without unit 3
    >>> images = ensdiff.counterfactuals(params, ensdiff.sample(params, 0, 4, steps=3), [3])
    >>> bool((without_3.images == images[0]).all())
    True
    """
    config = sampler_config(params, steps, sampler, **options)
    given = _make_noise(params, config, key, n, noise)
    K = params.members
    if weights is not None and np.ndim(weights) != 1:
        raise ValueError(f"weights has shape {np.shape(weights)}: expected {K} finite numbers, one row for all samples")
    weights_K = np.full((K,), 1.0 / K) if weights is None else member_weights(weights, K)
    weights_K = weights_K.astype(np.float32)
    count = len(given.index_B)
    told = None if captions is None else check_captions(captions, count)
    rows = np.broadcast_to(weights_K, (count, K))
    conditions, scale = params.conditions(cond, count), _scale_of(params, cond, guidance)
    if params.condition is not None and scale == 0:
        conditions = params.condition.null(count)  # which the images are generated with
    start = Exogenous(given, conditions, np.arange(count), scale)
    parts = generate(params, config, start, rows, Resources(chunk, progress=progress), what="sample")
    images = np.concatenate([np.asarray(part) for _, part in parts])
    bound = (params.fingerprint, conditions, scale, told)
    return Samples(jnp.asarray(images), given, jnp.asarray(weights_K), config, *bound)


def _scale_of(params: Ensemble, cond: Any, guidance: float | None) -> float:
    """Return the scale of guidance, checked."""
    if guidance is None:
        return 1.0
    if not isinstance(guidance, numbers.Real) or isinstance(guidance, bool) or not math.isfinite(guidance):
        raise ValueError(f"guidance={guidance!r}: expected a finite number; 1 is the condition alone")
    if params.condition is None:
        raise ValueError(f"guidance={guidance}, but the members are unconditional: leave guidance out")
    if cond is None:
        raise ValueError(f"guidance={guidance}, but no condition is given: give cond=, or leave guidance out")
    return float(guidance)


def _make_noise(
    params: Ensemble, config: SamplerConfig, key: Key | None, n: int | None, noise: ArrayLike | None
) -> Noise:
    if (key is None) == (noise is None):
        raise ValueError("give either key and n, or noise (an array of shape (steps + 1, B, H, W, C))")
    if noise is None:
        if not isinstance(n, numbers.Integral) or isinstance(n, bool) or n < 1:
            raise ValueError(f"n={n}: expected the number of images to generate, an integer of at least 1")
        return Noise(jnp.arange(int(n), dtype=jnp.int32), key=as_key(key))
    array = jnp.asarray(unmasked(noise, "noise"), jnp.float32)
    expected = (config.steps + 1, array.shape[1] if array.ndim == 5 else "B", *params.image_shape)
    if array.shape != expected:
        raise ValueError(f"noise has shape {array.shape}: expected {expected}, x_T first, channels last")
    if n is not None and n != array.shape[1]:
        raise ValueError(f"n={n}, but noise has {array.shape[1]} images; leave n out")
    if not jnp.isfinite(array).all():
        raise ValueError("noise holds NaN or infinity: expected independent standard normal numbers")
    return Noise(jnp.arange(array.shape[1], dtype=jnp.int32), array=array)


def check_samples(params: Ensemble, samples: Samples | ArrayLike, what: str, *, factual: bool = True) -> None:
    """Check that these are `Samples` that this ensemble generated.

    Args:
        params: the ensemble.
        samples: the argument to check.
        what: name of what needs the samples, for error messages.
        factual: whether they must have been generated with the weights 1/K, from which (3) ablates.

    Raises:
        ValueError: these are images without their noise, another ensemble generated them, or their weights are not 1/K.
    """
    if not isinstance(samples, Samples):
        raise ValueError(
            f"{what} needs the noise of the samples: give what ensdiff.sample returned, not {type(samples).__name__}. "
            "Images that were not generated here have no known noise; attribute(..., method='loss') scores any image"
        )
    if tuple(samples.images.shape[1:]) != tuple(params.image_shape):
        raise ValueError(
            f"the samples are images of shape {tuple(samples.images.shape[1:])}, but the ensemble generates "
            f"{params.image_shape}: give samples of this ensemble"
        )
    K = params.members
    weights_K = np.asarray(samples.weights_K)
    if weights_K.shape != (K,):
        raise ValueError(
            f"the samples were made by an ensemble of {len(weights_K)} members, this one has {K}: give the ensemble "
            "that made them, or sample from this one"
        )
    if (samples.cond is None) != (params.condition is None):
        have, has = (
            "no conditions" if missing is None else "conditions" for missing in (samples.cond, params.condition)
        )
        raise ValueError(f"the samples have {have} and the ensemble has {has}: give samples of this ensemble")
    params.conditions(samples.cond, len(samples))
    if samples.fingerprint is not None and samples.fingerprint != params.fingerprint:
        raise ValueError(
            f"the samples were made by another ensemble, with fingerprint {samples.fingerprint[:12]}; this one has "
            f"{params.fingerprint[:12]}. Give the ensemble that made them (ensdiff.load of the same run with the same "
            "step, members and average), sample from this one, or give samples.unbound() if this is intended"
        )
    if factual and not np.allclose(weights_K * K, 1.0, rtol=0, atol=WEIGHT_SUM):
        raise ValueError(
            f"the samples were made with other weights than 1/{K} each, but {what} removes units from the whole "
            "ensemble: load only the members with weight (ensdiff.load(..., members=...)) and sample from these, or "
            "sample without weights"
        )


def counterfactuals(
    params: Ensemble,
    samples: Samples,
    units: Sequence,
    *,
    code: Code | None = None,
    chunk: int | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "M B H W C"]:
    """Generate each sample as it would have been had a unit (or a set of units) never existed (3), (4).

    Args:
        params: the ensemble.
        samples: the result of `sample`.
        units: M entries, each a unit id or name, or a collection of them that are removed together.
        code: another code over the same members that defines the units, such as ``code.group_code()`` of a hierarchical
            code.
        chunk: number of images generated at a time; by default as many as the memory budget allows.
        memory_budget: bytes of activations that a device may hold.
        progress: show a progress bar.

    Returns:
        (M, B, H, W, C) float32 on the host, pixels in [0, 1] or latents.

    Raises:
        NoSurvivorError: every member has seen some unit of a set.
        ValueError: a unit is unknown, the code is for a different number of members, or the samples were generated by
            another ensemble or with weights.

    >>> without = ensdiff.counterfactuals(params, samples, [3, {4, 7}])
    >>> without.shape  # without unit 3; without 4 and 7 together
    (2, 2, 8, 8, 1)
    """
    check_samples(params, samples, "a counterfactual")
    weights_MK = params.candidate_code(code).ablate(params.ids_of(units, code))
    M, B = len(weights_MK), len(samples)
    images = ablated(
        params,
        samples,
        np.repeat(weights_MK, B, axis=0),
        np.tile(np.arange(B), M),
        Resources(chunk, memory_budget, progress),
    )
    return images.reshape(M, B, *params.image_shape)


def ablated(
    params: Ensemble,
    samples: Samples,
    weights_RK: Float[np.ndarray, "R K"],
    sample_R: Int[np.ndarray, " R"],
    resources: Resources,
) -> Float[np.ndarray, "R H W C"]:
    """Regenerate sample ``sample_R[r]`` from its own noise under the weights ``weights_RK[r]``, for every r.

    Returns pixels in [0, 1], or latents.
    """
    check_samples(params, samples, "a counterfactual", factual=False)
    out = np.empty((len(weights_RK), *params.image_shape), np.float32)
    start = samples.exogenous.take(sample_R)
    for rows, images in generate(params, samples.config, start, weights_RK, resources, what="counterfactuals"):
        out[rows] = images
    return out
