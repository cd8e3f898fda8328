"""Why the ops of a folder's plan are where they are, without the model."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from inc_mp_plugin.core.errors import InfeasibleError, InputError, few
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.report.blocks import Table
from inc_mp_plugin.report.explained import Explained
from inc_mp_plugin.report.explanation import explain_op, explain_plan
from inc_mp_plugin.solver.margins import margins
from inc_mp_plugin.solver.planner import IP_MSE
from inc_mp_plugin.solver.ties import constrained_program
from inc_mp_plugin.stages.plan import make_plan


def explain_folder(folder: Path, name: str | None) -> list[Table | str]:
    """Say why an op of a plan is where it is, or list the ops that are nearest to another format.

    Args:
        folder: of the run.
        name: of the op, or the end of its name; None for the list.

    Raises:
        InputError: an artefact is missing or damaged, or the name is that of no op, or of several.
    """
    run = Run(folder)
    case = explained(run)
    if name is None:
        return explain_plan(case)
    op = named_op(name, list(run.plan.formats))
    return [*explain_op(case, op, _switched(run, op))]


def named_op(name: str, ops: Collection[str]) -> str:
    """Find an op by its name, or by the end of its name.

    Raises:
        InputError: there is none, or several.

    Example:
        >>> named_op("0.q", ["layers.0.q", "layers.10.q", "layers.0.k"])
        'layers.0.q'
    """
    if name in ops:
        return name
    ends = [op for op in ops if op.endswith(f".{name}")]
    if len(ends) == 1:
        return ends[0]
    if ends:
        message = f"{name!r} is the end of {len(ends)} names: {few(ends)}; give more of it, such as {ends[0]}"
        raise InputError(message)
    near = difflib.get_close_matches(name, ops, n=3, cutoff=0.0)
    message = f"no op is called {name!r}; near are {', '.join(near)}; all are in graph.json"
    raise InputError(message)


def explained(run: Run) -> Explained:
    """Collect all that explains the plan of a folder."""
    planned, plan = run.as_planned, run.plan
    gains = run.free_gains[plan.objective]
    program = constrained_program(gains, planned.losses, planned.demands)
    of = margins(plan, program)
    return Explained(plan, gains, run.all_losses, run.graph, planned.demands, run.stays, of)


def _switched(run: Run, op: str) -> Plan | None:
    """Make the best plan in which one op is on the other side, at the plan's own allowance."""
    planned, plan, demands = run.as_planned, run.plan, run.as_planned.demands
    if (
        planned.job.strategy != IP_MSE
        or op not in planned.losses.ops
        or op in {**demands.kept, **demands.lowered}
    ):
        return None
    asked = {op: "it was asked for"}
    if plan.formats[op] != plan.base:
        changed = replace(demands, kept={**demands.kept, **asked})
    else:
        changed = replace(demands, lowered={**demands.lowered, **asked})
    job = replace(planned.job, confidence=None)  # the correction of the plan stands for it
    gains = run.free_gains[plan.objective]
    try:
        return make_plan(job, gains, planned.losses, plan.correction, demands=changed)
    except (InfeasibleError, InputError):  # it does not fit alone, or no configuration has it there
        return None
