"""Runs with the plans along their frontier, and their pages."""

import numpy as np
from report_case import artefacts

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.core.sensitivity import Drift, Sensitivity
from inc_mp_plugin.report.document import report_info
from inc_mp_plugin.report.html import page
from inc_mp_plugin.report.plots import render
from inc_mp_plugin.report.svg import inline
from inc_mp_plugin.solver.frontier import frontier
from inc_mp_plugin.solver.planner import solve

LOW = "fp8_e4m3"
COLUMNS = ("q", "k", "v", "o", "gate", "up", "down", "qk", "av")


def run_of(layers, yardstick="kl", points=100, experts=0, **changes):
    """A model of so many layers, and its frontier, of random costs."""
    draw = np.random.default_rng(0)
    inner = [*COLUMNS, *(f"experts.{i}.up" for i in range(experts))]
    ops = tuple(f"m.layers.{i}.{column}" for i in range(layers) for column in inner)
    groups = tuple(
        GroupGains((op,), (("bf16",), (LOW,)), (0.0, float(draw.integers(1, 9))), (0.0, 0.0)) for op in ops
    )
    gains = Gains("memory", "byte", "exact", "bf16", groups)
    rows = draw.lognormal(0.0, 1.0, (8, len(ops)))
    costs = Costs(
        Sensitivity(
            ops,
            np.ones(8),
            rows,
            np.zeros_like(rows),
            measured_drift=Drift(3.0, 0.1),
            **({"yardstick": "kl", "tokens": np.ones(8), "sizes": np.ones(8)} if yardstick == "kl" else {}),
        )
    )
    curves = frontier(gains, costs, yardstick=yardstick, points=points, draws=0)
    made = solve(gains, costs, **{"kl" if yardstick == "kl" else "tau": 0.02})
    whole = Graph(tuple(Op(op, "linear", 9, 3, 1) for op in ops), tuple((op,) for op in ops), (), {})
    values = {
        "losses": costs,
        "gains": {"memory": gains},
        "plan": made,
        "graph": whole,
        "runnable": ops,
        "frontiers": {"memory": curves},
    }
    return artefacts(**{**values, **changes})


def page_of(run):
    info = report_info(run)
    drawn = {figure.name: inline(render(figure)[1].decode(), figure.name, "") for figure in info.figures}
    return page(info, drawn)
