"""Artefacts as JSON: each kind to a dict and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.plan import Gemm, Graph, Interval, Op, Plan, TieCost, Unsupported
from inc_mp_plugin.core.sensitivity import NO_DRIFT, Drift, Sensitivity
from inc_mp_plugin.runtime import store

# before the format, key or part, in the names of arrays
_ROUNDING, _SECOND, _MAXABS = "rounding_", "second_", "maxabs_"

_GROUP = tuple(field.name for field in fields(GroupGains))

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
        "measured_rounding": sorted(sensitivity.rounding),
        "loss_ms": sensitivity.loss_ms,
        "ops": {
            name: {"input": float(x), "weight": float(w), "total": sensitivity.total[name]}
            for name, x, w in zip(sensitivity.ops, *means, strict=True)
        },
        "arrays_sha256": arrays_sha256,
    }


def sensitivity_arrays(sensitivity: Sensitivity) -> dict[str, Any]:
    """sensitivity.npz; what was measured of the rounding only where it was."""
    rounding = {f"{_ROUNDING}{format}": rows for format, rows in sensitivity.rounding.items()}
    drift = {"drift": np.array(sensitivity.measured_drift)} if rounding else {}
    second = {f"{_SECOND}{key}": rows for key, rows in sensitivity.second.items()}
    return {
        "loss": sensitivity.loss,
        "input": sensitivity.input,
        "weight": sensitivity.weight,
        "ops": np.array(sensitivity.ops),
        **rounding,
        **drift,
        **second,
        **{f"{_MAXABS}{part}": one for part, one in sensitivity.maxabs.items()},
    }


def sensitivity_from_arrays(arrays: Mapping[str, Any]) -> Sensitivity:
    """Inverse of `sensitivity_arrays`."""
    rounding, second, maxabs = (
        {key.removeprefix(start): rows for key, rows in arrays.items() if key.startswith(start)}
        for start in (_ROUNDING, _SECOND, _MAXABS)
    )
    sensitivity = Sensitivity(
        tuple(str(name) for name in arrays["ops"]),
        arrays["loss"],
        arrays["input"],
        arrays["weight"],
        rounding,
        measured_drift=Drift(*map(float, arrays.get("drift", NO_DRIFT))),
        second=second,
        maxabs=maxabs,
    )
    shape = (len(sensitivity.loss), len(sensitivity.ops))
    rows = (sensitivity.input, sensitivity.weight, *rounding.values(), *second.values())
    fit = all(one.shape == shape for one in rows)
    if not fit or any(one.shape != shape[1:] for one in maxabs.values()):
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
                # Not by `asdict`, which copies every format of every configuration.
                "groups": [{key: getattr(group, key) for key in _GROUP} for group in one.groups],
                "cost": one.cost,
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
            one.get("cost"),
        )
        for name, one in content["objectives"].items()
    }


def plan_to_json(plan: Plan) -> Json:
    """plan.json."""
    return {
        "strategy": plan.strategy,
        "objective": plan.objective,
        "unit": plan.unit,
        "source": plan.source,
        "base": plan.base,
        "noise": plan.noise,
        "tau": plan.tau,
        "correction": plan.correction,
        "budget": plan.loss_budget,
        "confidence": plan.confidence,
        "predicted": {
            "loss_mse": plan.loss_mse,
            "interval": list(plan.interval),
            "nrmse": plan.nrmse,
            "gain": plan.gain,
        },
        "largest_gain": plan.largest_gain,
        "binds": plan.binds,
        "solver": {"status": plan.status, "gap": plan.gap, "seconds": plan.seconds},
        "formats": dict(plan.formats),
        "targets": list(plan.targets),
        "serving": asdict(plan.serving),
        "ties": [asdict(tie) for tie in plan.ties],
    }


def plan_from_json(content: Json) -> Plan:
    """Inverse of `plan_to_json`."""
    grouped = {**content["predicted"], **content["solver"]}
    grouped["interval"] = Interval(*grouped["interval"])
    grouped["targets"] = tuple(content["targets"])
    grouped["serving"] = Serving(**content["serving"])
    grouped["ties"] = tuple(TieCost(tuple(t["ops"]), t["why"], t["cost"]) for t in content["ties"])
    grouped["loss_budget"] = content["budget"]
    names = {field.name for field in fields(Plan)} - grouped.keys()
    return Plan(**{name: content[name] for name in names}, **grouped)


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
