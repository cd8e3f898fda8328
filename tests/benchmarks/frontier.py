"""Frontiers of large models: 100 exact points with prefix and ten random draws beside them.

    python tests/benchmarks/frontier.py

The groups are those of a Llama, their gains of all configurations do not add up inside a group, and
sensitivities are drawn at random, 64 samples of each op.
"""

from __future__ import annotations

import itertools
import time

import numpy as np

from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.frontier import frontier

LAYER = (("q", "k", "v", "qk", "av"), ("o",), ("gate", "up"), ("down",))
WANTED_S = {32: 10, 126: 30}


def instance(layers: int) -> tuple[Gains, Sensitivity]:
    """Gains of every configuration of every group, the same in every layer, and sensitivities."""
    draw = np.random.default_rng(0)
    alone = {op: draw.uniform(1.0, 5.0) for group in LAYER for op in group}
    overlap = {group: draw.uniform(0.8, 1.0) for group in LAYER}
    groups = []
    for layer, group in itertools.product(range(layers), LAYER):
        configurations = tuple(itertools.product(("bf16", "fp8_e4m3"), repeat=len(group)))
        gain = []
        for one in configurations:
            lowered = [alone[op] for op, format_name in zip(group, one, strict=True) if format_name != "bf16"]
            gain.append(sum(lowered) * overlap[group] ** max(len(lowered) - 1, 0))
        names = tuple(f"{layer}.{op}" for op in group)
        groups.append(GroupGains(names, configurations, tuple(gain), (0.0,) * len(gain)))
    groups.append(GroupGains(("head",), (("bf16",), ("fp8_e4m3",)), (0.0, 9.0), (0.0, 0.0)))
    ops = tuple(op for group in groups for op in group.ops)
    rows = draw.lognormal(0.0, 1.5, (1, len(ops))) * draw.lognormal(0.0, 0.5, (64, len(ops)))
    seen = Sensitivity(ops, np.full(64, 2.0), rows, np.zeros_like(rows))
    return Gains("roofline", "s", "modelled", "bf16", tuple(groups)), seen


def main() -> None:
    """Print the times."""
    for layers, wanted_s in WANTED_S.items():
        gains, seen = instance(layers)
        start = time.perf_counter()
        found = frontier(gains, seen, points=100, draws=10)
        seconds = time.perf_counter() - start
        count = sum(len(group.configurations) for group in gains.groups)
        print(
            f"{layers} layers, {len(gains.groups)} groups, {count} configurations: "
            f"{len(found.curves[0].ops)} points in {seconds:.1f} s (wanted: at most {wanted_s} s)"
        )


if __name__ == "__main__":
    main()
