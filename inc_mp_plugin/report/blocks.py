"""The parts of a report: frozen values that `plots` and `html` only draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from inc_mp_plugin.report.text import PlanTable

Values = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """Points of a chart.

    `style` is one of `plots.STYLES`. `y_low` and `y_high` are the ends of intervals of y, drawn as bars or
    as a band along the line; `x_low` and `x_high` are those of x. Series without a label are not in the
    legend.
    """

    label: str
    style: str
    x: Values
    y: Values
    y_low: Values = ()
    y_high: Values = ()
    x_low: Values = ()
    x_high: Values = ()
    band: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Series on two axes; `name` starts the names of its files, `caption` is the question that it answers."""

    name: str
    caption: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    logarithmic_x: bool = False
    logarithmic_y: bool = False


@dataclass(frozen=True, slots=True)
class Bars:
    """Labelled numbers as bars, each with its text."""

    name: str
    caption: str
    x_label: str
    rows: tuple[tuple[str, float, str], ...]


@dataclass(frozen=True, slots=True)
class Strips:
    """Rows of a sequence in which stretches, (start, length), are marked.

    `ticks` are places with their labels; `length` is that of the whole sequence.
    """

    name: str
    caption: str
    x_label: str
    length: int
    ticks: tuple[tuple[int, str], ...]
    rows: tuple[tuple[str, tuple[tuple[int, int], ...]], ...]


@dataclass(frozen=True, slots=True)
class MapCell:
    """One op on the map: its lower format, its shares of allowance and gain in %, and a note in words.

    `level` is 0 in the base format, else 1 to 4 by the share of the allowance; `key` is the cell's place,
    its layer and column.
    """

    format: str
    loss: str
    gain: str
    note: str
    level: int
    key: tuple[str, str]


@dataclass(frozen=True, slots=True)
class MapGrid:
    """Rows of the map: their labels and cells, None where a layer has no such op."""

    head: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MapCell | None, ...]], ...]


@dataclass(frozen=True, slots=True)
class ExplorerPoint:
    """A plan along the frontier: its figures, its cost, the shift of its mean loss, and its command."""

    figures: Mapping[str, str]
    cost: float
    shift: float
    command: str


class CellState(NamedTuple):
    """A cell of the map from a point of the frontier on: its lowered ops, their cost and their shift."""

    point: int
    ops: int
    cost: float
    shift: float


@dataclass(frozen=True, slots=True)
class Explorer:
    """The plans along the frontier: for each point its figures, for each cell of the map its states in turn.

    `start` is the point that is nearest to the plan.
    """

    yardstick: str
    points: tuple[ExplorerPoint, ...]
    cells: Mapping[tuple[str, str], tuple[CellState, ...]]
    labels: Mapping[tuple[str, str], str]
    start: int


@dataclass(frozen=True, slots=True)
class PlanMap:
    """A plan as layers by ops; the ops outside of layers are a grid of their own."""

    name: str
    caption: str
    table: PlanTable
    grids: tuple[MapGrid, ...]
    explorer: Explorer | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text. The first `left` columns are words, the others numbers; `marked` rows stand out."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    marked: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Tile:
    """A key figure; `verdict` is "", "good" or "bad"."""

    label: str
    value: str
    note: str
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Key figures side by side."""

    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to be copied."""

    caption: str
    text: str


@dataclass(frozen=True, slots=True)
class Missing:
    """A note on an artefact that is not there, and the command that makes it."""

    text: str
    command: str


Figure = Chart | Bars | Strips | PlanMap
Block = str | Tiles | Table | Code | Missing | Figure
Blocks = tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report: `key` is its anchor."""

    key: str
    title: str
    blocks: Blocks


@dataclass(frozen=True, slots=True)
class ReportInfo:
    """A whole report."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures, in order."""
        blocks = (block for section in self.sections for block in section.blocks)
        return tuple(block for block in blocks if isinstance(block, Chart | Bars | Strips | PlanMap))
