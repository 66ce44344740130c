"""The losses during training: checked, logged and shown."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ensdiff import hosts
from ensdiff.runs.directory import RunDirectory
from ensdiff.terminal import Estimate, say
from ensdiff.training.config import TrainConfig
from ensdiff.training.step import StepMetrics
from ensdiff.training.stepper import CallLength


class DivergedError(RuntimeError):
    """Training stopped because a member's loss or gradient was not finite.

    >>> ensdiff.train(data, code, params.model, steps=9, batch_size=2, learning_rate=1e30, progress=False)
    Traceback (most recent call last):
    ensdiff.training.watch.DivergedError: member ... diverged at step ...
    """


class Watch:
    """Checks, logs and shows losses. It reads them one call late, so that the devices never wait for the host.

    Args:
        run: where metrics are written.
        config: the training settings.
        start: number of steps done before.
        progress: whether a progress bar is shown.
        unlogged: what `unlogged` returned when the run was interrupted.
        length: is told how long each call took.
        on_metrics: as in `ensdiff.train`.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: TrainConfig,
        start: int,
        progress: bool,
        unlogged: dict[str, Any] | None,
        length: CallLength,
        on_metrics: Callable[[int, dict[str, np.ndarray]], None] | None = None,
    ):
        self.run, self.config, self.length = run, config, length
        self.on_metrics = on_metrics if hosts.is_writer() else None
        self.waiting: tuple[int, int, StepMetrics, float] | None = None
        before = unlogged or {"steps": 0, "loss_K": 0.0}
        self.steps, self.loss_K = before["steps"], np.asarray(before["loss_K"], np.float64)
        first = "compiling the training step (once per configuration)"
        self.bar = hosts.progress_bar(config.steps, "train", "step", shown=progress, done=start, first=first)
        self.estimate = Estimate(config.steps, "step") if progress and hosts.is_writer() else None

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def after(self, first: int, count: int, metrics: StepMetrics, started: float) -> None:
        """Note a call of `ensdiff.training.stepper.Stepper`, and read the metrics of the one before.

        Args:
            first: the first step.
            count: number of steps.
            metrics: of the steps.
            started: when the call was made, by `time.monotonic`.
        """
        self.settle()
        self.waiting = first, count, metrics, started

    def settle(self) -> None:
        """Wait for the last call's metrics, check and log them."""
        if self.waiting is None:
            return
        (first, count, metrics, started), self.waiting = self.waiting, None
        losses, norms = (np.atleast_2d(np.asarray(part))[:count] for part in metrics)
        self.length.measured(count, started, time.monotonic())
        for step, (loss_K, norm_K) in enumerate(zip(losses, norms, strict=True), first):
            self.check(step, loss_K, norm_K)
        text = None if self.estimate is None else self.estimate.after(first + count)
        if text is not None:
            say(f"train: {text}; checkpoints and grids of samples not counted")

    def unlogged(self) -> dict[str, Any] | None:
        """Return the number of steps since the last logged one and the sums of their losses; None if there are none."""
        return {"steps": self.steps, "loss_K": self.loss_K.tolist()} if self.steps else None

    def check(self, step: int, loss_K: np.ndarray, norm_K: np.ndarray) -> None:
        """Take one step's metrics into account.

        Raises:
            DivergedError: some are not finite.
        """
        bad = np.flatnonzero(~(np.isfinite(loss_K) & np.isfinite(norm_K)))
        if len(bad):
            self.run.wait()
            kept = f"the newest good checkpoint is step {self.run.latest}" if self.run.latest else "no checkpoint yet"
            raise DivergedError(
                f"member {bad[0]} diverged at step {step}: loss {loss_K[bad[0]]}, gradient norm {norm_K[bad[0]]} "
                f"({len(bad)} of {len(loss_K)} members; {kept}). Lower learning_rate, raise warmup or lower clip"
            )
        self.steps, self.loss_K = self.steps + 1, self.loss_K + loss_K
        self.bar.update(1)
        if (step + 1) % self.config.log_every == 0 or step + 1 == self.config.steps:
            mean_K = self.loss_K / self.steps
            self.steps, self.loss_K = 0, np.zeros(())
            self.bar.set_postfix(loss=f"{mean_K.mean():.4f}", refresh=False)
            self.run.write_metrics(step + 1, loss_K=mean_K, grad_norm_K=norm_K)
            if self.on_metrics is not None:
                self.on_metrics(step + 1, {"loss_K": mean_K, "grad_norm_K": norm_K})
