"""experiments/<name>-<objective>.json: plans of several strategies, measured."""

from __future__ import annotations

from dataclasses import replace

from inc_mp_plugin.core.results import Experiment
from inc_mp_plugin.runtime.artefact import Artefact, artefact_of

_EXPERIMENT = artefact_of(Experiment, "experiment")


def experiment_artefact(name: str) -> Artefact[Experiment]:
    """Describe the file of an experiment on an objective, <name>-<objective>."""
    return replace(_EXPERIMENT, stem=f"experiments/{name}")
