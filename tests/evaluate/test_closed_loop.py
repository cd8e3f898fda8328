"""The closed loop on measurements made up by a formula, and on simulated losses whose truth is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.core.verdicts import HELD, Measured, Thresholds, verdict
from inc_mp_plugin.evaluate.closed_loop import MOST_PLANS, close_loop
from inc_mp_plugin.evaluate.interval import measured_values

TAU = 0.1
COSTS = np.sort(np.random.default_rng(0).lognormal(0.0, 1.0, 60))
BUDGET = 0.3 * COSTS.sum()  # of tau^2


def plan_at(correction):
    """The cheapest ops first: exact where every op gains the same."""
    ops = int(np.searchsorted(COSTS.cumsum(), correction * BUDGET, side="right"))
    nrmse = TAU * (COSTS[:ops].sum() / BUDGET) ** 0.5
    names = tuple(f"op{i}" for i in range(ops))
    return SimpleNamespace(
        gain=float(ops), nrmse=nrmse, largest_gain=60.0, quantized=names, tau=TAU, predicted_kl=None
    )


def wavy(factor, wave, margin=0.1):
    """Measured is predicted times a factor, up to `wave` more or less from plan to plan, +- `margin`."""
    noise = np.random.default_rng(1).uniform(-wave, wave, 61)

    def measure(plan):
        nrmse = plan.nrmse * factor * (1 + noise[len(plan.quantized)])
        return Measured(nrmse, Interval((1 - margin) * nrmse, (1 + margin) * nrmse))

    return measure


@pytest.mark.parametrize("wave", [0.0, 0.03])
@pytest.mark.parametrize("factor", [0.3, 0.7, 1.0, 1.4, 1.8])
def test_holds_and_is_close_to_the_best_of_all(factor, wave):
    measure = wavy(factor, wave)
    verification = close_loop(plan_at, measure, Thresholds(TAU), samples=64, level=0.95)
    chosen = verification.rounds[verification.chosen]
    assert chosen.interval.high <= TAU
    plan = plan_at(verification.correction)
    assert plan.gain == chosen.gain
    assert measure(plan) == Measured(chosen.measured_nrmse, chosen.interval)
    plans = [plan_at(correction) for correction in np.geomspace(1e-4, 100, 4000)]
    best = max(plan.gain for plan in plans if not plan.quantized or measure(plan).interval.high <= TAU)
    assert chosen.gain >= 0.85 * best
    assert len(verification.rounds) <= 1 + MOST_PLANS == 16
    assert len({(a.gain, a.predicted_nrmse) for a in verification.rounds}) == len(verification.rounds)


def test_nothing_behind_the_first_that_does_not_hold_counts():
    """A plan that fails by chance ends each row: everything measured later and held is smaller than it."""
    failing = plan_at(1.0).gain

    def measure(plan):
        nrmse = 2 * TAU if plan.gain == failing else 0.1 * TAU
        return Measured(nrmse, Interval(nrmse, nrmse))

    verification = close_loop(plan_at, measure, Thresholds(TAU), samples=64, level=0.95)
    assert verification.rounds[verification.chosen].gain < failing
    assert max(attempt.gain for attempt in verification.rounds) == failing


def test_a_few_plans_are_announced_before_they_are_measured():
    measure, announced, seen = wavy(1.0, 0.03), [], []

    def ahead(plans):
        assert 0 < len(plans) <= 4
        announced.extend(plan.gain for plan in plans)

    def checked(plan):
        assert plan.gain in announced
        seen.append(plan.gain)
        return measure(plan)

    settings = {"samples": 64, "level": 0.95}
    loop = close_loop(plan_at, checked, Thresholds(TAU), ahead=ahead, **settings)
    assert loop == close_loop(plan_at, measure, Thresholds(TAU), **settings)
    assert len(set(announced) - set(seen)) <= 3 + 2  # of both rows


def test_everything_fits():
    verification = close_loop(plan_at, wavy(0.01, 0.0), Thresholds(TAU), samples=64, level=0.95)
    assert verification.rounds[verification.chosen].gain == 60.0


def test_tightens_below_the_first_step():
    """Predicted eight times too low: still a plan that surely holds, and not nothing."""
    verification = close_loop(plan_at, wavy(8.0, 0.0), Thresholds(TAU), samples=64, level=0.95)
    chosen = verification.rounds[verification.chosen]
    assert chosen.ops > 0
    assert chosen.interval.high <= TAU


@pytest.mark.parametrize("measured", [Measured(5.0, Interval(4.0, 6.0)), Measured(0.01, None)])
def test_nothing_fits_or_nothing_can_be_said(measured):
    verification = close_loop(plan_at, lambda plan: measured, Thresholds(TAU), samples=64, level=0.95)
    chosen = verification.rounds[verification.chosen]
    assert (chosen.ops, chosen.measured_nrmse, chosen.correction) == (0, 0.0, 0.0)


KL = 1e-3


def with_kl(plan):
    """A plan of `plan_at`, whose KL is predicted, too: at tau it is KL."""
    plan.predicted_kl = KL * (plan.nrmse / TAU) ** 2
    return plan


@pytest.mark.parametrize(("tau", "kl"), [(None, KL), (TAU, KL), (TAU, None)])
@pytest.mark.parametrize(("of_loss", "of_kl"), [(1.0, 1.5), (1.3, 0.8), (0.7, 0.7)])
@pytest.mark.parametrize("floor", [0.0, 0.2 * KL])
def test_every_threshold_that_is_given_holds(tau, kl, of_loss, of_kl, floor):
    """Against all plans there are: the chosen one holds, and none that holds gains much more."""

    def measure(plan):
        nrmse, divergence = of_loss * plan.nrmse, of_kl * plan.predicted_kl
        ends = (Interval(0.9 * value, 1.1 * value) for value in (nrmse, divergence))
        return Measured(nrmse, next(ends), divergence, next(ends))

    def holds(plan):
        within_tau = tau is None or 1.1 * of_loss * plan.nrmse <= tau
        return within_tau and (kl is None or 1.1 * of_kl * plan.predicted_kl + floor <= kl)

    thresholds = Thresholds(tau, kl, floor)
    loop = close_loop(lambda c: with_kl(plan_at(c)), measure, thresholds, samples=64, level=0.95)
    assert loop.thresholds == thresholds
    chosen = with_kl(plan_at(loop.correction))
    assert (chosen.gain, holds(chosen)) == (loop.rounds[loop.chosen].gain, True)
    assert loop.rounds[loop.chosen].measured == measure(chosen)
    every = [with_kl(plan_at(correction)) for correction in np.geomspace(1e-4, 100, 4000)]
    assert chosen.gain >= 0.85 * max(plan.gain for plan in every if holds(plan))


def test_a_kl_that_was_not_measured_holds_nothing():
    loop = close_loop(
        lambda c: with_kl(plan_at(c)),
        lambda plan: Measured(0.0, Interval(0.0, 0.0)),
        Thresholds(TAU, KL),
        samples=64,
        level=0.95,
    )
    assert loop.rounds[loop.chosen].ops == 0


def simulated(draw, samples):
    """Loss changes of each op on each sample: normal, with variances that differ between samples and ops.

    Their truth is known: the loss MSE of a plan is the sum of its ops' costs.
    """
    heavy = draw.lognormal(-0.125, 0.5, samples)[:, None]
    scale = TAU**2 / BUDGET
    return np.sqrt(heavy * COSTS * scale) * draw.standard_normal((samples, len(COSTS)))


@pytest.mark.parametrize("samples", [32, 128])
def test_chosen_plans_rarely_exceed_tau(samples):
    """300 loops, predictions off by up to 1.6 times: at most 5 % choose a plan whose true NRMSE is above tau.

    Taking the largest plan that seems to hold does so about every second time.
    """
    draw, ratios, largest = np.random.default_rng(4), [], []
    for _ in range(300):
        sums = simulated(draw, samples).cumsum(axis=1)
        factor = draw.uniform(0.6, 1.6)
        base = draw.uniform(0.9, 1.1, samples)
        base /= (base**2).mean() ** 0.5

        def at(correction, factor=factor):
            plan = plan_at(correction / factor**2)
            plan.nrmse *= factor
            return plan

        def measure(plan, sums=sums, base=base):
            return measured_values(base + sums[:, len(plan.quantized) - 1], base, 0.95)

        verification = close_loop(at, measure, Thresholds(TAU), samples=samples, level=0.95)
        assert verdict(verification.rounds[verification.chosen].interval, TAU) == HELD
        true = (COSTS.cumsum() / BUDGET) ** 0.5
        ops = verification.rounds[verification.chosen].ops
        ratios.append(true[ops - 1] if ops else 0.0)
        seeming = [k for k in range(60) if (sums[:, k] ** 2).mean() <= TAU**2]
        largest.append(true[max(seeming)])
    assert np.mean(np.array(ratios) > 1.0) <= 0.05
    assert np.mean(np.array(largest) > 1.0) >= 0.3
    assert np.mean(ratios) >= (0.65 if samples == 32 else 0.8)
