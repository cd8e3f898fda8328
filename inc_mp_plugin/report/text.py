"""From artefacts to what is shown: all the logic of the tables, nothing of the drawing."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.numbers import rounded_up
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.targets.layout import expert_role

if TYPE_CHECKING:
    from inc_mp_plugin.core.results import Frontier


@dataclass(frozen=True, slots=True)
class Cell:
    """One op of a plan: its format and its shares, in percent, of loss budget and largest gain."""

    format: str
    loss_percent: float
    gain_percent: float


@dataclass(frozen=True, slots=True)
class PlanTable:
    """A plan as layers by ops: `rows` maps a layer ("" outside of layers) to its cells by column.

    `lower` are the formats below the base that the plan uses; `cache_percent` is the share of the loss
    budget that a KV cache in FP8 takes.
    """

    lower: tuple[str, ...]
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Cell]]
    summary: tuple[str, ...]
    cache_percent: float = 0.0


def plan_table(plan: Plan, gains: Gains, losses: LossModel) -> PlanTable:
    """Arrange a plan by layer and op.

    The gain of a group is shared equally among its lowered ops; groups of one op need no sharing. The loss
    budget is that of the ops and of a KV cache in FP8 together.

    Args:
        plan: what is arranged.
        gains: of every group, for the objective of the plan.
        losses: give the loss MSE of every op, and of a KV cache in FP8.
    """
    shares, cache = _gain_shares(plan, gains), float(losses.cache_loss_mse.mean())
    capacity = losses.without_drift(plan.loss_budget) + cache
    loss_mse = {format_name: losses.loss_mse(format_name) for format_name in set(plan.lowered.values())}
    rows: dict[str, dict[str, Cell]] = {}
    for op, (layer, column) in places([name for group in gains.groups for name in group.ops]).items():
        format_name = plan.formats[op]
        loss = loss_mse[format_name][op] if format_name != plan.base else 0.0
        cell = Cell(
            format_name,
            100.0 * loss / capacity if capacity else 0.0,
            100.0 * shares.get(op, 0.0) / plan.largest_gain if plan.largest_gain else 0.0,
        )
        row = rows.setdefault(layer, {})
        row[column] = _together(row[column], cell, plan.base) if column in row else cell
    columns = dict.fromkeys(column for cells in rows.values() for column in cells)
    lower = sorted({plan.formats[op] for op in plan.quantized})
    lines, share = summary(plan), 100.0 * cache / capacity if cache else 0.0
    if cache:
        lines.insert(3, f"The KV cache in FP8 takes {share:.1f} % of the loss budget; the rest is the ops'.")
    return PlanTable(tuple(lower), tuple(columns), rows, tuple(lines), share)


def _together(one: Cell, other: Cell, base: str) -> Cell:
    """Add up the cells of experts that share a column: what they cost and gain, in percent."""
    format_name = other.format if one.format == base else one.format
    return Cell(format_name, one.loss_percent + other.loss_percent, one.gain_percent + other.gain_percent)


def split_name(op: str) -> tuple[str, str]:
    """Split an op's name at its layer index, into layer and column.

    Example:
        >>> split_name("model.layers.3.self_attn.q_proj")
        ('3', 'q_proj')
        >>> split_name("model.layers.3.mlp.experts.7.w1")
        ('3', '*.w1')
        >>> split_name("lm_head")
        ('', 'lm_head')
    """
    match = re.match(r"(?:.*?\.)?(\d+)\.(.+)", op)
    if match is None:
        return "", op
    inner = match[2].split(".")
    numbered = ["*"] if expert_role(op) else [part for part in inner[:-1] if part.isdigit()]
    return match[1], ".".join([*numbered, inner[-1]])


def places(ops: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Find the layer and the column of each op.

    Where short names of columns would coincide, columns have long ones. Experts, with a number of
    their own, share columns that begin with a star.

    Example:
        >>> places(["h.0.attn.q", "h.0.cross.q", "h.0.mlp"])["h.0.cross.q"]
        ('0', 'h.*.cross.q')
    """
    found = {op: split_name(op) for op in ops}
    taken = Counter(found.values())
    shared = {column for (_, column), count in taken.items() if count > 1 and column[0] != "*"}
    return {
        op: (layer, re.sub(r"\d+", "*", op, count=1) if column in shared else column)
        for op, (layer, column) in found.items()
    }


def summary(plan: Plan) -> list[str]:
    """Describe what the plan does, in a few sentences."""
    low = sorted({plan.formats[op] for op in plan.quantized}) or ["a lower format"]
    share = 100.0 * plan.gain / plan.largest_gain if plan.largest_gain else 0.0
    lines = [
        f"{len(plan.quantized)} of {len(plan.formats)} ops run in {', '.join(low)}, "
        f"the others in {plan.base}.",
        f"Gain ({plan.objective}, {plan.source}): {amount(plan.gain, plan.unit)}, "
        f"{share:.1f} % of the largest there is.",
        f"Predicted NRMSE of the loss: {plan.nrmse:.4g} ({threshold(plan)}; {_status(plan)}); "
        f"{100 * plan.confidence:g} % of fresh sample sets lie between "
        f"{nrmse_of(plan, plan.interval.low):.4g} and {nrmse_of(plan, plan.interval.high):.4g}.",
    ]
    if plan.correction != 1.0:
        lines.append(f"The loss budget is {plan.correction:.4g} times that of tau, so that it surely holds.")
    lines += tie_lines(plan)
    if not plan.binds and threshold(plan) != NO_TAU:
        lines.append(
            f"tau {plan.tau:.6g} does not bind: everything that gains anything fits, "
            f"at an NRMSE of {plan.nrmse:.4g}."
        )
    return lines


NO_TAU = "not held to a tau"


def threshold(plan: Plan) -> str:
    """Name the threshold that a plan was held to.

    A plan that was only asked for a gain has its own loss as tau; it was not held to any.
    """
    return f"tau {plan.tau:.6g}" if (plan.tau, plan.loss_budget) != (plan.nrmse, plan.loss_mse) else NO_TAU


def tie_lines(plan: Plan) -> list[str]:
    """Say what the ties of a plan cost, in one line per reason for ties."""
    costs: dict[str, list[float]] = {}
    for tie in plan.ties:
        costs.setdefault(tie.why, []).append(tie.cost)
    return [
        f"Tied ({why}): {len(each)} times, at a cost of {amount(math.fsum(each), plan.unit)}."
        for why, each in costs.items()
    ]


def _status(plan: Plan) -> str:
    gap = "" if plan.gap is None else f", gap {plan.gap:.1g}"
    return f"{plan.strategy}: {plan.status}{gap}"


def nrmse_of(plan: Plan, loss_mse: float) -> float:
    """Return the normalized RMSE of another loss MSE, of the same samples as the plan's loss MSE."""
    return plan.nrmse * math.sqrt(loss_mse / plan.loss_mse) if plan.loss_mse else 0.0


def amount(value: float, unit: str) -> str:
    """Format a gain with a readable unit.

    Example:
        >>> amount(4134912.0, "byte"), amount(3.2e-5, "s")
        ('4.13 MB', '32 us')
    """
    scales = {
        "byte": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "byte")),
        "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")),
        "bit operation": ((1e9, "GBOP"), (1e6, "MBOP"), (1e3, "kBOP"), (1.0, "BOP")),
    }[unit]
    factor, name = next((s for s in scales if abs(value) >= s[0]), scales[-1])
    return f"{value / factor:.3g} {name}"


def milliseconds(seconds: float) -> str:
    """Format seconds as milliseconds, to three decimals at most.

    Example:
        >>> milliseconds(0.13421), milliseconds(-0.0000123)
        ('134.2', '-0.012')
    """
    value = 1e3 * seconds
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _gain_shares(plan: Plan, gains: Gains) -> dict[str, float]:
    shares = {}
    for group in gains.groups:
        chosen = tuple(plan.formats[op] for op in group.ops)
        gain = group.gain[group.configurations.index(chosen)]
        lowered = [op for op in group.ops if plan.formats[op] != plan.base]
        shares.update({op: gain / len(lowered) for op in lowered})
    return shares


@dataclass(frozen=True, slots=True)
class FrontierRow:
    """One point of the exact curve, and what the baselines pay for at least as much gain.

    Losses are normalized RMSEs; `random` is the root of the draws' mean loss MSE. None where a baseline
    never gains as much. `tau` gives this plan to `inc-mp solve`.
    """

    gain: float
    gain_percent: float
    ops: int
    nrmse: float
    low: float
    high: float
    tau: str
    prefix: float | None
    random: float | None
    knee: bool


def frontier_rows(one: Frontier) -> list[FrontierRow]:
    """Turn a frontier into the rows of a table, one per point of its exact curve."""
    exact = one.curves[0]
    rows = []
    for k, (gain, loss_mse) in enumerate(zip(exact.gain, exact.loss_mse, strict=True)):
        rows.append(
            FrontierRow(
                gain,
                100.0 * gain / one.largest_gain,
                exact.ops[k],
                one.nrmse(loss_mse),
                one.nrmse(exact.low[k]),
                one.nrmse(exact.high[k]),
                rounded_up(one.nrmse(loss_mse)),
                _mean_nrmse(one, "prefix", gain),
                _mean_nrmse(one, "random", gain),
                k == one.knee,
            )
        )
    return rows


def _mean_nrmse(one: Frontier, strategy: str, gain: float) -> float | None:
    """Return the NRMSE of the mean loss MSE of a strategy's draws for this gain.

    The result is None if one of the draws never gains as much, or if there is none.
    """
    losses = [curve.least_loss(gain) for curve in one.curves if curve.strategy == strategy]
    known = [loss for loss in losses if loss is not None]
    return one.nrmse(math.fsum(known) / len(known)) if known and len(known) == len(losses) else None
