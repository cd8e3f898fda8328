"""What a report is made from: the values of a folder's artefacts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.plan import Graph, Plan
from inc_mp_plugin.core.results import Experiment, Frontier, Stability, Validation, Verification
from inc_mp_plugin.core.timings import TimeValidation

Json = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """The artefacts of a folder; None where one is missing.

    `able` are the ops that every target can run in a lower format; `held_back` says why others cannot leave
    the base format. `recipe` is the recipe as JSON,
    `depends_on` what each artefact followed from, by its file's stem, and `outdated` says why an
    artefact that is there is of another plan or another state of things.
    """

    folder: str
    recipe: Json
    graph: Graph
    losses: LossModel
    able: tuple[str, ...]
    gains: Mapping[str, Gains]
    plan: Plan
    stability: Stability
    frontiers: Mapping[str, Frontier] | None = None
    validation: Validation | None = None
    time: TimeValidation | None = None
    verification: Verification | None = None
    experiments: tuple[Experiment, ...] = ()
    held_back: tuple[str, ...] = ()
    depends_on: Mapping[str, Json] = field(default_factory=dict)
    outdated: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The model's name, or the last folder of its path."""
        name = str(self.recipe.get("model", {}).get("name_or_path", "a model"))
        return name.rstrip("/").rsplit("/", 1)[-1]
