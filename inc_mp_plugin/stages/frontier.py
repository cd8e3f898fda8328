"""frontier.json: gain against loss for every objective that has gains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.demands import Demands
from inc_mp_plugin.core.frontier import Frontier
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.literals import Yardstick
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.artefact import Artefact
from inc_mp_plugin.runtime.codec import from_json, to_json
from inc_mp_plugin.stages.gains import GAINS
from inc_mp_plugin.stages.sensitivity import HASH


def _encode(frontiers: Mapping[str, Frontier]) -> store.Json:
    return {"objectives": {name: to_json(curves) for name, curves in frontiers.items()}}


def _decode(content: store.Json) -> dict[str, Frontier]:
    return {name: from_json(Frontier, curves) for name, curves in content["objectives"].items()}


FRONTIER = Artefact("frontier", _decode, _encode)


def frontier_stage(
    folder: Path,
    losses: Costs,
    gains: Mapping[str, Gains],
    demands: Demands,
    *,
    yardstick: Yardstick,
    points: int,
    draws: int,
    graph: Graph,
) -> dict[str, Frontier]:
    """Draw the curves of every objective that has gains, or read frontier.json.

    Args:
        folder: folder of the run.
        losses: prices of the ops that may leave the base format.
        gains: of the configurations that keep to the demands.
        demands: demands of the consumers.
        yardstick: of the curves; one that was measured.
        points: number of points of the exact curve.
        draws: number of draws of the random baseline.
        graph: of the model.

    Raises:
        InputError: an artefact is missing or damaged, or there are too few points.
    """
    from inc_mp_plugin.solver.frontier import frontier

    def make() -> dict[str, Frontier]:
        return {
            name: frontier(
                gains_of_objective, losses, yardstick=yardstick, points=points, draws=draws, graph=graph
            )
            for name, gains_of_objective in gains.items()
            if gains_of_objective.largest > 0
        }

    drawn_from = frontier_depends_on(folder, losses, demands, yardstick)
    return FRONTIER.make(folder, {**drawn_from, "points": points, "draws": draws}, make)


def frontier_depends_on(folder: Path, losses: Costs, demands: Demands, yardstick: Yardstick) -> store.Json:
    """Collect what curves follow from, whatever their points are; files by their hashes.

    Args:
        folder: of the run.
        losses: prices of the ops that may leave the base format.
        demands: demands of the consumers.
        yardstick: of the curves.
    """
    gains = store.read_json(GAINS.path(folder), GAINS.kind)
    return {
        "sensitivity": HASH.read(folder),
        "gains": store.fingerprint(gains),
        "noise": losses.noise,
        "targets": list(demands.targets),
        "serving": asdict(demands.serving),
        "yardstick": yardstick,
    }
