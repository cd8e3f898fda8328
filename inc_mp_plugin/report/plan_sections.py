"""Sections on the plan itself: what it does, where, and what it spends."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.core.results import EXCEEDED, HELD, Measured, Stability, verdict
from inc_mp_plugin.report.blocks import (
    Bars,
    Block,
    MapCell,
    MapGrid,
    Missing,
    PlanMap,
    Section,
    Table,
    Tile,
    Tiles,
)
from inc_mp_plugin.report.found import Found
from inc_mp_plugin.report.measured import without_cache
from inc_mp_plugin.report.text import NO_TAU, Cell, PlanTable, amount, nrmse_of, plan_table, threshold

_TOP = 12
_LONGEST = 30  # characters of a label in a chart


def headline(found: Found) -> Section:
    """Make the section on what the plan does, with its key figures."""
    plan = found.plan
    share = 100.0 * plan.gain / plan.largest_gain if plan.largest_gain else 0.0
    low, high = (nrmse_of(plan, end) for end in plan.interval)
    lowered = ", ".join(sorted(set(plan.lowered.values()))) or "a lower format"
    tiles = (
        Tile(
            "Ops lowered", f"{len(plan.quantized)} of {len(plan.formats)}", f"to {lowered} from {plan.base}"
        ),
        Tile(
            f"Gain: {plan.objective}", amount(plan.gain, plan.unit), f"{share:.1f} % of the largest there is"
        ),
        Tile(
            "NRMSE of the loss, predicted",
            f"{plan.nrmse:.3g}",
            f"{100 * plan.confidence:g} % interval {low:.3g} to {high:.3g}",
        ),
        _measured_tile(found),
        _tau_tile(found),
    )
    return Section("plan", "The plan", (Tiles(tiles), *table_of(found).summary))


def measured_nrmse(found: Found) -> tuple[Measured, int] | None:
    """Return the plan's NRMSE on held-out samples and their number; None if it was not measured."""
    seen = found.validation
    if seen is not None:
        return Measured(seen.nrmse, seen.nrmse_interval), seen.samples
    loop, plan = found.verification, found.plan
    if loop is not None and (loop.correction, loop.rounds[loop.chosen].gain) == (plan.correction, plan.gain):
        chosen = loop.rounds[loop.chosen]
        return Measured(chosen.measured_nrmse, chosen.interval), loop.samples
    return None


def _measured_tile(found: Found) -> Tile:
    measured = measured_nrmse(found)
    if measured is None:
        return Tile("NRMSE of the loss, measured", "–", f"run `inc-mp validate {found.folder}`")
    without = ", without the KV cache in FP8" if without_cache(found.plan) else ""
    (nrmse, interval), samples = (measured[0].nrmse, measured[0].interval), measured[1]
    ends = f"interval {interval.low:.3g} to {interval.high:.3g}, " if interval else ""
    note = f"{ends}through INC, {samples} held-out samples{without}"
    return Tile("NRMSE of the loss, measured", f"{nrmse:.3g}", note)


def _tau_tile(found: Found) -> Tile:
    measured, tau = None if without_cache(found.plan) else measured_nrmse(found), found.plan.tau
    if threshold(found.plan) == NO_TAU:
        return Tile("Threshold tau", "–", "the plan was asked for a gain")
    if measured is not None:
        said = verdict(measured[0].interval, tau)
        colour = {HELD: "good", EXCEEDED: "bad"}.get(said, "")
        return Tile("Threshold tau", f"{tau:.4g}", f"{said}, as measured", colour)
    within = found.plan.nrmse <= tau
    note = f"{'within' if within else 'above'} it by the prediction, not measured"
    return Tile("Threshold tau", f"{tau:.4g}", note, "" if within else "bad")


def plan_map(table: PlanTable) -> Section:
    """Make the section with the map: layers down, ops across; then the ops outside of layers."""
    caption = (
        "Which ops run in a lower format? In their cells: share of the loss budget and, below it, share of "
        "the largest gain, in %. The stronger the colour, the more of the loss budget; a dot is the "
        "base format."
    )
    layers = [layer for layer in table.rows if layer]
    columns = tuple(c for c in table.columns if any(c in table.rows[layer] for layer in layers))
    largest = max((cell.loss_percent for row in table.rows.values() for cell in row.values()), default=0.0)

    def cells(layer: str, names: Iterable[str]) -> tuple[MapCell | None, ...]:
        row = table.rows[layer]
        return tuple(_cell(table, layer, c, row[c], largest) if c in row else None for c in names)

    grids = [MapGrid("layer", columns, tuple((layer, cells(layer, columns)) for layer in layers))]
    outside = tuple((name, cells("", [name])) for name in table.rows.get("", {}))
    grids.append(MapGrid("op outside of layers" if layers else "op", ("plan",), outside))
    shown = tuple(grid for grid in grids if grid.rows)
    return Section("map", "Layers and ops", (PlanMap("plan", caption, table, shown),))


def _cell(table: PlanTable, layer: str, column: str, cell: Cell, largest: float) -> MapCell:
    name = _whole_label(layer, column)
    if cell.format not in table.lower:
        return MapCell("", "·", "", f"{name}: {cell.format}", 0)
    loss, gain = f"{cell.loss_percent:.1f}", f"{cell.gain_percent:.1f}"
    note = f"{name}: {cell.format}, {loss} % of the loss budget, {gain} % of the largest gain"
    level = 1 + min(3, int(4.0 * math.sqrt(max(0.0, cell.loss_percent) / largest))) if largest else 1
    return MapCell(cell.format if len(table.lower) > 1 else "", loss, gain, note, level)


def budget(found: Found, table: PlanTable) -> Section:
    """Make the section on the ops and the kinds of op that the loss budget goes to."""
    cells = {
        _label(layer, column): cell.loss_percent
        for layer, row in table.rows.items()
        for column, cell in row.items()
        if cell.format in table.lower
    }
    if not cells:
        return Section("budget", "Where the loss budget goes", ("No op is lowered, so none is spent.",))
    kinds: dict[str, list[float]] = defaultdict(list)
    for row in table.rows.values():
        for column, cell in row.items():
            if cell.format in table.lower:
                kinds[column.rsplit(".", 1)[-1]].append(cell.loss_percent)
    spent = math.fsum([*cells.values(), table.cache_percent])
    by_kind = {f"{kind} ({len(shares)})": math.fsum(shares) for kind, shares in kinds.items()}
    by_kind |= {"KV cache in FP8": table.cache_percent} if table.cache_percent else {}
    unused = (("not used", 100.0 - spent, f"{100.0 - spent:.1f}"),) if spent < 99.95 else ()
    top = _largest(cells)
    blocks: list[Block] = [
        f"{spent:.1f} % of the loss budget is spent, {max(0.0, 100.0 - spent):.1f} % is left. "
        f"The {len(top)} most expensive of {len(cells)} lowered ops take "
        f"{math.fsum(share for _, share, _ in top):.1f} %.",
        Bars(
            "budget-kinds",
            "Which kinds of op take the loss budget? In brackets: how many are lowered.",
            "share of the loss budget, %",
            (*_largest(by_kind), *unused),
        ),
        Bars("budget-ops", "Which single ops take most of it?", "share of the loss budget, %", top),
    ]
    return Section("budget", "Where the loss budget goes", tuple(blocks))


def _whole_label(layer: str, column: str) -> str:
    return f"layer {layer} {column}" if layer else column


def _label(layer: str, column: str) -> str:
    whole = _whole_label(layer, column)
    return whole if len(whole) <= _LONGEST else "…" + whole[1 - _LONGEST :]


def _largest(shares: Mapping[str, float]) -> tuple[tuple[str, float, str], ...]:
    chosen = sorted(shares.items(), key=lambda item: (-item[1], item[0]))[:_TOP]
    return tuple((label, share, f"{share:.1f}") for label, share in chosen)


def uncertainty(found: Found) -> Section:
    """Make the section on whether other samples would have given another plan."""
    seen, plan = found.stability, found.plan
    lines: list[Block] = [_verdict(seen, plan, len(found.losses.loss))]
    if seen.doubtful:
        rows = tuple((op, plan.formats[op], f"{100 * seen.changed[op]:.0f}") for op in seen.doubtful)
        caption = "Doubtful ops: those of another format in more than a fifth of the draws."
        lines.append(
            Table(caption, ("op", "format in the plan", "another format in, % of draws"), rows, left=2)
        )
    return Section("uncertainty", "Would more samples change the plan?", tuple(lines))


def _verdict(seen: Stability, plan: Plan, samples: int) -> str:
    low, high = amount(seen.gain_low, plan.unit), amount(seen.gain_high, plan.unit)
    start = f"Planned again from {seen.draws} redrawn sets of the {samples} samples,"
    if not seen.changed:
        return f"{start} the plan stays the same: more samples would hardly change it."
    return (
        f"{start} the gain is {low} to {high} (the plan: {amount(seen.gain, plan.unit)}), and "
        f"{len(seen.doubtful)} of {len(plan.formats)} ops change their format in more than a fifth of them. "
        + ("More samples would settle these." if seen.doubtful else "More samples would change little.")
    )


def table_of(found: Found) -> PlanTable:
    """Arrange the plan by layer and op."""
    return plan_table(found.plan, found.gains[found.plan.objective], found.losses)


def missing(found: Found, stem: str, what: str, command: str) -> Missing:
    """Say that an artefact is missing, or why it is not shown, and what makes it.

    Args:
        found: tells which artefacts are outdated, and why.
        stem: name of the artefact's file, without its ending.
        what: name of the artefact in the sentence.
        command: that makes it.
    """
    why = found.outdated.get(stem)
    text = f"{what}: {why}." if why else f"{what}: not made yet."
    return Missing(text, command)
