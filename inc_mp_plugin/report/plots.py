"""Figures. Each takes a value of `info` and only draws; matplotlib is the extra `report`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inc_mp_plugin.measurements import TimeValidation
from inc_mp_plugin.report.info import Cell, PlanTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Values = tuple[list[float], list[float] | None]

# Blue and grey differ in lightness too, so that they are told apart without seeing colours.
_LOW, _BASE = "#1f5fa8", "#e3e6ea"


def plan_figure(table: PlanTable, title: str) -> Figure:
    """Draw a plan as a map: layers down, ops across; in low-precision cells their loss shares."""
    from matplotlib.figure import Figure

    layers = [layer for layer in table.rows if layer]
    columns = [c for c in table.columns if any(c in table.rows[layer] for layer in layers)]
    rows = {f"layer {layer}": [table.rows[layer].get(c) for c in columns] for layer in layers}
    # An op outside of layers has a row of its own, and fills its first place.
    rows |= {name: [cell] for name, cell in table.rows.get("", {}).items()}
    size = (1.6 + 0.95 * len(columns), 1.5 + 0.36 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    for y, cells in enumerate(rows.values()):
        for x, cell in enumerate(cells):
            if cell is not None:
                _draw_cell(axes, x, y, cell, low=cell.format in table.lower)
    axes.set(xlim=(0, max(len(columns), 1)), ylim=(len(rows), 0))
    axes.set_xticks([x + 0.5 for x in range(len(columns))], columns, rotation=30, ha="right")
    axes.set_yticks([y + 0.5 for y in range(len(rows))], list(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10)
    legend = f"blue: {' or '.join(table.lower)}, and its share of the loss budget in %; grey: base format"
    axes.set_xlabel(legend)
    return figure


def time_figure(validation: TimeValidation) -> Figure:
    """Draw whether time adds up: plans over their groups, and groups over their ops and their MACs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    plans, groups = [plan for plan in validation.plans if plan.quantized], validation.groups
    predicted = ([1e3 * p.predicted_s for p in plans], [2e3 * p.predicted_stderr_s for p in plans])
    measured = ([1e3 * p.measured_s for p in plans], [2e3 * p.measured_stderr_s for p in plans])
    _scatter(left, predicted, measured, "whole plans: sum of their groups, ms")
    times = ([1e3 * g.measured_s for g in groups], [2e3 * g.stderr_s for g in groups])
    alone = ([1e3 * g.sum_of_ops_s for g in groups], None)
    _scatter(middle, alone, times, "one group: sum of its ops alone, ms")
    right.errorbar([g.macs / 1e6 for g in groups], times[0], times[1], fmt="o", color=_LOW, capsize=2)
    right.set_xlabel("one group: million MACs per sample")
    left.set_ylabel("time saved, measured, ms")
    figure.suptitle(f"{validation.description}; bars: two standard errors; line: measured = sum", fontsize=9)
    return figure


def _scatter(axes: Axes, x: Values, y: Values, label: str) -> None:
    axes.errorbar(x[0], y[0], y[1], x[1], fmt="o", color=_LOW, capsize=2)
    ends = [min([*x[0], *y[0], 0.0]), max([*x[0], *y[0], 0.0])]
    axes.plot(ends, ends, color="#888888", linewidth=1)
    axes.set_xlabel(label)


def _draw_cell(axes: Axes, x: int, y: int, cell: Cell, *, low: bool) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=_LOW if low else _BASE, edgecolor="white"))
    if low:
        text = f"{cell.loss_percent:.1f}"
        axes.text(x + 0.5, y + 0.5, text, color="white", ha="center", va="center", fontsize=9)
