"""The section on time: plans against the sums of their groups, groups against cheaper guesses."""

from __future__ import annotations

from collections.abc import Iterable

from inc_mp_plugin.core.knobs import KEY_OF
from inc_mp_plugin.core.timings import TimeValidation
from inc_mp_plugin.report.artefacts import RunArtefacts
from inc_mp_plugin.report.blocks import Blocks, Chart, Series, Table, Values
from inc_mp_plugin.report.text import milliseconds, split_name

_BARS = "Bars: two standard errors"


def time_blocks(run: RunArtefacts) -> Blocks:
    """Make the text, the charts and the tables of predicted against measured time."""
    times = run.time
    if times is None:
        command = f"inc-mp validate {run.folder} --time"
        if "empirical_time" not in run.gains:
            command = f"inc-mp tune RECIPE.yaml objective=empirical_time --out {run.folder}"
        return (run.missing("time_validation", "Measured times", command),)
    charts, tables = time_charts(times), time_tables(times)
    of_groups: Blocks = (*charts[1:], *tables[1:]) if times.groups else ()
    return (time_text(times), charts[0], tables[0], *of_groups)


def time_text(times: TimeValidation) -> str:
    """Say how many plans save as much time as their groups add up to."""
    lowering = [plan for plan in times.plans if plan.quantized]
    additive = sum(plan.additive for plan in lowering)
    return (
        f"{additive} of {len(lowering)} plans save what their groups add up to, within 5 % or two standard "
        "errors."
    )


def time_tables(times: TimeValidation) -> tuple[Table, ...]:
    """Make the tables of the time saved.

    The first has whole plans beside the sums of their groups. If groups were measured, the second has groups
    beside the sums of their ops.
    """
    return (_plans_table(times), *([_groups_table(times)] if times.groups else []))


def time_charts(times: TimeValidation) -> tuple[Chart, ...]:
    """Make the charts of the time saved, in ms.

    They show whole plans over the sums of their groups; groups over the sums of their ops, and over MACs.
    """
    plans, groups = [plan for plan in times.plans if plan.quantized], times.groups
    sums, below, above = _in_ms((plan.predicted_s, plan.predicted_stderr_s) for plan in plans)
    of_plans = _in_ms((plan.measured_s, plan.measured_stderr_s) for plan in plans)
    of_groups = _in_ms((group.measured_s, group.stderr_s) for group in groups)
    sums_of_ops = tuple(1e3 * group.sum_of_ops_s for group in groups)
    macs = tuple(group.macs / 1e6 for group in groups)
    label = "time saved, measured, ms"
    return (
        Chart(
            "time-plans",
            f"Does a whole plan save what its groups add up to? {_BARS}; on the line, measured = sum.",
            "whole plans: sum of their groups, ms",
            label,
            _with_diagonal(Series("", "point", sums, *of_plans, below, above)),
        ),
        Chart(
            "time-groups",
            f"Does a group save what its ops save one by one? {_BARS}; on the line, measured = sum.",
            "one group: sum of its ops alone, ms",
            label,
            _with_diagonal(Series("", "point", sums_of_ops, *of_groups)),
        ),
        Chart(
            "time-macs",
            f"Do MACs say what a group saves? {_BARS}.",
            "one group: million MACs per sample",
            label,
            (Series("", "point", macs, *of_groups),),
        ),
    )


def _in_ms(times: Iterable[tuple[float, float]]) -> tuple[Values, Values, Values]:
    """Return times in ms, and two standard errors below and above them; from pairs of time and error in s."""
    pairs = list(times)
    return (
        tuple(1e3 * seconds for seconds, _ in pairs),
        tuple(1e3 * (seconds - 2 * stderr_s) for seconds, stderr_s in pairs),
        tuple(1e3 * (seconds + 2 * stderr_s) for seconds, stderr_s in pairs),
    )


def _with_diagonal(points: Series) -> tuple[Series, ...]:
    ends = (min([*points.x, *points.y, 0.0]), max([*points.x, *points.y, 0.0]))
    return Series("", "reference", ends, ends), points


def _plans_table(times: TimeValidation) -> Table:
    return Table(
        f"Time saved by whole plans, of {milliseconds(times.price_s)} ms on {times.description}",
        ("objective", "threshold", "ops", "sum of groups, ms", "measured, ms", "difference", "adds up"),
        tuple(
            (
                plan.objective,
                f"{KEY_OF[plan.yardstick]} {plan.tau:.4g}",
                str(len(plan.quantized)),
                _with_error(plan.predicted_s, plan.predicted_stderr_s),
                _with_error(plan.measured_s, plan.measured_stderr_s),
                f"{100 * plan.difference_s / plan.predicted_s:+.1f} %" if plan.predicted_s else "–",
                ("yes" if plan.additive else "no") if plan.quantized else "–",
            )
            for plan in times.plans
        ),
    )


def _groups_table(times: TimeValidation) -> Table:
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
            for group in times.groups
        ),
    )


def _with_error(seconds: float, stderr_s: float) -> str:
    return f"{milliseconds(seconds)} ± {milliseconds(stderr_s)}"
