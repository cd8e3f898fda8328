"""graph.json: the ops of a model, and the groups that they form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.runtime.artefact import Artefact
from inc_mp_plugin.runtime.codec import from_json
from inc_mp_plugin.runtime.progress import say

if TYPE_CHECKING:
    from inc_mp_plugin.model.subject import Subject


def _decode(content: dict[str, Any]) -> Graph:
    graph = from_json(Graph, content)
    grouped = [name for group in graph.groups for name in group]
    if sorted(grouped) != sorted(graph.by_name):
        message = "the groups do not hold every op once"
        raise ValueError(message)
    return graph


GRAPH = Artefact("graph", _decode)


def graph_stage(subject: Subject, out: Path) -> Graph:
    """Capture a model's graph with its first batch, or read graph.json.

    Raises:
        InputError: the subject has no batch.
        CaptureError: the model cannot be captured.
    """

    def make() -> Graph:
        from inc_mp_plugin.graph.capture import capture

        if not subject.batches:
            message = "no calibration batch was given; at least one is needed"
            raise InputError(message)
        say("Capturing the graph ...")
        graph = capture(subject.model, subject.batches[0])
        say(f"{len(graph.ops)} ops in {len(graph.groups)} groups")
        return graph

    return GRAPH.make(out, subject.depends_on, make)
