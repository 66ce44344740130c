"""The settings of training, and which of them determine the trained parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ensdiff.diffusion.weights import Weighting
from ensdiff.settings import check_fields


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of training.

    Args:
        steps: number of optimiser steps.
        batch_size: images per member and step.
        learning_rate: peak learning rate of Adam.
        warmup: steps of linear warm-up from 0.
        decay: ``"constant"`` or ``"cosine"`` (to 0 at the last step).
        clip: largest norm of one member's gradient; 0 disables clipping.
        ema: decay of the exponential moving average of the parameters, which the ensemble then uses; 0 disables it.
        flip: mirror images left to right at random.
        weighting: the factor of the loss at each noise level (`ensdiff.diffusion.weights.loss_weights`).
            ``"simple"``: 1, on what the members predict. ``"min_snr"``: at most 5 times the signal-to-noise ratio on
            errors of the clean image (arXiv 2303.09556). ``"edm"``: that of Karras et al. 2022 (arXiv 2206.00364).
        condition_dropout: the probability with which an image is trained on without its condition, so that members
            can be guided; it has no effect on unconditional members.
        seed: seed of the initial parameters, the batches, the noise and dropout, a signed integer of 64 bits.
        log_every: steps between lines of metrics.
        checkpoint_every: steps between checkpoints; the last step is always kept.
        sample_every: steps between grids of samples; 0 writes none.
        keep: number of newest checkpoints to keep.
        keep_every: also keep checkpoints at multiples of this number of steps; 0 keeps none.
        pipeline: where batches are made. ``"host"``: a thread of the host makes and places them, one step per call.
            ``"device"``: the data are in the devices' memory, and one call makes many steps. ``"auto"`` is
            ``"device"`` on accelerators if the data take at most a quarter of a device's memory
            (`ensdiff.training.device.fits`), and ``"host"`` otherwise and on CPUs.
        steps_per_call: with ``"device"``, the number of steps per call, at most 1024; 0 chooses it from the measured
            time per step, so that a call takes about half a second. Losses are checked once per call.

    >>> config = ensdiff.TrainConfig(steps=200, learning_rate=1e-3, decay="cosine")
    >>> config.steps, config.decay
    (200, 'cosine')
    """

    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 2e-4
    warmup: int = 100
    decay: Literal["constant", "cosine"] = "constant"
    clip: float = 1.0
    ema: float = 0.0
    flip: bool = False
    weighting: Weighting = "simple"
    condition_dropout: float = 0.1
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    sample_every: int = 0
    keep: int = 3
    keep_every: int = 0
    pipeline: Literal["auto", "host", "device"] = "auto"
    steps_per_call: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("warmup", "sample_every", "clip", "keep_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 (none) or more")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: expected a signed integer of 64 bits")
        if self.steps_per_call < 0:
            raise ValueError(f"steps_per_call={self.steps_per_call}: expected 0 (measured) or more")
        if self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"keep_every={self.keep_every}: expected a multiple of checkpoint_every={self.checkpoint_every}, "
                "or 0 for none"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate}: expected a positive number")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: expected a decay in [0, 1); 0 disables the average")
        if not 0 <= self.condition_dropout <= 1:
            raise ValueError(f"condition_dropout={self.condition_dropout}: expected a probability in [0, 1]")

    def unreached(self) -> list[str]:
        """Return one sentence for each setting that has no full effect within ``steps``; `ensdiff.train` warns of them.

        >>> TrainConfig(steps=50).unreached()
        ['warmup=100 is more than steps=50: the learning rate ends at 0.0001 and never reaches 0.0002; ...']
        """
        found = []
        if self.warmup > self.steps:
            last = self.learning_rate * self.steps / self.warmup
            found.append(
                f"warmup={self.warmup} is more than steps={self.steps}: the learning rate ends at {last:g} and never "
                f"reaches {self.learning_rate:g}; give a warmup of at most {self.steps}"
            )
        if self.sample_every > self.steps:
            found.append(
                f"sample_every={self.sample_every} is more than steps={self.steps}: no grid of samples is written; "
                f"give at most {self.steps}, or 0 for none"
            )
        return found

    def steps_to_stop(self, done: int) -> int:
        """Return the number of steps up to the next checkpoint, grid of samples or the end, where calls must end.

        >>> TrainConfig(steps=50, checkpoint_every=20).steps_to_stop(16)
        4
        """
        stops = [self.steps - done, self.checkpoint_every - done % self.checkpoint_every]
        if self.sample_every:
            stops.append(self.sample_every - done % self.sample_every)
        return min(stops)


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """The part of a `TrainConfig` that a compiled training step depends on; configs that agree in it share one program.

    Args:
        learning_rate: as in `TrainConfig`.
        warmup: as in `TrainConfig`.
        clip: as in `TrainConfig`.
        ema: as in `TrainConfig`.
        flip: as in `TrainConfig`.
        weighting: as in `TrainConfig`.
        condition_dropout: as in `TrainConfig`.
        decay_steps: the step at which cosine decay reaches 0; None for a constant rate.

    >>> one, other = TrainConfig(steps=200, seed=1), TrainConfig(steps=400, seed=2, log_every=5)
    >>> StepSettings.of(one) == StepSettings.of(other)
    True
    """

    learning_rate: float
    warmup: int
    clip: float
    ema: float
    flip: bool
    weighting: Weighting
    condition_dropout: float
    decay_steps: int | None

    @classmethod
    def of(cls, config: TrainConfig) -> "StepSettings":
        """Return the step settings of a config."""
        decay_steps = max(config.steps, config.warmup + 1) if config.decay == "cosine" else None
        shared = {
            field.name: getattr(config, field.name) for field in dataclasses.fields(cls) if field.name != "decay_steps"
        }
        return cls(**shared, decay_steps=decay_steps)


def decisive(train: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `TrainConfig` that determine the parameters at a step. The rest may change on resuming.

    >>> sorted(decisive({"seed": 0, "keep": 3, "steps": 40, "decay": "constant"}))
    ['decay', 'seed']
    """
    free = {"log_every", "checkpoint_every", "sample_every", "keep", "keep_every", "pipeline", "steps_per_call"}
    if train.get("decay") == "constant":
        free.add("steps")  # with cosine decay the number of steps shapes the learning rate
    return {name: value for name, value in train.items() if name not in free}


EXECUTED = ("conv", "stack", "attention")
"""Fields of `UNetConfig` that change what is trained by rounding only. A run records their concrete values in its
executions (`ensdiff.training.execution`), and they may change on resuming. Of other networks, only ``stack`` may."""


def seed_of(config: TrainConfig) -> np.uint32:
    """Return the seed as an argument of the compiled steps, so that one program serves all seeds."""
    return np.uint32(config.seed % 2**32)  # a JAX key uses these 32 bits
