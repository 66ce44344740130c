"""How training steps are executed: the choices that change no draw and no formula, but the rounding of the results.

A run records the execution of each of its segments in ``environment.jsonl``, next to the devices and versions. So a
resumed run repeats the choices of the run that it continues, and a certificate's replay repeats those of the training.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ensdiff.models.attention import AttentionOrder, resolve_attention
from ensdiff.models.conv import Strategy, one_by_one, resolve
from ensdiff.models.denoiser import Denoiser, name_of
from ensdiff.models.unet import UNetConfig
from ensdiff.settings import check_fields


@dataclasses.dataclass(frozen=True)
class Execution:
    """The choices with which training steps are executed. Equal executions in equal environments give equal bits.

    Args:
        conv: how members are computed, a concrete strategy of `ensdiff.models.conv`; None for networks other than the
            U-Net.
        stack: largest number of members of one device that are computed together: 1 is one by one, and 0 stands for all
            of them.
        attention: the order of attention, a concrete order of `ensdiff.models.attention`; None as for ``conv``.
        pipeline: where batches are made. With ``"host"``, the host makes and places the batch of each step. With
            ``"device"``, the data set is in the devices' memory.

    Raises:
        ValueError: a field has the wrong type or is not concrete, or the form cannot be stacked.

    >>> Execution.of(UNetConfig(conv="matmul", attention="batch"))
    Execution(conv='matmul', stack=0, attention='batch', pipeline='host')
    """

    conv: Strategy | None
    stack: int
    attention: AttentionOrder | None
    pipeline: Literal["host", "device"] = "host"

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("conv", "attention"):
            value = getattr(self, name)
            if value in ("auto", "measure"):
                raise ValueError(f"{name}={value!r}: expected a concrete choice; Execution.of resolves it")
        if self.stack < 0:
            raise ValueError(f"stack={self.stack}: expected a number of members, or 0 for all members of a device")
        if self.conv is not None and self.stack != 1 and one_by_one(self.conv):
            raise ValueError(f"stack={self.stack}: conv={self.conv!r} computes members one by one, so expected 1")

    @classmethod
    def of(cls, model: Denoiser, pipeline: Literal["host", "device"] = "host") -> "Execution":
        """Return the execution that a model's settings select, with ``"auto"`` resolved for the default backend."""
        if not isinstance(model, UNetConfig):
            return cls(None, model.stack, None, pipeline)
        stack = 1 if one_by_one(model.conv) else model.stack
        return cls(resolve(model.conv), stack, resolve_attention(model.attention), pipeline)

    @classmethod
    def from_record(cls, line: Mapping[str, Any], model: Denoiser) -> "Execution":
        """Return the execution that a line of ``environment.jsonl`` records.

        Older versions recorded no execution; their lines mean the model's settings and the host pipeline.

        Raises:
            ValueError: the record is not one that this version can repeat.
        """
        if "execution" not in line:
            return cls.of(model)
        try:
            return cls(**line["execution"])
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"environment.jsonl, step {line.get('step')}: the execution {line['execution']!r} cannot be repeated "
                f"({error}); a newer ensdiff may have written it"
            ) from error

    def record(self) -> dict[str, Any]:
        """Return the fields as JSON-able values, for `from_record`."""
        return dataclasses.asdict(self)

    def apply_to(self, model: Denoiser) -> Denoiser:
        """Return the model with these choices in place of its own.

        Raises:
            ValueError: the execution is that of another kind of network.
        """
        if isinstance(model, UNetConfig):
            if self.conv is None or self.attention is None:
                raise ValueError(f"{self} is not that of a U-Net")
            return dataclasses.replace(model, conv=self.conv, stack=self.stack, attention=self.attention)
        if model.stack == self.stack:
            return model
        if not dataclasses.is_dataclass(model):
            raise ValueError(
                f"stack={self.stack} was recorded, but {name_of(model)} has {model.stack}: give it this stack"
            )
        return dataclasses.replace(model, stack=self.stack)


def repeatable(
    lines: Iterable[Mapping[str, Any] | None],
    today: Mapping[str, Any],
    model: Denoiser,
    pipeline: Literal["auto", "host", "device"] = "auto",
) -> Execution | None:
    """Return the execution with which a resumed run continues, or None if it has to be chosen.

    It is that of the newest line with today's environment, with what the settings ask for in its place. A choice that
    the settings leave open is never made again, so that a change of one setting changes no other.

    Args:
        lines: what `ensdiff.runs.logs.read_environments` returns.
        today: the value of `ensdiff.runs.environment.environment`.
        model: the model; a concrete setting asks for itself, and ``conv`` for its size of groups too. If only the size
            of groups is given, and it is another one, there is a choice to make.
        pipeline: the setting of `ensdiff.TrainConfig`; it asks for itself unless it is ``"auto"``.

    Raises:
        ValueError: the record of that line is not one that this version can repeat.
    """
    today = json.loads(json.dumps(today))
    for line in reversed([line for line in lines if line is not None]):
        if {name: value for name, value in line.items() if name not in ("step", "execution")} == today:
            found = Execution.from_record(line, model)
            asked: dict[str, Any] = {}
            if not isinstance(model, UNetConfig):
                asked = {"stack": model.stack}
            elif model.conv not in ("auto", "measure"):
                asked = {"conv": model.conv, "stack": Execution.of(model).stack}
            elif model.stack not in (0, found.stack):
                return None
            if isinstance(model, UNetConfig) and model.attention != "auto":
                asked["attention"] = model.attention
            if pipeline != "auto":
                asked["pipeline"] = pipeline
            return dataclasses.replace(found, **asked)
    return None
