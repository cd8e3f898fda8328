"""From artefacts to what is shown: all the logic of the tables, nothing of the drawing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from inc_mp_plugin.formats import alpha
from inc_mp_plugin.plan import Gains, Plan, Sensitivity


@dataclass(frozen=True, slots=True)
class Cell:
    """One op of a plan: its format and its shares, in percent, of loss budget and largest gain."""

    format: str
    loss_percent: float
    gain_percent: float


@dataclass(frozen=True, slots=True)
class PlanTable:
    """A plan as layers by ops: `rows` maps a layer ("" outside of layers) to its cells by column.

    `lower` are the formats below the base that the plan uses.
    """

    lower: tuple[str, ...]
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Cell]]
    summary: tuple[str, ...]


def plan_table(plan: Plan, gains: Gains, sensitivity: Sensitivity) -> PlanTable:
    """Arrange a plan by layer and op.

    The gain of a group is shared equally among its lowered ops; groups of one op need no sharing.
    """
    shares = _gain_shares(plan, gains)
    rows: dict[str, dict[str, Cell]] = {}
    for op in (name for group in gains.groups for name in group.ops):
        format = plan.formats[op]
        layer, column = split_name(op)
        loss = alpha(format) * sensitivity.total[op] if format != plan.base else 0.0
        cell = Cell(
            format,
            100.0 * loss / plan.budget if plan.budget else 0.0,
            100.0 * shares.get(op, 0.0) / plan.largest_gain if plan.largest_gain else 0.0,
        )
        rows.setdefault(layer, {})[column] = cell
    columns = dict.fromkeys(column for cells in rows.values() for column in cells)
    lower = sorted({plan.formats[op] for op in plan.quantized})
    return PlanTable(tuple(lower), tuple(columns), rows, tuple(summary(plan)))


def split_name(op: str) -> tuple[str, str]:
    """Split an op's name at its layer index, into layer and column.

    Example:
        >>> split_name("model.layers.3.self_attn.q_proj")
        ('3', 'q_proj')
        >>> split_name("lm_head")
        ('', 'lm_head')
    """
    match = re.match(r"(?:.*?\.)?(\d+)\.(.+)", op)
    if match is None:
        return "", op
    inner = match[2].split(".")
    numbered = [part for part in inner[:-1] if part.isdigit()]
    return match[1], ".".join([*numbered, inner[-1]])


def summary(plan: Plan) -> list[str]:
    """What the plan does, in a few sentences."""
    low = sorted({plan.formats[op] for op in plan.quantized}) or ["a lower format"]
    share = 100.0 * plan.gain / plan.largest_gain if plan.largest_gain else 0.0
    lines = [
        f"{len(plan.quantized)} of {len(plan.formats)} ops run in {', '.join(low)}, "
        f"the others in {plan.base}.",
        f"Gain ({plan.objective}, {plan.source}): {amount(plan.gain, plan.unit)}, "
        f"{share:.1f} % of the largest there is.",
        f"Predicted NRMSE of the loss: {plan.nrmse:.4g} "
        f"(tau {plan.tau:.6g}; {plan.status}, gap {plan.gap:.1g}).",
    ]
    if not plan.binds:
        lines.append(
            f"tau {plan.tau:.6g} does not bind: everything that gains anything fits, "
            f"at an NRMSE of {plan.nrmse:.4g}."
        )
    return lines


def amount(value: float, unit: str) -> str:
    """A gain with a readable unit.

    Example:
        >>> amount(4134912.0, "byte"), amount(3.2e-5, "s")
        ('4.13 MB', '32 us')
    """
    scales = {
        "byte": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "byte")),
        "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")),
    }[unit]
    factor, name = next((s for s in scales if abs(value) >= s[0]), scales[-1])
    return f"{value / factor:.3g} {name}"


def _gain_shares(plan: Plan, gains: Gains) -> dict[str, float]:
    shares = {}
    for group in gains.groups:
        chosen = tuple(plan.formats[op] for op in group.ops)
        gain = group.gain[group.configurations.index(chosen)]
        lowered = [op for op in group.ops if plan.formats[op] != plan.base]
        shares.update({op: gain / len(lowered) for op in lowered})
    return shares
