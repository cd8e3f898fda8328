"""`inc-mp tune --dry-run`: everything of a recipe that needs neither weights nor samples."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.model.loading import empty_model, load_config, model_fingerprint
from inc_mp_plugin.model.subject import Subject, versions
from inc_mp_plugin.pipeline.next_command import mark_dry_run
from inc_mp_plugin.report.text import amount
from inc_mp_plugin.solver.ties import constrained
from inc_mp_plugin.stages.files import Wanted, clear_files, counted, write_files
from inc_mp_plugin.stages.gains import demands_for, gains_stage, prices_of, runnable_ops
from inc_mp_plugin.stages.stages import check_objective, graph_stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inc_mp_plugin.core.demands import Demands
    from inc_mp_plugin.core.plan import Graph
    from inc_mp_plugin.pipeline.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a recipe comes to without a loss: the largest gain that its targets can run."""

    graph: Graph
    demands: Demands
    gains: Gains
    formats: Mapping[str, str]
    gain: float


def rehearse(recipe: Recipe, out: Path) -> Rehearsal:
    """Graph, ties, gains and the files of the plan that gains the most, whatever its loss.

    The model is made of its configuration, without weights; samples and sensitivities are left out.

    Args:
        recipe: as for `tune_recipe`.
        out: folder of the artefacts; dry-run.json marks it.

    Raises:
        InputError: the model's configuration cannot be loaded, something cannot be priced, or the folder
            is one that `tune_recipe` planned in.
        SelectionError: INC would select other modules than the plan's.
    """
    subject = _empty_subject(recipe)
    mark_dry_run(out, recipe.model_dump(mode="json"))
    graph = graph_stage(subject, out)
    able = runnable_ops(graph, recipe)
    demanded = demands_for(graph, recipe)
    prices = replace(prices_of(recipe, tuple(able), demanded), clock=None)
    gains = gains_stage(subject, graph, _no_sensitivity(), prices, out)
    objective = "roofline" if recipe.objective == "empirical_time" else recipe.objective
    check_objective(gains, objective)
    kept = {op.name: "no target runs it" for op in graph.ops if op.name not in set(able)}
    strict = replace(demanded, kept={**kept, **demanded.kept})
    tied = constrained(gains[objective], strict)
    formats: dict[str, str] = {}
    for group in tied.groups:
        best = max(range(len(group.gain)), key=group.gain.__getitem__)
        formats.update(zip(group.ops, group.configurations[best], strict=True))
    gain = math.fsum(max(group.gain) for group in tied.groups)
    base = recipe.model.dtype
    line = f"largest gain, whatever its loss: {counted(base, formats)}, objective {objective}"
    wanted = Wanted(base, formats, demanded.serving, line)
    clear_files(out, recipe.targets)
    for target in recipe.targets:
        write_files(wanted, graph, target, out, recipe)
    return Rehearsal(graph, demanded, gains[objective], formats, gain)


def lines(found: Rehearsal) -> list[str]:
    """What to show of a rehearsal."""
    graph, demanded, gains = found.graph, found.demands, found.gains
    lowered = sum(format != gains.base for format in found.formats.values())
    shown = [
        f"{len(graph.ops)} ops in {len(graph.groups)} groups; {len(graph.unsupported)} products are no ops",
        *(f"tied, {count} times: {why}" for why, count in Counter(t.why for t in demanded.ties).items()),
        *(f"in {gains.base}, {n} ops: {why}" for why, n in Counter(demanded.kept.values()).items()),
        *(f"in FP8, {n} ops: {why}" for why, n in Counter(demanded.lowered.values()).items()),
        f"largest gain ({gains.objective}, {gains.source}): {amount(found.gain, gains.unit)} "
        f"with {lowered} ops lowered, of {amount(gains.largest, gains.unit)} without ties",
    ]
    return [line[:1].upper() + line[1:] for line in shown]


def _empty_subject(recipe: Recipe) -> Subject:
    model, data = recipe.model, recipe.calibration

    def batch() -> list[dict[str, object]]:
        import torch

        return [{"input_ids": torch.zeros(data.batch_size, data.sequence_length, dtype=torch.long)}]

    def config() -> object:
        return load_config(model.name_or_path, model.config, trust_remote_code=model.trust_remote_code)

    return Subject(
        depends_on={
            "model": model_fingerprint(model.name_or_path, trust_remote_code=model.trust_remote_code),
            "dtype": model.dtype,
            "config": dict(model.config),
            "calibration.batch_size": data.batch_size,
            "calibration.sequence_length": data.sequence_length,
            "versions": versions(),
        },
        base=model.dtype,
        load_model=lambda: empty_model(config(), model.dtype, trust_remote_code=model.trust_remote_code),
        load_batches=batch,
    )


def _no_sensitivity() -> Sensitivity:
    import numpy as np

    return Sensitivity((), np.ones(1), np.zeros((1, 0)), np.zeros((1, 0)))
