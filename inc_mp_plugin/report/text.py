"""Plans in words and as tables: all the logic, nothing of the drawing."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.plan import Plan, TieCost
from inc_mp_plugin.report.shares import budget_shares
from inc_mp_plugin.targets.layout import expert_role

_MANY_LAYERS = 40
NO_THRESHOLD = "not held to a threshold"


@dataclass(frozen=True, slots=True)
class Cell:
    """One op of a plan: its place on the map, its format, and its shares of allowance and largest gain.

    `layer` is "" outside of layers; `lowered` is False in the base format; the shares are in percent.
    """

    layer: str
    column: str
    format: str
    lowered: bool
    loss_percent: float
    gain_percent: float

    @property
    def label(self) -> str:
        """The op's name with its layer."""
        return f"layer {self.layer} {self.column}" if self.layer else self.column


@dataclass(frozen=True, slots=True)
class PlanTable:
    """A plan as layers by ops: the layout of its map in a terminal, on a page and in a picture.

    `layers` maps a layer to one cell per column, None where the layer has no such op; `outside` are the
    ops outside of layers. `lower` are the formats below the base that the plan uses; `cache_percent` is
    the share of the allowance that a KV cache in FP8 takes.
    """

    lower: tuple[str, ...]
    columns: tuple[str, ...]
    layers: Mapping[str, tuple[Cell | None, ...]]
    outside: tuple[Cell, ...]
    summary: tuple[str, ...]
    cache_percent: float = 0.0

    @property
    def is_deep(self) -> bool:
        """True if there are more layers than a screen has room for with two lines each."""
        return len(self.layers) > _MANY_LAYERS

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, those of the layers first."""
        inside = (cell for row in self.layers.values() for cell in row if cell is not None)
        return (*inside, *self.outside)


def plan_table(plan: Plan, gains: Gains, costs: Costs) -> PlanTable:
    """Arrange a plan by layer and op.

    The gain of a group is shared equally among its lowered ops; groups of one op need no sharing. The
    allowance is that of the ops and of a KV cache in FP8 together.

    Args:
        plan: to arrange.
        gains: of every group, for the objective of the plan.
        costs: of every op, and of a KV cache in FP8.
    """
    gain_of, lowered = _gain_shares(plan, gains), plan.lowered
    shares, cache = budget_shares(plan, costs)
    rows: dict[str, dict[str, Cell]] = {}
    for op, (layer, column) in places([name for group in gains.groups for name in group.ops]).items():
        own = shares.get(op, 0.0), percent(gain_of.get(op, 0.0), plan.largest_gain)
        cell = Cell(layer, column, plan.formats[op], op in lowered, *own)
        row = rows.setdefault(layer, {})
        row[column] = _together(row[column], cell) if column in row else cell
    outside = tuple(rows.pop("", {}).values())
    columns = tuple(dict.fromkeys(column for row in rows.values() for column in row))
    layers = {layer: tuple(map(row.get, columns)) for layer, row in rows.items()}
    lines = summary(plan)
    if cache:
        lines.insert(3, f"The KV cache in FP8 takes {cache:.1f} % of the allowance; the rest is the ops'.")
    lower = tuple(sorted(set(lowered.values())))
    return PlanTable(lower, columns, layers, outside, tuple(lines), cache)


def _together(first: Cell, second: Cell) -> Cell:
    """Add up the cells of experts that share a column: their costs and gains, in percent."""
    loss, gain = first.loss_percent + second.loss_percent, first.gain_percent + second.gain_percent
    return replace(first if first.lowered else second, loss_percent=loss, gain_percent=gain)


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
    short = {op: split_name(op) for op in ops}
    counts = Counter(short.values())
    shared = {column for (_, column), count in counts.items() if count > 1 and column[0] != "*"}
    return {
        op: (layer, re.sub(r"\d+", "*", op, count=1) if column in shared else column)
        for op, (layer, column) in short.items()
    }


def summary(plan: Plan) -> list[str]:
    """Describe the plan in a few sentences."""
    lower = sorted(set(plan.lowered.values())) or ["a lower format"]
    lines = [
        f"{len(plan.quantized)} of {len(plan.formats)} ops run in {', '.join(lower)}, "
        f"the others in {plan.base}.",
        f"Gain ({plan.objective}, {plan.source}): {amount(plan.gain, plan.unit)}, "
        f"{percent(plan.gain, plan.largest_gain):.1f} % of the largest there is.",
        *_predicted(plan),
    ]
    if plan.correction != 1.0:
        limits = (
            "those of the thresholds" if plan.kl is not None and has_tau(plan) else "that of the threshold"
        )
        lines.append(f"The allowance is {plan.correction:.4g} times {limits}, so that it surely holds.")
    lines += tie_lines(plan)
    if not plan.quantized and threshold(plan) != NO_THRESHOLD:
        lines.append(f"No op that gains anything fits {threshold(plan)}: everything stays in {plan.base}.")
    elif not plan.binds and threshold(plan) != NO_THRESHOLD:
        of_kl = plan.constraint == "kl" or plan.nrmse is None
        value = f"a KL divergence of {plan.predicted_kl:.4g}" if of_kl else f"an NRMSE of {plan.nrmse:.4g}"
        lines.append(f"{threshold(plan)} does not bind: everything that gains anything fits, at {value}.")
    return lines


def _predicted(plan: Plan) -> list[str]:
    """Say what is predicted of a plan's outputs, with intervals; the yardstick of the plan comes first."""
    gap = "" if plan.gap is None else f", gap {plan.gap:.1g}"
    origin = f" ({threshold(plan)}; {plan.strategy}: {plan.status}{gap})"
    sets = f"; {100 * plan.confidence:g} % interval for as many fresh samples:"
    kl, loss = [], []
    if plan.predicted_kl is not None:
        ends = "" if plan.kl_interval is None else f"{sets} {span(plan.kl_interval, '.4g')}"
        of = origin if plan.constraint == "kl" else ""
        kl = [f"Predicted KL divergence: {plan.predicted_kl:.4g} nats per token{of}{ends}.{_bound(plan)}"]
    if plan.nrmse is not None and plan.interval is not None:
        ends = span((nrmse_of(plan, plan.interval.low), nrmse_of(plan, plan.interval.high)), ".4g")
        of = origin if plan.constraint == "loss" else ""
        loss = [f"Predicted NRMSE of the loss: {plan.nrmse:.4g}{of}{sets} {ends}."]
    return [*kl, *loss] if plan.constraint == "kl" else [*loss, *kl]


def _bound(plan: Plan) -> str:
    """Say that a prediction is a lower bound where rounding may send a token to other experts."""
    if not plan.quantized or not any(expert_role(op) for op in plan.formats):
        return ""
    return " A lower bound: tokens that change their experts are not in it; measure such a plan (validation)."


def has_tau(plan: Plan) -> bool:
    """Tell if a plan was held to a tau; one that was only asked for a gain has its own loss as tau."""
    return plan.tau is not None and (plan.tau, plan.loss_budget) != (plan.nrmse, plan.loss_mse)


def threshold(plan: Plan) -> str:
    """Name the thresholds that a plan was held to, if any."""
    kl = [] if plan.kl is None else [f"kl {plan.kl:.6g}"]
    tau = [f"tau {plan.tau:.6g}"] if has_tau(plan) else []
    return " and ".join([*kl, *tau]) or NO_THRESHOLD


def tie_lines(plan: Plan) -> list[str]:
    """Say what the ties of a plan cost, in one line per reason for ties."""
    return [f"Tied ({why}): {len(ties)} times, at a cost of {cost}." for why, ties, cost in tie_groups(plan)]


def tie_groups(plan: Plan) -> list[tuple[str, list[TieCost], str]]:
    """Group the ties of a plan by reason: the reason, the ties, and the gain that they cost together."""
    groups: dict[str, list[TieCost]] = {}
    for tie in plan.ties:
        groups.setdefault(tie.why, []).append(tie)
    costs = [amount(math.fsum(tie.cost for tie in ties), plan.unit) for ties in groups.values()]
    return list(zip(groups, groups.values(), costs, strict=True))


def nrmse_of(plan: Plan, loss_mse: float) -> float:
    """Return the normalized RMSE of another loss MSE, of the same samples as the plan's loss MSE."""
    return plan.nrmse * math.sqrt(loss_mse / plan.loss_mse) if plan.nrmse and plan.loss_mse else 0.0


def percent(part: float, whole: float) -> float:
    """Return a part in percent of the whole; 0 where the whole is 0."""
    return 100.0 * part / whole if whole else 0.0


def span(ends: tuple[float, float], form: str = ".3g") -> str:
    """Format the two ends of an interval, each with a format specification.

    Example:
        >>> span((0.0015, 0.0028))
        '0.0015 to 0.0028'
    """
    return f"{ends[0]:{form}} to {ends[1]:{form}}"


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
        configuration = tuple(plan.formats[op] for op in group.ops)
        gain = group.gain[group.configurations.index(configuration)]
        lowered = [op for op in group.ops if plan.formats[op] != plan.base]
        shares.update({op: gain / len(lowered) for op in lowered})
    return shares
