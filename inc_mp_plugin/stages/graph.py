"""graph.json: the ops of a model, and the groups that they form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.runtime import artefacts
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.reuse import run_stage

if TYPE_CHECKING:
    from inc_mp_plugin.core.plan import Graph
    from inc_mp_plugin.model.subject import Subject


def graph_stage(subject: Subject, out: Path) -> Graph:
    """Capture a model's graph with its first batch, or read graph.json.

    Raises:
        InputError: there is no batch.
        CaptureError: the model cannot be captured.
    """

    def make() -> tuple[Graph, dict[str, Any]]:
        from inc_mp_plugin.graph.capture import capture

        if not subject.batches:
            message = "no calibration batch was given; at least one is needed"
            raise InputError(message)
        say("Capturing the graph ...")
        graph = capture(subject.model, subject.batches[0])
        say(f"{len(graph.ops)} ops in {len(graph.groups)} groups")
        return graph, artefacts.graph_to_json(graph)

    return run_stage(out / "graph.json", "graph", subject.depends_on, artefacts.graph_from_json, make)
