"""From artefacts to a whole report: one pure function, one frozen value."""

from __future__ import annotations

from dataclasses import replace

from inc_mp_plugin.report.artefacts import RunArtefacts
from inc_mp_plugin.report.blocks import Missing, ReportInfo, Section
from inc_mp_plugin.report.experiment_sections import experiment_sections
from inc_mp_plugin.report.explorer import explorer
from inc_mp_plugin.report.loss_sections import closed_loop_blocks, frontier_blocks
from inc_mp_plugin.report.plan_sections import budget, headline, plan_map, ties, uncertainty
from inc_mp_plugin.report.reproduce_sections import left_out, reproduce
from inc_mp_plugin.report.staying import Stay, staying
from inc_mp_plugin.report.text import plan_table, threshold
from inc_mp_plugin.report.time_section import time_blocks
from inc_mp_plugin.report.validation_section import validation_blocks


def _staying(run: RunArtefacts) -> dict[str, Stay]:
    gains = run.gains[run.plan.objective]
    return staying(run.plan, gains, run.losses, run.graph, runnable=run.runnable, kept=run.kept)


def report_info(run: RunArtefacts) -> ReportInfo:
    """Arrange the artefacts of a folder as a report; a section without blocks is left out."""
    plan = run.plan
    table = plan_table(plan, run.gains[plan.objective], run.losses)
    sections = (
        Section("plan", "The plan", headline(run, table)),
        Section("map", "Layers and ops", plan_map(table, plan, _staying(run), explorer(run))),
        Section("budget", "Where the allowance goes", budget(table)),
        Section("ties", "What the consumers tie together", ties(run)),
        Section("frontier", "What a gain costs", frontier_blocks(run)),
        Section("validation", "Predicted against measured", validation_blocks(run)),
        Section("time", "Predicted against measured time", time_blocks(run)),
        Section("loop", "Closed loop: loosened as long as tau surely holds", closed_loop_blocks(run)),
        *experiment_sections(run),
        Section("uncertainty", "Would more samples change the plan?", uncertainty(run)),
        Section("left-out", "What was not quantizable", left_out(run)),
    )
    absent = tuple(block for section in sections for block in section.blocks if isinstance(block, Missing))
    complete = (
        *(replace(part, blocks=tuple(b for b in part.blocks if b not in absent)) for part in sections),
        Section("absent", "What this report lacks", absent),
        Section("reproduce", "Versions and commands", reproduce(run)),
    )
    return ReportInfo(
        f"Mixed-precision plan of {run.model}",
        f"objective {plan.objective} · strategy {plan.strategy} · {threshold(plan)}",
        tuple(section for section in complete if section.blocks),
    )
