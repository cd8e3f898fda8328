"""From artefacts to everything a report says: one pure function, one frozen value."""

from __future__ import annotations

from dataclasses import replace

from inc_mp_plugin.report.blocks import Missing, ReportInfo, Section
from inc_mp_plugin.report.experiment_sections import experiments
from inc_mp_plugin.report.found import Found
from inc_mp_plugin.report.loss_sections import closed_loop, frontier, validation
from inc_mp_plugin.report.plan_sections import budget, headline, plan_map, table_of, uncertainty
from inc_mp_plugin.report.reproduce_sections import left_out, reproduce
from inc_mp_plugin.report.tie_section import ties
from inc_mp_plugin.report.time_section import time


def report_info(found: Found) -> ReportInfo:
    """Arrange what was found in a folder as a report."""
    plan, table = found.plan, table_of(found)
    optional = (frontier(found), validation(found), time(found), closed_loop(found), *experiments(found))
    absent = tuple(block for one in optional for block in one.blocks if isinstance(block, Missing))
    shown = tuple(replace(one, blocks=tuple(b for b in one.blocks if b not in absent)) for one in optional)
    return ReportInfo(
        f"Mixed-precision plan of {found.model}",
        f"objective {plan.objective} · strategy {plan.strategy} · tau {plan.tau:.4g}",
        (
            headline(found),
            plan_map(table),
            budget(found, table),
            *(one for one in (ties(found),) if one is not None),
            *(one for one in shown if one.blocks),
            uncertainty(found),
            left_out(found),
            *([Section("absent", "What this report lacks", absent)] if absent else []),
            reproduce(found),
        ),
    )
