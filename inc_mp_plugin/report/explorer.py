"""The plans along the exact frontier, for a slider over the map of a plan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from inc_mp_plugin.core.cost_model import CostModel
from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.frontier import Frontier
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.numbers import rounded_up
from inc_mp_plugin.core.plans_along import PlansAlong
from inc_mp_plugin.report.artefacts import RunArtefacts
from inc_mp_plugin.report.blocks import CellState, Explorer, ExplorerPoint
from inc_mp_plugin.report.text import amount, percent, places, span

Key = tuple[str, str]  # layer and column of a cell
_NAMES = {"kl": "KL divergence, nats per token", "loss": "NRMSE of the loss"}


def explorer(run: RunArtefacts) -> Explorer | None:
    """Arrange the plans along the frontier of the plan's objective; None where they are not known."""
    frontier = (run.frontiers or {}).get(run.plan.objective)
    if frontier is None or frontier.plans is None or len(frontier.curves[0].gain) < 2:
        return None
    where, along = places(list(run.plan.formats)), frontier.plans
    gains = frontier.curves[0].gain
    start = min(range(len(gains)), key=lambda k: abs(gains[k] - run.plan.gain))
    labels = {op: f"layer {layer} {column}" if layer else column for op, (layer, column) in where.items()}
    return Explorer(
        _NAMES[frontier.yardstick].partition(",")[0],
        tuple(_point(run, frontier, k) for k in range(len(gains))),
        _cells(run.losses, frontier, where),
        {where[op]: label for op, label in labels.items() if op in along.changes},
        start,
    )


def _point(run: RunArtefacts, frontier: Frontier, k: int) -> ExplorerPoint:
    exact, shown = frontier.curves[0], frontier.threshold
    cost, lowered = exact.loss_mse[k], frontier.plans.lowered(k) if frontier.plans else {}
    needed = max(exact.needed[k], cost) if exact.needed else cost
    key = "kl" if frontier.yardstick == "kl" else "tau"
    share = percent(exact.gain[k], frontier.largest_gain)
    figures = {
        f"gain: {frontier.objective}": f"{amount(exact.gain[k], frontier.unit)}, {share:.1f} %",
        "ops lowered": f"{exact.ops[k]} of {len(run.plan.formats)}",
        f"{_NAMES[frontier.yardstick]}, predicted": f"{shown(cost):.3g}",
        "its interval": span((shown(exact.low[k]), shown(exact.high[k]))),
        **_beside(run.losses, frontier, k),
        **_other_gains(run, frontier, lowered),
    }
    shift = _shift(run.losses, frontier, lowered)
    # A threshold that is held with confidence would allow a smaller plan than this one.
    exactly = "" if run.recipe.get("confidence") is None else " confidence=null"
    command = f"inc-mp solve {run.folder} {key}={rounded_up(shown(needed))}{exactly}" if needed else ""
    return ExplorerPoint(figures, cost, shift, command)


def _beside(costs: Costs, frontier: Frontier, k: int) -> dict[str, str]:
    """Give what a plan costs by the other yardstick, if that was measured."""
    if not frontier.beside:
        return {}
    if frontier.yardstick == "loss":
        return {f"{_NAMES['kl']}, predicted": f"{frontier.beside[k]:.3g}"}
    nrmse = (frontier.beside[k] / costs.measured_loss.loss_ms) ** 0.5
    return {f"{_NAMES['loss']}, predicted": f"{nrmse:.3g}"}


def _other_gains(run: RunArtefacts, frontier: Frontier, lowered: Mapping[str, str]) -> dict[str, str]:
    """Give what a plan gains by each other objective, where its combinations of formats have gains."""
    figures = {}
    for name, gains in run.gains.items():
        formats = {op: lowered.get(op, gains.base) for op in run.plan.formats}
        total = gains.total(formats) if name != frontier.objective and gains.largest > 0 else None
        if total is not None:
            share = percent(total[0], gains.largest)
            figures[f"gain: {name}"] = f"{amount(total[0], gains.unit)}, {share:.1f} % ({gains.source})"
    return figures


def _shift(costs: Costs, frontier: Frontier, lowered: Mapping[str, str]) -> float:
    """Return the shift S of the mean loss; 0 for a KL divergence."""
    model = costs.by(frontier.yardstick)
    if not isinstance(model, LossModel):
        return 0.0
    shifts = {name: model.shifts(name) for name in set(lowered.values())}
    return model.cache_shift + sum(shifts[name][op] for op, name in lowered.items())


def _cells(costs: Costs, frontier: Frontier, where: Mapping[str, Key]) -> dict[Key, tuple[CellState, ...]]:
    """Follow each cell of the map along the frontier; experts that share one are added up."""
    along = frontier.plans or PlansAlong(("",), {})
    prices = _Prices(costs.by(frontier.yardstick), along.formats[0])
    members: dict[Key, list[str]] = defaultdict(list)
    for op in along.changes:
        members[where[op]].append(op)
    return {key: tuple(_states(along, prices, ops)) for key, ops in members.items()}


class _Prices:
    """Costs and shifts of ops in formats; 0 in the base format."""

    def __init__(self, model: CostModel, base: str) -> None:
        self._model, self._base = model, base
        self._known: dict[str, tuple[Mapping[str, float], Mapping[str, float]]] = {}

    def of(self, op: str, name: str) -> tuple[float, float]:
        if name == self._base:
            return 0.0, 0.0
        if name not in self._known:
            model = self._model
            self._known[name] = model.costs(name), model.shifts(name) if isinstance(model, LossModel) else {}
        costs, shifts = self._known[name]
        return costs[op], shifts.get(op, 0.0)


def _states(along: PlansAlong, prices: _Prices, ops: list[str]) -> list[CellState]:
    now = dict.fromkeys(ops, along.formats[0])
    states = []
    changes = sorted((point, op, name) for op in ops for point, name in along.steps(op))
    for number, (point, op, name) in enumerate(changes):
        now[op] = name
        if number + 1 < len(changes) and changes[number + 1][0] == point:
            continue
        lowered = {op: name for op, name in now.items() if name != along.formats[0]}
        parts = [prices.of(op, name) for op, name in lowered.items()]
        cost, shift = (sum(part) for part in zip(*parts, strict=True)) if parts else (0.0, 0.0)
        states.append(CellState(point, len(lowered), cost, shift))
    return states
