"""Intervals of measured losses: against a plain bootstrap, and by how often they hold a known truth."""

import numpy as np
import pytest

from inc_mp_plugin.core.divergence import Divergence
from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.core.verdicts import EXCEEDED, HELD, UNDECIDED, verdict
from inc_mp_plugin.evaluate.interval import mean_ratio_interval, measured_values


def plain(parts, wholes, level, draws=2000):
    """The studentized bootstrap of log(mean / mean), one draw after the other."""

    def log_ratio(a, b):
        influence = a / a.mean() - b / b.mean()
        return np.log(a.mean() / b.mean()), influence.std(ddof=1) / len(a) ** 0.5

    generator = np.random.default_rng(5)
    middle, error = log_ratio(parts, wholes)
    t = []
    for _ in range(draws):
        rows = generator.integers(0, len(parts), len(parts))
        value, own_error = log_ratio(parts[rows], wholes[rows])
        t.append((value - middle) / own_error)
    lower, upper = np.quantile(t, [(1 - level) / 2, (1 + level) / 2])
    return np.exp(middle - upper * error), np.exp(middle - lower * error)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_against_one_draw_after_the_other(level):
    draw = np.random.default_rng(1)
    parts, wholes = draw.lognormal(0.0, 1.0, 40), draw.uniform(1.0, 3.0, 40)
    interval = mean_ratio_interval(parts, wholes, level)
    assert interval == pytest.approx(plain(parts, wholes, level), rel=0.04)


@pytest.mark.parametrize(("samples", "spread"), [(32, 0.0), (32, 0.5), (128, 0.5)])
def test_it_holds_the_truth_as_often_as_it_says(samples, spread):
    """Squares of normal changes whose variance differs between samples, relative to a loss that differs, too.

    The upper end matters: the plain bootstrap's is too low in 8 to 10 of 100 cases here.
    """
    draw, above, below = np.random.default_rng(2), 0, 0
    for _ in range(500):
        variances = draw.lognormal(-(spread**2) / 2, spread, samples)
        changes = variances * draw.standard_normal(samples) ** 2
        lower, upper = mean_ratio_interval(changes, draw.uniform(0.5, 1.5, samples), 0.95)
        above, below = above + (upper < 1.0), below + (lower > 1.0)
    assert above <= 0.06 * 500
    assert below <= 0.05 * 500


def test_scale_and_order_do_not_matter():
    draw = np.random.default_rng(3)
    parts, wholes = draw.exponential(1.0, 30), np.full(30, 2.0)
    lower, upper = mean_ratio_interval(parts, wholes, 0.9)
    assert mean_ratio_interval(1e-9 * parts, wholes, 0.9) == pytest.approx((1e-9 * lower, 1e-9 * upper))
    assert lower < parts.mean() / 2.0 < upper
    narrow = mean_ratio_interval(parts, wholes, 0.5)
    assert lower < narrow.low < narrow.high < upper


def test_what_says_nothing():
    assert mean_ratio_interval(np.ones(7), np.ones(7), 0.95) is None
    hit = np.zeros(20)
    hit[3] = 1.0  # a third of all draws miss it: there is no upper end
    assert mean_ratio_interval(hit, np.ones(20), 0.95) is None
    assert mean_ratio_interval(np.zeros(20), np.ones(20), 0.95) == (0.0, 0.0)
    assert mean_ratio_interval(np.full(20, 3.0), np.ones(20), 0.95) == pytest.approx((3.0, 3.0))


def test_nrmse_by_hand():
    base, changes = np.full(16, 2.0), np.tile([0.1, -0.3], 8)
    measured = measured_values(base + changes, base, 0.95)
    assert measured.nrmse == pytest.approx((0.05 / 4.0) ** 0.5)
    assert measured.interval.low < measured.nrmse < measured.interval.high
    assert measured.interval == pytest.approx(
        [end**0.5 for end in mean_ratio_interval(changes**2, base**2, 0.95)]
    )


def test_mean_kl_by_hand():
    """Of all positions, so that a sample counts by its length; over samples as any ratio of means."""
    sums, positions = np.tile([1e-3, 4e-3], 8), np.tile([1.0, 10.0], 8)
    nothing = np.zeros(16)
    divergence = Divergence(sums, positions, nothing, nothing, nothing, nothing, 0.0)
    measured = measured_values(np.ones(16), np.ones(16), 0.9, divergence)
    assert measured.kl == pytest.approx(5e-3 / 11)
    assert measured.kl_interval == mean_ratio_interval(sums, positions, 0.9)
    assert measured.kl_interval.low < measured.kl < measured.kl_interval.high


def test_nothing_is_held_closer_to_its_threshold_than_the_floor():
    interval = Interval(1.0, 2.0)
    assert [verdict(interval, 2.5, floor) for floor in (0.0, 0.5, 0.6)] == [HELD, HELD, UNDECIDED]
    assert verdict(interval, 0.9, 0.6) == EXCEEDED


@pytest.mark.parametrize(
    ("tau", "expected"), [(0.5, EXCEEDED), (1.0, UNDECIDED), (1.5, UNDECIDED), (2.0, HELD)]
)
def test_verdicts(tau, expected):
    assert verdict(Interval(1.0, 2.0), tau) == expected
    assert verdict(None, tau) == UNDECIDED
