"""Why an op is where it is in a plan, and which ops are nearest to another format."""

from __future__ import annotations

import math

from inc_mp_plugin.core.knobs import KEY_OF
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.report.blocks import Table
from inc_mp_plugin.report.explained import Explained
from inc_mp_plugin.report.text import NO_THRESHOLD, amount, has_tau, percent, threshold

_NEAREST = 6
_PROGRAM = "ip_mse"


def explain_plan(case: Explained) -> list[Table | str]:
    """Show the dual price of a plan, and the ops that are nearest to another format, in both directions."""
    of, plan = case.margins.of, case.plan
    lowered = sorted(filter(case.is_lowered, of), key=lambda op: (of[op].rate, op))
    staying = [op for op in of if not case.is_lowered(op) and of[op].gain > 0]
    staying.sort(key=lambda op: (-of[op].rate, op))
    tables: list[Table | str] = []
    if lowered:
        tables.append(_table(case, f"Lowered ops that are nearest to going back to {plan.base}:", lowered))
    if staying:
        tables.append(_table(case, f"Ops in {plan.base} that are nearest to being lowered:", staying))
    return [*_of_plan(case), *tables]


def _table(case: Explained, caption: str, ops: list[str]) -> Table:
    plan, rows = case.plan, []
    for op in ops[:_NEAREST]:
        margin, ratio = case.margins.of[op], case.margins.ratio(op)
        entry = "never" if margin.entry is None else case.at(margin.entry)
        price, gain = _share(margin.cost, case.per_percent), percent(margin.gain, plan.largest_gain)
        times = "-" if math.isnan(ratio) else f"{ratio:.3g}"
        rows.append((op, f"{price:.2f}", f"{gain:.2f}", times, entry))
    columns = ("op", "price, % of the allowance", "gain, % of the largest", "gain per price", "lowered from")
    return Table(caption, columns, tuple(rows))


def _of_plan(case: Explained) -> list[str]:
    """Say what is scarce in a plan, and if its strategy minds."""
    plan, price = case.plan, case.margins.price
    lines = []
    if price > 0:
        gain = amount(price * case.per_percent, plan.unit)
        lines.append(
            f"1 % of the allowance is worth {gain} at this plan (its dual price). To first order an op is "
            "lowered if it gains more for its price: gain per price counts in this unit, and 1 is the edge."
        )
    elif plan.gain >= plan.largest_gain:
        lines.append("Nothing is scarce: every op that gains anything is lowered.")
    if plan.kl is not None and has_tau(plan):
        key = KEY_OF[plan.constraint]
        lines.append(
            f"Two thresholds hold ({threshold(plan)}): numbers are of {key} alone, and where the other is "
            f"nearer it may keep an op out. The plan is at kl {plan.predicted_kl or 0.0:.4g} and tau "
            f"{plan.nrmse or 0.0:.4g}."
        )
    if plan.strategy != _PROGRAM:
        lines.append(
            f"The plan is of strategy {plan.strategy}, which weighs no gain against a price; what follows is "
            f"of the exact frontier (strategy={_PROGRAM})."
        )
    return lines


def explain_op(case: Explained, op: str, switched: Plan | None) -> list[str]:
    """Say why an op is where it is: price, gain, what would flip it, and its ties.

    Args:
        case: the plan.
        op: full name of the op.
        switched: the best plan with this op in the other format; None if there is none.
    """
    name = case.plan.formats[op]
    where = f"stays in {name}" if name == case.plan.base else f"is lowered to {name}"
    kind = case.graph.by_name[op].kind
    lines = [f"{op} ({kind}) {where}{_reason(case, op)}."]
    lines += [*_price(case, op), *_flip(case, op), *_switched(case, op, switched)]
    return [*lines, *_beside(case, op), *_of_plan(case)]


def _reason(case: Explained, op: str) -> str:
    if op in case.stays:
        return f": {case.stays[op].text}"
    if op in case.demands.lowered:
        return f": {case.demands.lowered[op]}"
    if op not in case.margins.of:
        return ""
    ratio = case.margins.ratio(op)
    if math.isnan(ratio):
        return ": it gains, and nothing is scarce"
    if ratio >= 1.0:
        return f": it gains {ratio:.3g} times what its price is worth"
    return f": it gains {ratio:.3g} times what its price is worth, and fills what others leave"


def _price(case: Explained, op: str) -> list[str]:
    if op not in case.costs.ops:
        return []
    plan, margin = case.plan, case.margins.of.get(op)
    of_kl = plan.constraint == "kl" or case.costs.loss is None
    unit = "nats per token" if of_kl else "of loss MSE"
    share = case.shares.get(op, 0.0)
    lines = [f"Price: {case.price(op):.3g} {unit}, {share:.2f} % of the allowance ({threshold(plan)})."]
    if margin is not None:
        gain = percent(margin.gain, plan.largest_gain)
        ends = (
            ""
            if not case.per_percent
            else f", for {_share(margin.cost, case.per_percent):.2f} % of the allowance"
        )
        also = "" if not _partners(case, op) else ", with the ops that are tied to it"
        lines.append(f"Gain: {amount(margin.gain, plan.unit)}, {gain:.2f} % of the largest{ends}{also}.")
    return lines


def _flip(case: Explained, op: str) -> list[str]:
    """Say where the exact frontier lowers an op first, and if this plan is beyond."""
    margin, lowered = case.margins.of.get(op), case.is_lowered(op)
    if margin is None:
        return ["It has no other format in any plan of these targets."] if lowered else []
    if margin.entry is None:
        return ["No corner of the exact frontier lowers it, whatever the threshold."]
    beyond = margin.entry.gain <= case.plan.gain
    text = f"The exact frontier lowers it from {case.at(margin.entry)} on"
    if lowered != beyond:
        text += (
            "; here, between two corners, others fill the rest of the allowance better"
            if beyond
            else ("; here, between two corners, it fills the rest of the allowance")
        )
    return [f"{text}."]


def _switched(case: Explained, op: str, switched: Plan | None) -> list[str]:
    if switched is None:
        return []
    plan, other = case.plan, switched.formats[op]
    moved = [name for name in plan.formats if name != op and plan.formats[name] != switched.formats[name]]
    with_it = f"; {len(moved)} other ops would move" if moved else ""
    if threshold(plan) == NO_THRESHOLD:
        is_kl = plan.constraint == "kl"
        values = [p.predicted_kl if is_kl else p.nrmse for p in (switched, plan)]
        of = "a KL divergence" if is_kl else "an NRMSE"
        costs = " instead of ".join(f"{value or 0.0:.4g}" for value in values)
        return [f"With it in {other} all the same, the best plan would have {of} of {costs}{with_it}."]
    gains = " instead of ".join(f"{percent(p.gain, plan.largest_gain):.2f} %" for p in (switched, plan))
    return [f"With it in {other} all the same, the best plan would gain {gains} of the largest{with_it}."]


def _partners(case: Explained, op: str) -> list[str]:
    return [name for tie in case.plan.ties if op in tie.ops for name in tie.ops if name != op]


def _beside(case: Explained, op: str) -> list[str]:
    """Say what an op is tied to, and what runs beside it."""
    plan, lines = case.plan, []
    for tie in plan.ties:
        others = [name for name in tie.ops if name != op]
        if op in tie.ops and others:
            cost = amount(tie.cost, plan.unit)
            lines.append(f"Tied to {', '.join(others)} ({tie.why}), at a cost of {cost}.")
    group = next((group.ops for group in case.gains.groups if op in group.ops), ())
    if len(group) > 1:
        lines.append(f"Its gain is that of a group: {', '.join(group)}.")
    return lines


def _share(cost: float, per_percent: float) -> float:
    return cost / per_percent if per_percent else 0.0
