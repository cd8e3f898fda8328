"""Plans: both forms of the program, and what is said of them."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.formats import alpha
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.sensitivity import Drift, Sensitivity
from inc_mp_plugin.solver.planner import solve
from inc_mp_plugin.solver.uncertainty import loss_interval, plan_rows

LOW = ("fp8_e4m3", "fp8_e5m2")


def gains_of(numbers):
    """One group per op; `numbers` are the gains in the two FP8 formats."""
    groups = [
        GroupGains((f"op{i}",), (("bf16",), *((f,) for f in LOW)), (0.0, *pair), (0.0,) * 3)
        for i, pair in enumerate(numbers)
    ]
    return Gains("memory", "byte", "exact", "bf16", tuple(groups))


def sensitivity_of(totals, loss=2.0):
    ops = tuple(f"op{i}" for i in range(len(totals)))
    rows = np.array([totals])
    return Sensitivity(ops, np.array([loss]), rows, np.zeros_like(rows))


GAINS = gains_of([(10.0, 11.0), (20.0, 21.0), (30.0, 30.0)])
SEEN = sensitivity_of([1.0, 5.0, 2.0])


def every_plan():
    """All 27 plans as (gain, loss MSE)."""
    for formats in itertools.product(("bf16", *LOW), repeat=3):
        gain = sum(
            dict(zip(("bf16", *LOW), group.gain, strict=True))[f]
            for group, f in zip(GAINS.groups, formats, strict=True)
        )
        loss = sum(alpha(f) * s for f, s in zip(formats, (1.0, 5.0, 2.0), strict=True) if f != "bf16")
        yield gain, loss


@pytest.mark.parametrize("tau", [0.001, 0.02, 0.03, 0.04, 0.05, 0.08, 1.0])
def test_largest_gain_within_tau(tau):
    plan = solve(GAINS, SEEN, tau)
    budget = tau**2 * 4.0
    assert plan.gain == max(gain for gain, loss in every_plan() if loss <= budget)
    assert plan.loss_mse <= plan.loss_budget == pytest.approx(budget)
    assert plan.nrmse == pytest.approx(math.sqrt(plan.loss_mse / 4.0))
    assert plan.binds == (plan.gain < 62.0)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8, 0.97, 1.0])
def test_least_loss_for_a_wanted_gain(fraction):
    plan = solve(GAINS, SEEN, gain_fraction=fraction)
    least = min(loss for gain, loss in every_plan() if gain >= fraction * 62.0)
    assert plan.gain >= fraction * 62.0
    assert plan.loss_mse == pytest.approx(least, rel=1e-12)
    assert plan.tau == plan.nrmse


def test_both_knobs_together():
    free = solve(GAINS, SEEN, gain_fraction=0.9)
    assert solve(GAINS, SEEN, free.nrmse * 1.01, gain_fraction=0.9).formats == free.formats
    with pytest.raises(InfeasibleError, match=f"least tau that allows it is {free.nrmse:.5g}"):
        solve(GAINS, SEEN, free.nrmse * 0.99, gain_fraction=0.9)


def test_an_op_that_calibration_never_ran_stays():
    plan = solve(GAINS, SEEN.of({"op0", "op2"}), 1.0)
    assert plan.formats == {"op0": "fp8_e5m2", "op1": "bf16", "op2": "fp8_e4m3"}


def test_a_negative_gain_is_never_taken():
    assert solve(gains_of([(-5.0, -4.0)]), sensitivity_of([0.0]), 1.0).formats == {"op0": "bf16"}


def test_groups_are_priced_by_their_sum():
    group = GroupGains(
        ("op0", "op1"),
        (("bf16", "bf16"), ("fp8_e4m3", "bf16"), ("fp8_e4m3", "fp8_e4m3")),
        (0.0, 3.0, 2.0),  # measured: both together may gain less
        (0.0,) * 3,
    )
    gains = Gains("empirical_time", "s", "measured", "bf16", (group,))
    assert solve(gains, SEEN, 1.0).formats == {"op0": "fp8_e4m3", "op1": "bf16"}


@pytest.mark.parametrize("tau", [0.0, -0.1, math.nan, math.inf])
def test_impossible_tau(tau):
    with pytest.raises(InputError, match="must be a number above 0"):
        solve(GAINS, SEEN, tau)


@pytest.mark.parametrize("fraction", [0.0, 1.1, math.nan])
def test_impossible_gain_fraction(fraction):
    with pytest.raises(InputError, match="above 0 and at most 1"):
        solve(GAINS, SEEN, gain_fraction=fraction)


def test_no_knob_and_no_loss():
    with pytest.raises(InputError, match="give kl .*, tau"):
        solve(GAINS, SEEN)
    with pytest.raises(InputError, match="loss of every sample is 0"):
        solve(GAINS, sensitivity_of([1.0, 5.0, 2.0], loss=0.0), 0.1)


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.tuples(st.floats(0.0, 1e6), st.floats(1e-9, 1e-3)), min_size=1, max_size=12),
    taus=st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=5),
)
def test_gain_never_falls_with_tau_and_the_budget_always_holds(numbers, taus):
    gains = gains_of([(gain, gain) for gain, _ in numbers])
    sensitivity = sensitivity_of([s for _, s in numbers])
    plans = [solve(gains, sensitivity, tau) for tau in sorted(taus)]
    assert all(plan.loss_mse <= plan.loss_budget for plan in plans)
    assert all(a.gain <= b.gain * (1 + 1e-9) + 1e-9 for a, b in itertools.pairwise(plans))


@pytest.mark.parametrize("tau", [0.02, 0.05, 0.1, 0.3])
def test_drift_tightens_the_program_and_keeps_it_exact(tau):
    """Against all plans, with loss MSE d + (drift d)^2."""
    rows = np.array([[1.0, 5.0, 2.0]])
    rounding = {f: alpha(f) * rows for f in LOW}
    arrays = Sensitivity(("op0", "op1", "op2"), np.array([2.0]), rows, 0 * rows, rounding, Drift(30.0, 0.0))
    sensitivity = LossModel(arrays, "measured")
    plan = solve(GAINS, sensitivity, tau)
    drifting = [(gain, loss + (30.0 * loss) ** 2) for gain, loss in every_plan()]
    assert plan.gain == max(gain for gain, loss in drifting if loss <= tau**2 * 4.0)
    assert plan.loss_mse in [pytest.approx(loss) for _, loss in drifting]
    assert plan.loss_mse <= plan.loss_budget
    assert plan.gain <= solve(GAINS, SEEN, tau).gain


@pytest.mark.parametrize("tau", [0.03, 0.05, 0.08])
def test_confidence_keeps_the_upper_end_within_the_budget(tau):
    draw = np.random.default_rng(0)
    count = 40
    gains = gains_of([(g, g) for g in draw.integers(1, 30, count).astype(float).tolist()])
    rows = draw.lognormal(0.0, 1.0, (16, count)) / 4
    sensitivity = Sensitivity(tuple(f"op{i}" for i in range(count)), np.full(16, 2.0), rows, 0 * rows)
    sure, plain = solve(gains, sensitivity, tau, confidence=0.9), solve(gains, sensitivity, tau)
    assert sure.interval.high <= tau**2 * 4.0 < plain.interval.high
    assert sure.loss_mse <= sure.loss_budget < plain.loss_budget == tau**2 * 4.0
    assert sure.confidence == 0.9
    # No other correction of the loss budget does better.
    for correction in np.linspace(0.01, 1.0, 60):
        other = solve(gains, sensitivity, tau, correction=correction, confidence=None)
        high = loss_interval(plan_rows(LossModel(sensitivity), other.formats, "bf16"), 0.9).high
        assert high > tau**2 * 4.0 or other.gain <= sure.gain + 1.0


@pytest.mark.parametrize("correction", [0.0, 0.1, 0.4, 1.0, 2.0, 6.0])
def test_a_correction_beside_a_confidence_only_tightens(correction):
    draw = np.random.default_rng(0)
    gains = gains_of([(g, g) for g in draw.integers(1, 30, 40).astype(float).tolist()])
    rows = draw.lognormal(0.0, 1.0, (16, 40)) / 4
    sensitivity = Sensitivity(tuple(f"op{i}" for i in range(40)), np.full(16, 2.0), rows, 0 * rows)
    sure = solve(gains, sensitivity, 0.05, confidence=0.9)
    both = solve(gains, sensitivity, 0.05, confidence=0.9, correction=correction)
    assert both.interval.high <= 0.05**2 * 4.0
    assert both.gain <= sure.gain
    if correction > 1.0:
        assert both.formats == sure.formats
    if correction <= 0.1:
        assert both.formats == solve(gains, sensitivity, 0.05, correction=correction).formats


def test_confidence_that_nothing_strains_changes_nothing():
    assert solve(GAINS, SEEN, 5.0, confidence=0.95).formats == solve(GAINS, SEEN, 5.0).formats


def test_confidence_and_a_wanted_gain():
    with pytest.raises(InfeasibleError, match="within tau 0.06 at a confidence of 0.95; the least tau"):
        solve(GAINS, SEEN, 0.06, gain_fraction=0.97, confidence=0.95)
    with pytest.raises(InputError, match="confidence is 95; it must lie between 0 and 1"):
        solve(GAINS, SEEN, 0.06, confidence=95)


def test_correction_scales_the_budget():
    plan = solve(GAINS, SEEN, 0.04, correction=2.0)
    assert (plan.tau, plan.loss_budget) == (0.04, 2.0 * 0.04**2 * 4.0)
    assert plan.gain == solve(GAINS, SEEN, 0.04 * 2.0**0.5).gain
