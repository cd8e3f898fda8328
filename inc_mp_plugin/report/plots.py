"""Figures: each takes a value of `blocks` and only draws it; matplotlib is the extra `report`."""

from __future__ import annotations

import contextlib
import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.report.blocks import Bars, Chart, Figure, PlanMap, Series, Strips, Values
from inc_mp_plugin.report.text import Cell, PlanTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Drawing

# Of text, axes and lines, and of what is behind them; `svg.inline` puts a page's own in their place.
INK, PAPER = "#1b1e23", "#ffffff"
SHADES = ("#8fbfe0", "#2877a9", "#004a7c")
_GREY = "#e3e6ea"
_WIDTH = 4.6  # inches, so that 10 points are still legible on 360 pixels

# Okabe and Ito's colours, those that stand out on white; never without a marker or dashes. Written as
# matplotlib writes them, so that `svg.inline` finds them.
COLORS = {"blue": "#0072b2", "vermilion": "#d55e00", "purple": "#cc79a7", "green": "#009e73"}
_BLUE, _VERMILION, _PURPLE, _GREEN = COLORS.values()
_LINE = {"linestyle": "-", "marker": "o", "markersize": 4.5, "linewidth": 1.6}
STYLES: dict[str, dict[str, Any]] = {
    "ip_mse": {**_LINE, "color": _BLUE, "zorder": 4},
    "prefix": {**_LINE, "color": _VERMILION, "linestyle": "--", "marker": "s"},
    "random": {**_LINE, "color": _PURPLE, "linestyle": ":", "marker": "^"},
    "ends": {**_LINE, "color": _GREEN, "linestyle": "-.", "marker": "v"},
    "practice": {"color": _VERMILION, "linestyle": "none", "marker": "P", "markersize": 8, "zorder": 5},
    "eagl": {**_LINE, "color": _PURPLE, "marker": "v"},
    "alps": {**_LINE, "color": _GREEN, "marker": "D"},
    "equal": {**_LINE, "color": INK, "linestyle": "-.", "marker": "x"},
    "uniform": {"color": _GREEN, "linestyle": "none", "marker": "D", "markersize": 6},
    "prefix_curve": {"color": _VERMILION, "linestyle": "--", "linewidth": 1.4},
    "random_curve": {"color": _PURPLE, "linestyle": ":", "linewidth": 0.8},
    "ends_curve": {"color": _GREEN, "linestyle": "-.", "linewidth": 1.4},
    "practice_curve": {"color": _VERMILION, "linestyle": "none", "marker": "P", "markersize": 8, "zorder": 5},
    "predicted": {**_LINE, "color": _BLUE},
    "measured": {**_LINE, "color": _VERMILION, "linestyle": "--", "marker": "s"},
    "point": {"color": _BLUE, "linestyle": "none", "marker": "o", "markersize": 4.5},
    "random_point": {"color": _PURPLE, "linestyle": "none", "marker": "^", "markersize": 5},
    "plan": {"color": _GREEN, "linestyle": "none", "marker": "*", "markersize": 13, "zorder": 6},
    "knee": {"color": INK, "linestyle": "none", "marker": "d", "markersize": 8, "zorder": 5},
    "reference": {"color": INK, "linestyle": "-", "linewidth": 0.8, "alpha": 0.6},
    "limit": {"color": INK, "linestyle": "-.", "linewidth": 1.2},
}
_OTHER = {**_LINE, "color": INK, "linestyle": "-.", "marker": "v"}

_SETTINGS = {
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "svg.fonttype": "none",
    "legend.frameon": False,
    "errorbar.capsize": 2,
    "text.parse_math": False,  # a $ in a name is a $
}


def render(figure: Figure) -> tuple[bytes, bytes]:
    """Render a figure as PNG and as SVG, both on white.

    Raises:
        InputError: matplotlib is not installed.
    """
    with _settings(figure.name):
        drawn = draw(figure)
        png = _saved(drawn, facecolor=PAPER, format="png", dpi=160)
        drawn.set_layout_engine("none")  # it has laid everything out
        return png, _saved(drawn, facecolor=PAPER, format="svg", metadata={"Date": None})


def draw(figure: Figure) -> Drawing:
    """Draw any figure."""
    if isinstance(figure, PlanMap):
        return plan_figure(figure.table, "")
    if isinstance(figure, Bars):
        return _bars_figure(figure)
    return _strips_figure(figure) if isinstance(figure, Strips) else charts_figure([figure])


def charts_figure(charts: Sequence[Chart], title: str = "") -> Drawing:
    """Draw charts side by side."""
    with _settings(charts[0].name):
        drawn = _new_figure((_WIDTH if len(charts) == 1 else 3.5 * len(charts), 3.7))
        for axes, chart in zip(drawn.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
            _draw_chart(axes, chart)
        legend = drawn.axes[0].get_legend_handles_labels()
        if legend[1]:
            drawn.legend(*legend, loc="outside upper left", ncols=3, columnspacing=1.0, handlelength=1.8)
        if title:
            drawn.suptitle(title, fontsize=9)
    return drawn


def _draw_chart(axes: Axes, chart: Chart) -> None:
    for series in chart.series:
        _draw_series(axes, series)
    if chart.logarithmic_x:
        axes.set_xscale("log")
        _label_decades(axes.xaxis, between=0.8)
    if chart.logarithmic_y:
        axes.set_yscale("log")
        _label_decades(axes.yaxis, between=2.0)
    # Beside a legend of three rows, the axis is as long as so many letters.
    axes.set(xlabel=chart.x_label, ylabel=textwrap.fill(chart.y_label, 30))
    axes.grid(visible=True)


def _label_decades(axis: Axis, between: float) -> None:
    """Write the labels of a logarithmic axis in plain text.

    There are labels between the decades too, if the axis spans at most `between` decades.
    """
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter(LogFormatter(labelOnlyBase=False))
    axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(between, 0.3)))


def _draw_series(axes: Axes, series: Series) -> None:
    style = STYLES.get(series.style, _OTHER)
    if series.band:
        ends = series.y_low, series.y_high
        axes.fill_between(series.x, *ends, color=style["color"], alpha=0.18, linewidth=0)
    axes.errorbar(
        series.x,
        series.y,
        None if series.band else _ends(series.y, series.y_low, series.y_high),
        _ends(series.x, series.x_low, series.x_high),
        label=series.label or None,
        elinewidth=0.9,
        **style,
    )


def _ends(middle: Values, lower: Values, upper: Values) -> list[list[float]] | None:
    """Compute the lengths of error bars, none negative, as matplotlib wants them; None without ends."""
    if not lower:
        return None
    below = [max(0.0, m - end) for m, end in zip(middle, lower, strict=True)]
    return [below, [max(0.0, end - m) for m, end in zip(middle, upper, strict=True)]]


def _bars_figure(bars: Bars) -> Drawing:
    drawn = _new_figure((_WIDTH, 0.8 + 0.27 * len(bars.rows)))
    axes = drawn.add_subplot()
    places = range(len(bars.rows))
    drawn_bars = axes.barh(places, [value for _, value, _ in bars.rows], height=0.72, color=_BLUE)
    axes.bar_label(drawn_bars, [text for _, _, text in bars.rows], padding=3)
    axes.set_yticks(places, [label for label, _, _ in bars.rows])
    axes.set(xlabel=bars.x_label, ylim=(len(bars.rows) - 0.4, -0.6))
    axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)
    return drawn


def _strips_figure(strips: Strips) -> Drawing:
    drawn = _new_figure((_WIDTH, 0.8 + 0.32 * len(strips.rows)))
    axes = drawn.add_subplot()
    for place, (_, runs) in enumerate(strips.rows):
        axes.broken_barh([(0, strips.length)], (place - 0.08, 0.16), facecolor=INK, alpha=0.3)
        axes.broken_barh(list(runs), (place - 0.36, 0.72), facecolor=_BLUE)
    axes.set_yticks(range(len(strips.rows)), [label for label, _ in strips.rows])
    ticks = strips.ticks[:: max(1, -(-len(strips.ticks) // 12))]
    axes.set_xticks([place for place, _ in ticks], [label for _, label in ticks])
    axes.set(xlabel=strips.x_label, xlim=(0, strips.length), ylim=(len(strips.rows) - 0.4, -0.6))
    axes.tick_params(axis="y", length=0)
    return drawn


def plan_figure(table: PlanTable, title: str) -> Drawing:
    """Draw a plan as a map: layers down, ops across; a lowered op shows its share of the allowance in %.

    The layers of a deep model run across instead, and shares are shades: so many numbers are for the page.
    """
    if table.is_deep:
        return _deep_figure(table, title)
    columns, rows = table.columns, {f"layer {layer}": cells for layer, cells in table.layers.items()}
    # An op outside of layers has a row of its own, and fills its first place.
    rows |= {cell.column: (cell,) for cell in table.outside}
    figure = _new_figure((1.6 + 0.95 * max(len(columns), 4), 1.5 + 0.36 * len(rows)))
    axes = figure.add_subplot()
    for y, cells in enumerate(rows.values()):
        for x, cell in enumerate(cells):
            if cell is not None:
                _draw_cell(axes, x, y, cell)
    axes.set(xlim=(0, max(len(columns), 1)), ylim=(len(rows), 0))
    axes.set_xticks([x + 0.5 for x in range(len(columns))], columns, rotation=30, ha="right")
    axes.set_yticks([y + 0.5 for y in range(len(rows))], list(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10)
    lower = " or ".join(table.lower) or "lower format"
    axes.set_xlabel(f"blue: {lower}, and its share of the allowance in %; grey: base format")
    return figure


def _deep_figure(table: PlanTable, title: str) -> Drawing:
    """Draw a map of many layers: layers across, ops down, the ops outside of layers in the last rows."""
    from matplotlib.patches import Patch, Rectangle

    labels = (*table.columns, *(cell.column for cell in table.outside))
    by_layer = [(x, y, c) for x, cells in enumerate(table.layers.values()) for y, c in enumerate(cells)]
    below = [(0, len(table.columns) + y, cell) for y, cell in enumerate(table.outside)]
    figure = _new_figure((1.6 + 0.12 * len(table.layers), 1.4 + 0.3 * len(labels)))
    axes = figure.add_subplot()
    largest = max((cell.loss_percent for cell in table.cells if cell.lowered), default=0.0)
    for x, y, cell in [*by_layer, *below]:
        if cell is not None:
            shade = _shade(cell, largest)
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=shade, edgecolor="white", linewidth=0.5))
    axes.set(xlim=(0, len(table.layers)), ylim=(len(labels), 0))
    every = range(0, len(table.layers), 10)
    axes.set_xticks([x + 0.5 for x in every], [list(table.layers)[x] for x in every])
    axes.set_yticks([y + 0.5 for y in range(len(labels))], labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(f"layer; blue: {' or '.join(table.lower) or 'lower format'}, grey: base format")
    ends = [largest * (step + 1) / len(SHADES) for step in range(len(SHADES))]
    keys = [Patch(color=c, label=f"up to {end:.2g} %") for c, end in zip(SHADES, ends, strict=True)]
    figure.legend(handles=keys, loc="outside upper right", ncols=3, title="share of the allowance")
    return figure


def _shade(cell: Cell, largest: float) -> str:
    """Choose the colour of a cell: grey in the base format, else a blue by its part of the largest share."""
    if not cell.lowered:
        return _GREY
    part = cell.loss_percent / largest if largest else 0.0
    return SHADES[min(len(SHADES) - 1, max(0, math.ceil(len(SHADES) * part) - 1))]


def _draw_cell(axes: Axes, x: int, y: int, cell: Cell) -> None:
    from matplotlib.patches import Rectangle

    # Blue and grey differ in lightness too, so that nobody needs to see colours to tell one from the other.
    color = "#1f5fa8" if cell.lowered else _GREY
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=color, edgecolor="white"))
    if cell.lowered:
        text = f"{cell.loss_percent:.1f}"
        axes.text(x + 0.5, y + 0.5, text, color="white", ha="center", va="center", fontsize=9)


def _new_figure(size: tuple[float, float]) -> Drawing:
    drawn: Drawing = _matplotlib().figure.Figure(figsize=size, layout="constrained")
    return drawn


def _matplotlib() -> ModuleType:
    try:
        import matplotlib.figure
    except ModuleNotFoundError:
        message = 'figures need matplotlib: pip install "inc_mp_plugin[report]"'
        raise InputError(message) from None
    return matplotlib


@contextlib.contextmanager
def _settings(name: str) -> Iterator[None]:
    """Hold matplotlib to our look, and to ids that follow from the figure's name."""
    with _matplotlib().rc_context({**_SETTINGS, "svg.hashsalt": name}):
        yield


def _saved(drawn: Drawing, **options: Any) -> bytes:
    buffer = io.BytesIO()
    drawn.savefig(buffer, **options)
    return buffer.getvalue()
