"""Sections on the plan itself: its key figures, its map, its costs, its ties, and its certainty."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial

from inc_mp_plugin.core.plan import Interval, Plan
from inc_mp_plugin.core.verdicts import EXCEEDED, HELD, verdict
from inc_mp_plugin.report.artefacts import RunArtefacts
from inc_mp_plugin.report.blocks import Bars, Blocks, Explorer, MapCell, MapGrid, PlanMap, Table, Tile, Tiles
from inc_mp_plugin.report.everything import everything_text
from inc_mp_plugin.report.measured import changes_text, way, without_cache
from inc_mp_plugin.report.staying import Stay, staying_table
from inc_mp_plugin.report.text import (
    Cell,
    PlanTable,
    amount,
    has_tau,
    nrmse_of,
    percent,
    places,
    span,
    tie_groups,
)

_TOP = 12
_LONGEST = 30  # characters of a label in a chart


def headline(run: RunArtefacts, table: PlanTable) -> Blocks:
    """Make the key figures of the plan, and its summary in sentences."""
    plan = run.plan
    lower = ", ".join(table.lower) or "a lower format"
    share = f"{percent(plan.gain, plan.largest_gain):.1f} % of the largest there is"
    tiles = (
        Tile("Ops lowered", f"{len(plan.quantized)} of {len(plan.formats)}", f"to {lower} from {plan.base}"),
        Tile(f"Gain: {plan.objective}", amount(plan.gain, plan.unit), share),
        *_predicted_tiles(plan),
        *_kl_tiles(run),
        _measured_tile(run),
        _tau_tile(run),
    )
    everything = [] if run.everything is None else [everything_text(run.everything, plan, run.validation)]
    return Tiles(tiles), *table.summary, *everything


def _predicted_tiles(plan: Plan) -> list[Tile]:
    """Make the key figures of the predictions that the plan has."""
    level, tiles = f"{100 * plan.confidence:g} % interval", []
    if plan.predicted_kl is not None:
        interval = f"{level} {span(plan.kl_interval)}" if plan.kl_interval else "too few rows for an interval"
        tiles.append(Tile("KL divergence, predicted", f"{plan.predicted_kl:.3g}", interval))
    if plan.nrmse is not None and plan.interval is not None:
        ends = nrmse_of(plan, plan.interval.low), nrmse_of(plan, plan.interval.high)
        tiles.append(Tile("NRMSE of the loss, predicted", f"{plan.nrmse:.3g}", f"{level} {span(ends)}"))
    return tiles


def _kl_tiles(run: RunArtefacts) -> list[Tile]:
    """Make the key figures of the measured KL divergence and of its threshold, if there are any."""
    validation, limit, tiles = run.validation, run.plan.kl, []
    point = None if validation is None else validation.plan.kl
    if validation is not None and point is not None:
        ends = f"interval {span(point.measured_interval)}, " if point.measured_interval else ""
        tiles.append(Tile("KL divergence, measured", f"{point.measured:.3g}", f"{ends}{changes_text(point)}"))
    if limit is None:
        return tiles
    if validation is not None and point is not None and not without_cache(run.plan):
        judged = validation.kl_verdict
        colour = {HELD: "good", EXCEEDED: "bad"}.get(judged, "")
        return [*tiles, Tile("Threshold kl", f"{limit:.4g}", f"{judged}, as measured", colour)]
    place, colour = ("within", "") if (run.plan.predicted_kl or 0.0) <= limit else ("above", "bad")
    return [
        *tiles,
        Tile("Threshold kl", f"{limit:.4g}", f"{place} it by the prediction, not measured", colour),
    ]


def _measured_nrmse(run: RunArtefacts) -> tuple[float, Interval | None, int, str] | None:
    """Return the plan's NRMSE on held-out samples, its interval, their number, and what lowered the ops.

    None if it was not measured.
    """
    validation, loop, plan = run.validation, run.verification, run.plan
    if validation is not None:
        through = way(validation.through, plan.targets)
        return validation.nrmse, validation.nrmse_interval, validation.samples, through
    if loop is None:
        return None
    choice = loop.rounds[loop.chosen]
    if (choice.correction, choice.gain) != (plan.correction, plan.gain):
        return None
    return choice.measured_nrmse, choice.interval, loop.samples, way(loop.through, plan.targets)


def _measured_tile(run: RunArtefacts) -> Tile:
    label, measured = "NRMSE of the loss, measured", _measured_nrmse(run)
    if measured is None:
        return Tile(label, "–", f"run `{run.how_to('inc-mp validate', 'validation=heldout')}`")
    nrmse, interval, samples, way = measured
    without = ", without the KV cache in FP8" if without_cache(run.plan) else ""
    ends = f"interval {span(interval)}, " if interval else ""
    return Tile(label, f"{nrmse:.3g}", f"{ends}through {way}, {samples} held-out samples{without}")


def _tau_tile(run: RunArtefacts) -> Tile:
    label, tau = "Threshold tau", run.plan.tau
    if tau is None or not has_tau(run.plan):
        return Tile(
            label, "–", "the plan was asked for a gain" if run.plan.kl is None else "the plan is held to kl"
        )
    measured = None if without_cache(run.plan) else _measured_nrmse(run)
    if measured is not None:
        judged = verdict(measured[1], tau)
        colour = {HELD: "good", EXCEEDED: "bad"}.get(judged, "")
        return Tile(label, f"{tau:.4g}", f"{judged}, as measured", colour)
    place, colour = ("within", "") if (run.plan.nrmse or 0.0) <= tau else ("above", "bad")
    return Tile(label, f"{tau:.4g}", f"{place} it by the prediction, not measured", colour)


def plan_map(
    table: PlanTable, plan: Plan, stays: Mapping[str, Stay], along: Explorer | None = None
) -> Blocks:
    """Make the map: layers down, ops across; then the ops outside of layers, and why ops stay.

    Args:
        table: the plan, arranged.
        plan: the same plan.
        stays: why ops stay in the base format, by op.
        along: the plans along the frontier, if they are known.
    """
    below = "" if table.is_deep else " and, below it, share of the largest gain"
    caption = (
        f"Which ops run in a lower format? In their cells: share of the allowance{below}, in %. The stronger "
        "the colour, the more of the allowance; a dot is the base format. More of each op is on hover."
    )
    where = places(list(plan.formats))
    largest = max((cell.loss_percent for cell in table.cells), default=0.0)
    notes = {where[op]: stay.text for op, stay in stays.items()}
    on_map = partial(_map_cell, table, largest, notes)
    layers = tuple((layer, tuple(map(on_map, cells))) for layer, cells in table.layers.items())
    outside = tuple((cell.column, (on_map(cell),)) for cell in table.outside)
    grids = (
        MapGrid("layer", table.columns, layers),
        MapGrid("op outside of layers" if layers else "op", ("plan",), outside),
    )
    whole = PlanMap("plan", caption, table, tuple(grid for grid in grids if grid.rows), along)
    return (whole, staying_table(stays, plan.base)) if stays else (whole,)


def _map_cell(
    table: PlanTable, largest: float, notes: Mapping[tuple[str, str], str], cell: Cell | None
) -> MapCell | None:
    if cell is None:
        return None
    key = cell.layer, cell.column
    if not cell.lowered:
        why = notes.get(key)
        return MapCell("", "·", "", f"{cell.label}: {cell.format}{f', {why}' if why else ''}", 0, key)
    form = ".2f" if table.is_deep else ".1f"
    loss, gain = f"{cell.loss_percent:{form}}", f"{cell.gain_percent:{form}}"
    note = f"{cell.label}: {cell.format}, {loss} % of the allowance, {gain} % of the largest gain"
    level = 1 + min(3, int(4.0 * math.sqrt(max(0.0, cell.loss_percent) / largest))) if largest else 1
    second = "" if table.is_deep else gain
    return MapCell(cell.format if len(table.lower) > 1 else "", loss, second, note, level, key)


def budget(table: PlanTable) -> Blocks:
    """Make the text and the charts of the ops and the kinds of op that the allowance goes to."""
    cells = [cell for cell in table.cells if cell.lowered]
    if not cells:
        return ("No op is lowered, so none is spent.",)
    kinds: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        kinds[cell.column.rsplit(".", 1)[-1]].append(cell.loss_percent)
    spent = math.fsum([*(cell.loss_percent for cell in cells), table.cache_percent])
    by_kind = [(f"{kind} ({len(shares)})", math.fsum(shares)) for kind, shares in kinds.items()]
    by_kind += [("KV cache in FP8", table.cache_percent)] if table.cache_percent else []
    unused = (("not used", 100.0 - spent, f"{100.0 - spent:.1f}"),) if spent < 99.95 else ()
    top = _largest((_short(cell.label), cell.loss_percent) for cell in cells)
    label = "share of the allowance, %"
    return (
        f"{spent:.1f} % of the allowance is spent, {max(0.0, 100.0 - spent):.1f} % is left. "
        f"The {len(top)} most expensive of {len(cells)} lowered ops take "
        f"{math.fsum(share for _, share, _ in top):.1f} %.",
        Bars(
            "budget-kinds",
            "Which kinds of op take the allowance? In brackets: how many are lowered.",
            label,
            (*_largest(by_kind), *unused),
        ),
        Bars("budget-ops", "Which single ops take most of it?", label, top),
    )


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else "…" + label[1 - _LONGEST :]


def _largest(shares: Iterable[tuple[str, float]]) -> tuple[tuple[str, float, str], ...]:
    largest = sorted(shares, key=lambda item: (-item[1], item[0]))[:_TOP]
    return tuple((label, share, f"{share:.1f}") for label, share in largest)


def ties(run: RunArtefacts) -> Blocks:
    """Make the text and the table of the ties of the plan, by reason; nothing for a plan without targets."""
    plan, serving = run.plan, run.plan.serving
    if not plan.targets:
        return ()
    text = (
        f"The plan is one that {', '.join(plan.targets)} can run, with kv_cache {serving.kv_cache}, "
        f"attention {serving.attention} and reuse_cache {str(serving.reuse_cache).lower()}."
    )
    rows = []
    for why, group, cost in tie_groups(plan):
        lowered = sum(plan.formats[tie.ops[0]] != plan.base for tie in group)
        sizes = ", ".join(map(str, sorted({len(tie.ops) for tie in group})))
        rows.append((why, str(len(group)), sizes, str(lowered), cost))
    caption = "Ops that share one format, and the gain that would come on top if they did not have to."
    columns = ("what ties them", "ties", "ops in each", "of them lowered", "cost")
    tables = (Table(caption, columns, tuple(rows)),) if rows else ()
    return (text, *tables, *(f"{line}." for line in run.held_back))


def uncertainty(run: RunArtefacts) -> Blocks:
    """Make the text on plans from redrawn samples, and the table of the ops that change their format."""
    stability, plan = run.stability, run.plan
    start = (
        f"Planned again from {stability.draws} redrawn sets of the {run.losses.sensitivity.samples} samples,"
    )
    if not stability.changed:
        return (f"{start} the plan stays the same: more samples would hardly change it.",)
    least, most = amount(stability.gain_low, plan.unit), amount(stability.gain_high, plan.unit)
    doubtful = stability.doubtful
    text = (
        f"{start} the gain is {least} to {most} (the plan: {amount(stability.gain, plan.unit)}), and "
        f"{len(doubtful)} of {len(plan.formats)} ops change their format in more than a fifth of them. "
        + ("More samples would settle these." if doubtful else "More samples would change little.")
    )
    rows = tuple((op, plan.formats[op], f"{100 * stability.changed[op]:.0f}") for op in doubtful)
    caption = "Doubtful ops: those of another format in more than a fifth of the draws."
    columns = ("op", "format in the plan", "another format in, % of draws")
    return (text, Table(caption, columns, rows, left=2)) if doubtful else (text,)
