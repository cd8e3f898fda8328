"""One plan for several processes: the first makes it, the others measure their share and take it over."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from inc_mp_plugin.core import errors
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.runtime.codec import from_json, to_json

Json = dict[str, Any]


def plan_together(make: Callable[[], Plan], tasks: Mapping[str, Callable[[Graph], object]]) -> Plan:
    """Make a plan in the first process; all others return the same one.

    Args:
        make: makes the plan; before all processes are to measure together, it calls `ask`.
        tasks: what another process does when it is asked, by name: measure its own samples.

    Raises:
        PluginError: what `make` raised, in every process.
    """
    if ranks.size() == 1:
        return make()
    if ranks.rank():
        return _take_part(tasks)
    try:
        plan = make()
    except errors.PluginError as error:
        _tell({"error": type(error).__name__, "text": str(error)})
        raise
    _tell({"plan": to_json(plan)})
    return plan


def ask(task: str, graph: Graph) -> None:
    """Ask the other processes to do a task, on a graph, with this one."""
    if ranks.size() > 1:
        _tell({"task": task, "graph": to_json(graph)})


def _take_part(tasks: Mapping[str, Callable[[Graph], object]]) -> Plan:
    while True:
        message = json.loads(ranks.hear())
        if "error" in message:
            raise getattr(errors, message["error"])(message["text"])
        if "plan" in message:
            return from_json(Plan, message["plan"])
        tasks[message["task"]](from_json(Graph, message["graph"]))


def _tell(content: Json) -> None:
    ranks.tell(json.dumps(content).encode())
