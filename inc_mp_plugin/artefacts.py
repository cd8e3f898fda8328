"""Artefacts as JSON: each kind to a dict and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from inc_mp_plugin import store
from inc_mp_plugin.errors import InputError
from inc_mp_plugin.measurements import (
    TimedConfiguration,
    TimedGroup,
    TimedPlan,
    TimeValidation,
    Timing,
)
from inc_mp_plugin.plan import (
    Gains,
    Gemm,
    Graph,
    GroupGains,
    Op,
    Plan,
    Point,
    Sensitivity,
    Unsupported,
    Validation,
)

Json = dict[str, Any]
Value = TypeVar("Value")


def graph_to_json(graph: Graph) -> Json:
    """graph.json."""
    return {
        "ops": [asdict(op) for op in graph.ops],
        "groups": [list(group) for group in graph.groups],
        "unsupported": [asdict(one) for one in graph.unsupported],
        "modules": dict(graph.modules),
        "structures": list(graph.structures),
    }


def graph_from_json(content: Json) -> Graph:
    """Inverse of `graph_to_json`."""
    graph = Graph(
        tuple(_op_from_json(op) for op in content["ops"]),
        tuple(tuple(group) for group in content["groups"]),
        tuple(Unsupported(**one) for one in content["unsupported"]),
        dict(content["modules"]),
        tuple(content["structures"]),
    )
    grouped = [name for group in graph.groups for name in group]
    if sorted(grouped) != sorted(graph.by_name):
        message = "the groups do not hold every op once"
        raise ValueError(message)
    return graph


def _op_from_json(content: Json) -> Op:
    gemms = tuple(Gemm(*shape) for shape in content["gemms"])
    return Op(**{**content, "gemms": gemms, "after": tuple(content["after"])})


def sensitivity_to_json(sensitivity: Sensitivity, arrays_sha256: str) -> Json:
    """sensitivity.json, beside its arrays."""
    means = (sensitivity.input.mean(axis=0), sensitivity.weight.mean(axis=0))
    return {
        "samples": sensitivity.samples,
        "loss_ms": sensitivity.loss_ms,
        "ops": {
            name: {"input": float(x), "weight": float(w), "total": sensitivity.total[name]}
            for name, x, w in zip(sensitivity.ops, *means, strict=True)
        },
        "arrays_sha256": arrays_sha256,
    }


def sensitivity_arrays(sensitivity: Sensitivity) -> dict[str, Any]:
    """sensitivity.npz."""
    return {
        "loss": sensitivity.loss,
        "input": sensitivity.input,
        "weight": sensitivity.weight,
        "ops": np.array(sensitivity.ops),
    }


def sensitivity_from_arrays(arrays: Mapping[str, Any]) -> Sensitivity:
    """Inverse of `sensitivity_arrays`."""
    sensitivity = Sensitivity(
        tuple(str(name) for name in arrays["ops"]),
        arrays["loss"],
        arrays["input"],
        arrays["weight"],
    )
    shape = (len(sensitivity.loss), len(sensitivity.ops))
    if sensitivity.input.shape != shape or sensitivity.weight.shape != shape:
        message = "the arrays do not fit together"
        raise ValueError(message)
    return sensitivity


def gains_to_json(gains: Mapping[str, Gains]) -> Json:
    """gains.json, of several objectives."""
    return {
        "objectives": {
            name: {
                "unit": one.unit,
                "source": one.source,
                "base": one.base,
                "groups": [asdict(group) for group in one.groups],
            }
            for name, one in gains.items()
        }
    }


def gains_from_json(content: Json) -> dict[str, Gains]:
    """Inverse of `gains_to_json`."""
    return {
        name: Gains(
            name,
            one["unit"],
            one["source"],
            one["base"],
            tuple(
                GroupGains(
                    tuple(group["ops"]),
                    tuple(tuple(formats) for formats in group["configurations"]),
                    tuple(group["gain"]),
                    tuple(group["stderr"]),
                    tuple(group["measured_on"]),
                    group["note"],
                )
                for group in one["groups"]
            ),
        )
        for name, one in content["objectives"].items()
    }


def plan_to_json(plan: Plan) -> Json:
    """plan.json."""
    return {
        "objective": plan.objective,
        "unit": plan.unit,
        "source": plan.source,
        "base": plan.base,
        "tau": plan.tau,
        "budget": plan.budget,
        "predicted": {"loss_mse": plan.loss_mse, "nrmse": plan.nrmse, "gain": plan.gain},
        "largest_gain": plan.largest_gain,
        "binds": plan.binds,
        "solver": {"status": plan.status, "gap": plan.gap, "seconds": plan.seconds},
        "formats": dict(plan.formats),
    }


def plan_from_json(content: Json) -> Plan:
    """Inverse of `plan_to_json`."""
    same = ("objective", "unit", "source", "base", "tau", "budget", "largest_gain", "binds", "formats")
    return Plan(**{key: content[key] for key in same}, **content["predicted"], **content["solver"])


def validation_to_json(validation: Validation) -> Json:
    """validation.json."""
    return asdict(validation)


def validation_from_json(content: Json) -> Validation:
    """Inverse of `validation_to_json`."""

    def point(one: Json) -> Point:
        return Point(tuple(one["quantized"]), one["predicted"], one["measured"])

    same = ("samples", "loss_ms", "tau", "nrmse", "log_correlation", "ratio")
    return Validation(
        **{key: content[key] for key in same},
        plan=point(content["plan"]),
        points=tuple(point(one) for one in content["points"]),
    )


def timing_from_json(content: Json) -> Timing:
    """Read timing.json, which is `asdict` of a `Timing`."""

    def one(configuration: Json) -> TimedConfiguration:
        lists = {key: tuple(configuration[key]) for key in ("pairs", "base_s", "low_s")}
        return TimedConfiguration(**{**configuration, **lists})

    return Timing(
        content["device"],
        content["description"],
        content["passes"],
        tuple(content["base_s"]),
        tuple(one(configuration) for configuration in content["configurations"]),
    )


def time_validation_from_json(content: Json) -> TimeValidation:
    """Read time_validation.json, which is `asdict` of a `TimeValidation`."""
    plans = [TimedPlan(**{**one, "quantized": tuple(one["quantized"])}) for one in content["plans"]]
    groups = [TimedGroup(**{**one, "quantized": tuple(one["quantized"])}) for one in content["groups"]]
    same = {key: content[key] for key in ("device", "description", "price_s")}
    return TimeValidation(**same, plans=tuple(plans), groups=tuple(groups))


def load(path: Path, kind: str, decode: Callable[[Json], Value]) -> Value:
    """Read an artefact and decode it.

    Raises:
        InputError: it is missing or damaged.
    """
    content = store.read_json(path, kind)
    try:
        return decode(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"{path} is damaged ({error}); delete it and run `inc-mp tune` again"
        raise InputError(message) from error
