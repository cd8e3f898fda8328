"""experiments/<name>-<objective>.json: plans of several strategies, measured."""

from __future__ import annotations

from dataclasses import replace

from inc_mp_plugin.core.experiment import Experiment
from inc_mp_plugin.runtime.artefact import Artefact, artefact_of


def experiment_artefact(stem: str) -> Artefact[Experiment]:
    """Describe the file of an experiment; `stem` is <name>-<objective>."""
    return replace(artefact_of(Experiment, "experiment"), stem=f"experiments/{stem}")
