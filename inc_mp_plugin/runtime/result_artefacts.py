"""Artefacts of what was measured or drawn, as JSON and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.core.results import (
    VERIFY_CONFIDENCE,
    Curve,
    Experiment,
    Frontier,
    Point,
    Round,
    Trial,
    Validation,
    Verification,
)
from inc_mp_plugin.core.timings import (
    TimedConfiguration,
    TimedGroup,
    TimedPlan,
    TimeValidation,
    Timing,
)

Json = dict[str, Any]


def validation_to_json(validation: Validation) -> Json:
    """validation.json."""
    return asdict(validation)


def validation_from_json(content: Json) -> Validation:
    """Inverse of `validation_to_json`."""

    def point(one: Json) -> Point:
        lists = {"quantized": tuple(one["quantized"]), "interval": Interval(*one["interval"])}
        return Point(**{**one, **lists, "measured_interval": _interval(one.get("measured_interval"))})

    same = ("samples", "loss_ms", "tau", "nrmse", "log_correlation", "ratio")
    return Validation(
        **{key: content[key] for key in same},
        plan=point(content["plan"]),
        points=tuple(point(one) for one in content["points"]),
        nrmse_interval=_interval(content.get("nrmse_interval")),
        verify_confidence=content.get("verify_confidence", VERIFY_CONFIDENCE),
    )


def verification_from_json(content: Json) -> Verification:
    """Read verification.json, which is `asdict` of a `Verification`."""
    rounds = tuple(Round(**{**one, "interval": _interval(one.get("interval"))}) for one in content["rounds"])
    same = (content["tau"], content["samples"], rounds, content["chosen"])
    return Verification(*same, content.get("verify_confidence", VERIFY_CONFIDENCE))


def _interval(ends: Sequence[float] | None) -> Interval | None:
    """The interval of a measurement; None where there were too few samples, or none was kept yet."""
    return None if ends is None else Interval(*ends)


def frontiers_to_json(frontiers: Mapping[str, Frontier]) -> Json:
    """frontier.json, of several objectives."""
    return {"objectives": {name: asdict(one) for name, one in frontiers.items()}}


def frontiers_from_json(content: Json) -> dict[str, Frontier]:
    """Inverse of `frontiers_to_json`."""

    def curve(one: Json) -> Curve:
        columns = {key: tuple(one[key]) for key in ("ops", "gain", "loss_mse", "low", "high")}
        return Curve(one["strategy"], one["seed"], **columns)

    return {
        name: Frontier(**{**one, "curves": tuple(curve(c) for c in one["curves"])})
        for name, one in content["objectives"].items()
    }


def experiment_from_json(content: Json) -> Experiment:
    """Read an experiment, which is `asdict` of an `Experiment`."""

    def trial(one: Json) -> Trial:
        lists = {"quantized": tuple(one["quantized"]), "interval": Interval(*one["interval"])}
        return Trial(**{**one, **lists, "measured_interval": _interval(one.get("measured_interval"))})

    same = ("name", "objective", "unit", "source", "largest_gain", "samples", "loss_ms", "base_scores")
    return Experiment(
        **{key: content[key] for key in same},
        ops=tuple(content["ops"]),
        trials=tuple(trial(one) for one in content["trials"]),
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
