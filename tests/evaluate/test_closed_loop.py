"""The closed loop on measurements made up by a formula, against a search of all thresholds."""

from types import SimpleNamespace

import numpy as np
import pytest

from inc_mp_plugin.evaluate.closed_loop import close_loop

TAU = 0.1
COSTS = np.sort(np.random.default_rng(0).lognormal(0.0, 1.0, 60))
BUDGET = 0.3 * COSTS.sum()  # of tau^2


def plan_at(correction):
    """The cheapest ops first: exact where every op gains the same."""
    ops = int(np.searchsorted(COSTS.cumsum(), correction * BUDGET, side="right"))
    nrmse = TAU * (COSTS[:ops].sum() / BUDGET) ** 0.5
    names = tuple(f"op{i}" for i in range(ops))
    return SimpleNamespace(gain=float(ops), nrmse=nrmse, largest_gain=60.0, quantized=names, tau=TAU)


def wavy(factor, wave):
    """Measured is predicted times a factor, and up to `wave` more or less from plan to plan."""
    noise = np.random.default_rng(1).uniform(-wave, wave, 61)
    return lambda plan: plan.nrmse * factor * (1 + noise[len(plan.quantized)])


@pytest.mark.parametrize("wave", [0.0, 0.03, 0.08])
@pytest.mark.parametrize("factor", [0.3, 0.7, 1.0, 1.4, 3.0])
def test_holds_and_is_close_to_the_best_of_all(factor, wave):
    measure = wavy(factor, wave)
    found = close_loop(plan_at, measure, TAU, 64)
    chosen = found.rounds[found.chosen]
    assert chosen.measured_nrmse <= TAU
    plan = plan_at(found.correction)
    assert plan.gain == chosen.gain
    assert measure(plan) == chosen.measured_nrmse
    plans = [plan_at(correction) for correction in np.geomspace(1e-4, 100, 4000)]
    best = max(plan.gain for plan in plans if not plan.quantized or measure(plan) <= TAU)
    assert chosen.gain >= 0.95 * best
    assert len(found.rounds) <= 16
    assert len({(one.gain, one.predicted_nrmse) for one in found.rounds}) == len(found.rounds)


def test_everything_fits():
    found = close_loop(plan_at, wavy(0.01, 0.0), TAU, 64)
    assert found.rounds[found.chosen].gain == 60.0


def test_nothing_fits():
    found = close_loop(plan_at, lambda plan: 5.0, TAU, 64)
    chosen = found.rounds[found.chosen]
    assert (chosen.ops, chosen.measured_nrmse, chosen.correction) == (0, 0.0, 0.0)
