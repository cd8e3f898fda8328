"""The material of a report: the values of a folder's artefacts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.everything import Everything
from inc_mp_plugin.core.experiment import Experiment
from inc_mp_plugin.core.frontier import Frontier
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.literals import IN_MEMORY
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.core.results import Stability, Validation, Verification
from inc_mp_plugin.core.timings import TimeValidation
from inc_mp_plugin.report.blocks import Missing

Json = dict[str, Any]


@dataclass(frozen=True)
class RunArtefacts:
    """The artefacts of a folder; None where one is missing.

    `runnable` are the ops that every target can run in a lower format; `held_back` says why others cannot
    leave the base format, `kept` for each op that consumers keep there; `everything` prices all others in the
    lower format. `recipe` is the recipe as JSON. By the stem of an artefact's file, `depends_on` holds what
    the artefact followed from; `outdated` says why an artefact in the folder does not count: it is out of
    date, or of another plan.
    """

    folder: str
    recipe: Json
    graph: Graph
    losses: Costs
    runnable: tuple[str, ...]
    gains: Mapping[str, Gains]
    plan: Plan
    stability: Stability
    frontiers: Mapping[str, Frontier] | None = None
    validation: Validation | None = None
    time: TimeValidation | None = None
    verification: Verification | None = None
    experiments: tuple[Experiment, ...] = ()
    held_back: tuple[str, ...] = ()
    everything: Everything | None = None
    kept: Mapping[str, str] = field(default_factory=dict)
    depends_on: Mapping[str, Json] = field(default_factory=dict)
    outdated: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The model's name, or the last folder of its path."""
        name = str(self.recipe.get("model", {}).get("name_or_path", "a model"))
        return name.rstrip("/").rsplit("/", 1)[-1]

    @property
    def in_memory(self) -> bool:
        """True if model and samples were in the memory of a Python script."""
        return bool(self.recipe.get("model", {}).get("weights") == IN_MEMORY)

    def how_to(self, command: str, keywords: str) -> str:
        """Return a command for this folder; where the model was in memory, the call of `tune` instead.

        Args:
            command: as it is typed, without the folder at its end.
            keywords: of `tune`, that make the same.
        """
        if self.in_memory:
            return f"inc_mp_plugin.tune(model, batches, ..., {keywords}, out={self.folder!r})"
        return f"{command} {self.folder}"

    def missing(self, stem: str, title: str, command: str) -> Missing:
        """Say that an artefact is missing, or why it does not count, and name the command that makes it.

        Args:
            stem: name of the artefact's file, without its ending.
            title: name of the artefact in the sentence.
            command: that makes the artefact.
        """
        return Missing(f"{title}: {self.outdated.get(stem, 'not made yet')}.", command)
