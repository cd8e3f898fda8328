"""The dual price of a plan: what one more unit of what is scarce would gain."""

from __future__ import annotations

from fractions import Fraction

from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.solver.limits import Limits
from inc_mp_plugin.solver.milp import price
from inc_mp_plugin.solver.optimum import capacity_of, of_kl, tangent
from inc_mp_plugin.solver.program import Program
from inc_mp_plugin.solver.several_rows import Row
from inc_mp_plugin.solver.uncertainty import plan_shift


def binding_row(plan: Plan, program: Program) -> Row:
    """Return the row of a plan's own threshold, or of what it is predicted to cost without one."""
    if plan.constraint == "kl":
        limits = Limits(kl=plan.predicted_kl if plan.kl is None else plan.kl, correction=plan.correction)
        return Row(of_kl, capacity_of(program, limits, "kl"))
    losses = program.costs.loss
    shift = plan_shift(losses, plan.formats, plan.base).value - losses.cache_shift if losses else 0.0
    return tangent(program, Limits(plan.tau, correction=plan.correction), shift)


def dual_price(program: Program, row: Row) -> float:
    """Price a unit of a row's capacity, in gain, by the relaxed program; 0 if the row does not bind."""
    least = sum(map(Fraction, program.least(row.cost)), Fraction(0))
    # The plan's own loss may be a rounding error above its budget.
    return price(program.candidates(row.cost), max(row.capacity, least))
