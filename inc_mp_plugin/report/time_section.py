"""The section on time: plans against the sums of their groups, groups against cheaper guesses."""

from __future__ import annotations

from inc_mp_plugin.core.timings import TimedGroup, TimedPlan, TimeValidation
from inc_mp_plugin.report.blocks import Block, Chart, Section, Series, Table
from inc_mp_plugin.report.found import Found
from inc_mp_plugin.report.plan_sections import missing
from inc_mp_plugin.report.text import milliseconds, split_name

_BARS = "Bars: two standard errors"


def time(found: Found) -> Section:
    """Make the section on predicted against measured time."""
    title, seen = "Predicted against measured time", found.time
    if seen is None:
        command = f"inc-mp validate {found.folder} --time"
        if "empirical_time" not in found.gains:
            command = f"inc-mp tune RECIPE.yaml objective=empirical_time --out {found.folder}"
        return Section("time", title, (missing(found, "time_validation", "Measured times", command),))
    charts, tables = time_charts(seen), time_tables(seen)
    blocks: list[Block] = [time_text(seen), charts[0], tables[0]]
    if seen.groups:
        blocks += [*charts[1:], *tables[1:]]
    return Section("time", title, tuple(blocks))


def time_text(seen: TimeValidation) -> str:
    """Say how many plans save what their groups add up to."""
    measured = [plan for plan in seen.plans if plan.quantized]
    held = sum(plan.additive for plan in measured)
    return (
        f"{held} of {len(measured)} plans save what their groups add up to, within 5 % or two standard "
        "errors."
    )


def time_tables(seen: TimeValidation) -> tuple[Table, ...]:
    """Make the tables of the time saved.

    The first has whole plans beside the sums of their groups. If groups were measured, the second has groups
    beside the sums of their ops.
    """
    return (_plans_table(seen), *([_groups_table(seen)] if seen.groups else []))


def time_charts(seen: TimeValidation) -> tuple[Chart, ...]:
    """Make the charts of the time saved, in ms.

    They show whole plans over the sums of their groups; groups over the sums of their ops, and over MACs.
    """
    plans = [plan for plan in seen.plans if plan.quantized]
    groups = seen.groups
    label = "time saved, measured, ms"
    return (
        Chart(
            "time-plans",
            f"Does a whole plan save what its groups add up to? {_BARS}; on the line, measured = sum.",
            "whole plans: sum of their groups, ms",
            label,
            _with_diagonal(_plan_points(plans)),
        ),
        Chart(
            "time-groups",
            f"Does a group save what its ops save one by one? {_BARS}; on the line, measured = sum.",
            "one group: sum of its ops alone, ms",
            label,
            _with_diagonal(_group_points(groups, tuple(1e3 * one.sum_of_ops_s for one in groups))),
        ),
        Chart(
            "time-macs",
            f"Do MACs say what a group saves? {_BARS}.",
            "one group: million MACs per sample",
            label,
            (_group_points(groups, tuple(one.macs / 1e6 for one in groups)),),
        ),
    )


def _plan_points(plans: list[TimedPlan]) -> Series:
    return Series(
        "",
        "point",
        tuple(1e3 * one.predicted_s for one in plans),
        tuple(1e3 * one.measured_s for one in plans),
        tuple(1e3 * (one.measured_s - 2 * one.measured_stderr_s) for one in plans),
        tuple(1e3 * (one.measured_s + 2 * one.measured_stderr_s) for one in plans),
        tuple(1e3 * (one.predicted_s - 2 * one.predicted_stderr_s) for one in plans),
        tuple(1e3 * (one.predicted_s + 2 * one.predicted_stderr_s) for one in plans),
    )


def _group_points(groups: tuple[TimedGroup, ...], x: tuple[float, ...]) -> Series:
    return Series(
        "",
        "point",
        x,
        tuple(1e3 * one.measured_s for one in groups),
        tuple(1e3 * (one.measured_s - 2 * one.stderr_s) for one in groups),
        tuple(1e3 * (one.measured_s + 2 * one.stderr_s) for one in groups),
    )


def _with_diagonal(points: Series) -> tuple[Series, ...]:
    ends = (min([*points.x, *points.y, 0.0]), max([*points.x, *points.y, 0.0]))
    return Series("", "reference", ends, ends), points


def _plans_table(seen: TimeValidation) -> Table:
    return Table(
        f"Time saved by whole plans, of {milliseconds(seen.price_s)} ms on {seen.description}",
        ("objective", "tau", "ops", "sum of groups, ms", "measured, ms", "difference", "adds up"),
        tuple(
            (
                plan.objective,
                f"{plan.tau:.4g}",
                str(len(plan.quantized)),
                _with_error(plan.predicted_s, plan.predicted_stderr_s),
                _with_error(plan.measured_s, plan.measured_stderr_s),
                f"{100 * plan.difference_s / plan.predicted_s:+.1f} %" if plan.predicted_s else "–",
                ("yes" if plan.additive else "no") if plan.quantized else "–",
            )
            for plan in seen.plans
        ),
    )


def _groups_table(seen: TimeValidation) -> Table:
    return Table(
        "Time saved by groups, and by their ops measured alone",
        ("ops lowered", "measured, ms", "sum of ops, ms", "million MACs"),
        tuple(
            (
                ", ".join(split_name(op)[1] for op in group.quantized),
                _with_error(group.measured_s, group.stderr_s),
                milliseconds(group.sum_of_ops_s),
                f"{group.macs / 1e6:.1f}",
            )
            for group in seen.groups
        ),
    )


def _with_error(seconds: float, stderr_s: float) -> str:
    return f"{milliseconds(seconds)} ± {milliseconds(stderr_s)}"
