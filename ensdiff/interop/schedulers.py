"""Conversion between the configurations of diffusers' schedulers and `Schedule`.

A scheduler's configuration holds what the members were trained with, and how its class would sample. Only the former is
read. Schedulers in terms of sigma (Euler, Heun, DPM-Solver) divide their states before they call the network, which
therefore sees the same variance preserving process as with `DDPMScheduler`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from ensdiff.diffusion.schedule import Schedule
from ensdiff.files.reading import read_object
from ensdiff.interop.options import EDM, FLOW, SCHEDULER, check_options

KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
"""The kind of schedule of each ``beta_schedule``."""
PREDICTIONS = {"epsilon": "noise", "v_prediction": "v", "sample": "clean"}
"""The prediction of each ``prediction_type`` of a variance preserving scheduler."""
OWN_BETAS = {"HeunDiscreteScheduler": {"beta_start": 0.00085, "beta_end": 0.012}}
"""Defaults of classes that differ from those of `DDPMScheduler`."""


def read_schedule(path: pathlib.Path) -> Schedule:
    """Return the noise levels of a ``scheduler_config.json``.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file holds a field or value that ensdiff does not support.
    """
    return schedule_of(read_object(path), str(path))


def schedule_of(values: Mapping[str, Any], source: str = "the scheduler's config") -> Schedule:
    """Return the schedule of a scheduler's configuration.

    Raises:
        ValueError: a field or value is not supported. The message names it and the source.

    >>> schedule_of({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}).shift
    3.0
    """
    name = values.get("_class_name", "DDPMScheduler")
    tables = {kind: table for table in (SCHEDULER, FLOW, EDM) for kind in table["_class_name"].allowed}
    if not isinstance(name, str) or name not in tables:
        known = " or ".join(map(repr, tables))
        raise ValueError(f"{source}: _class_name={name!r} is not supported: expected {known}")
    check_options(values, tables[name], source)
    try:
        if tables[name] is FLOW:
            return _flow(values, values.get("shift", 1.0))
        if tables[name] is EDM:
            shared = ("sigma_min", "sigma_max", "sigma_data", "rho")
            return Schedule(
                **_timesteps(values),
                kind="edm",
                prediction="edm",
                **{field: values[field] for field in shared if field in values},
            )
        return _variance_preserving({**OWN_BETAS.get(name, {}), **values})
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _timesteps(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"timesteps": values["num_train_timesteps"]} if "num_train_timesteps" in values else {}


def _flow(values: Mapping[str, Any], shift: Any) -> Schedule:
    return Schedule(**_timesteps(values), kind="flow", prediction="flow", shift=shift)


def _variance_preserving(values: Mapping[str, Any]) -> Schedule:
    predicted, flow = values.get("prediction_type", "epsilon"), values.get("use_flow_sigmas", False)
    if (predicted == "flow_prediction") != flow:
        raise ValueError(
            f"prediction_type={predicted!r} with use_flow_sigmas={flow}: expected 'flow_prediction' with True, or "
            "another with False"
        )
    if flow:
        return _flow(values, values.get("flow_shift", 1.0))
    kind: Any = KINDS[values.get("beta_schedule", "linear")]
    betas = ("beta_start", "beta_end") if kind != "cosine" else ()
    prediction: Any = PREDICTIONS[predicted]
    return Schedule(
        **_timesteps(values),
        **{field: values[field] for field in betas if field in values},
        kind=kind,
        prediction=prediction,
        zero_terminal_snr=values.get("rescale_betas_zero_snr", False),
    )


def scheduler_options(schedule: Schedule) -> dict[str, Any]:
    """Return the content of a ``scheduler_config.json`` for the scheduler of diffusers that a schedule belongs to.

    It is for `DDPMScheduler`, `FlowMatchEulerDiscreteScheduler` or `EDMEulerScheduler`. Settings that matter for
    training only, such as ``log_mean``, have no place there.

    Raises:
        ValueError: no scheduler takes this prediction with this process.

    >>> scheduler_options(Schedule(kind="cosine", prediction="v"))["beta_schedule"]
    'squaredcos_cap_v2'
    """
    kind, prediction = schedule.kind, schedule.prediction
    expected = {"flow": ("flow",), "edm": ("edm",)}.get(kind, tuple(PREDICTIONS.values()))
    if prediction not in expected:
        raise ValueError(
            f"prediction={prediction!r} with kind={kind!r} has no counterpart among diffusers' schedulers: expected "
            f"{' or '.join(map(repr, expected))}"
        )
    if kind == "flow":
        return {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": schedule.timesteps,
            "shift": schedule.shift,
        }
    if kind == "edm":
        return {
            "_class_name": "EDMEulerScheduler",
            "num_train_timesteps": schedule.timesteps,
            "sigma_min": schedule.sigma_min,
            "sigma_max": schedule.sigma_max,
            "sigma_data": schedule.sigma_data,
            "rho": schedule.rho,
            "prediction_type": "epsilon",
        }
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": next(theirs for theirs, ours in KINDS.items() if ours == kind),
        "prediction_type": next(theirs for theirs, ours in PREDICTIONS.items() if ours == prediction),
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "clip_sample": False,
    }
