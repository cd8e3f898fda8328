"""The harness on a machine with a fake clock, whose true gains are known."""

import random
import statistics

import numpy as np
import pytest

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.core.timings import OVER_BUDGET
from inc_mp_plugin.gain.bench import Pass, TimingSettings
from inc_mp_plugin.gain.devices import CPU
from inc_mp_plugin.gain.paired_timing import Candidate, gain_and_stderr, measure
from inc_mp_plugin.runtime.store import Partial

BF16 = "bf16"


class Machine:
    """A model whose ops save known times in BF16, on a device that drifts, jitters and stumbles."""

    def __init__(self, saves, base=1.0, drift=0.0, noise=0.0, stumbles=0.0, compiles=0.0, seed=0):
        self.saves, self.base, self.drift, self.noise = saves, base, drift, noise
        self.stumbles, self.compiles = stumbles, compiles
        self.draw = random.Random(seed)
        self.now, self.calls, self.selected, self.log, self.seen = 0.0, 0, {}, [], set()
        self.fails, self.stop_at = set(), None

    def clock(self):
        return self.now

    def select(self, formats):
        self.selected = dict(formats)

    def run(self, factor=1.0):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        if self.fails & self.selected.keys():
            message = "no such kernel\n  at line 3"
            raise RuntimeError(message)
        key = frozenset(self.selected)
        seconds = self.base - sum(self.saves[op] for op in key) + self.drift * self.calls
        seconds += self.draw.gauss(0.0, self.noise)
        if self.draw.random() < self.stumbles:
            seconds += 5.0
        if key not in self.seen:
            seconds += self.compiles
        self.seen.add(key)
        self.log.append(key)
        self.now += factor * seconds

    def passes(self):
        return [Pass("ttft", 1, self.run)]


def timed(machine, candidates, tmp_path, passes=None, **settings):
    return measure(
        CPU(machine.clock),
        machine.select,
        passes or machine.passes(),
        candidates,
        settings=TimingSettings(**{"most_repeats": 15, **settings}),
        partial=Partial(tmp_path / "partial.npz", "key"),
        clock=machine.clock,
    )


def candidate(op, group=0, shared_by=1):
    return Candidate({op: BF16}, group, shared_by)


@pytest.mark.parametrize("drift", [0.0, 0.01, -0.001], ids=["steady", "slowing", "speeding"])
def test_a_linear_drift_cancels(drift, tmp_path):
    machine = Machine({"a": 0.25, "b": -0.125}, drift=drift)
    timing = timed(machine, [candidate("a"), candidate("b", 1)], tmp_path)
    assert [c.gain_s for c in timing.configurations] == pytest.approx([0.25, -0.125], abs=1e-9)
    assert [c.stderr_s for c in timing.configurations] == pytest.approx([0.0, 0.0], abs=1e-9)


def test_base_and_configuration_take_turns(tmp_path):
    machine = Machine({"a": 0.25})
    timed(machine, [candidate("a")], tmp_path, repeats=4, most_repeats=4)
    base, lowered = frozenset(), frozenset({"a"})
    assert machine.log[-9:] == [base, lowered] * 4 + [base]
    assert machine.selected == {}


def test_outliers_move_nothing(tmp_path):
    machine = Machine({"a": 0.25}, noise=0.001, stumbles=0.15, seed=4)
    timing = timed(machine, [candidate("a")], tmp_path, repeats=40, most_repeats=40)
    assert timing.configurations[0].gain_s == pytest.approx(0.25, abs=0.002)
    assert timing.configurations[0].stderr_s < 0.002


def test_standard_errors_are_true(tmp_path):
    """Over many measurements, (estimate - truth) / standard error is about standard normal."""
    ratios = []
    for seed in range(200):
        machine = Machine({"a": 0.25}, noise=0.01, seed=seed)
        timing = timed(machine, [candidate("a")], tmp_path / str(seed), repeats=40, most_repeats=40)
        measured = timing.configurations[0]
        ratios.append((measured.gain_s - 0.25) / measured.stderr_s)
    assert 0.8 < statistics.stdev(ratios) < 1.3
    assert abs(statistics.mean(ratios)) < 0.25


def test_noisy_configurations_get_more_pairs_until_they_are_precise(tmp_path):
    machine = Machine({"a": 0.25}, noise=0.02)
    rough = timed(machine, [candidate("a")], tmp_path / "rough").configurations[0]
    fine = timed(
        machine, [candidate("a")], tmp_path / "fine", most_repeats=4000, precision=0.01
    ).configurations[0]
    assert fine.pairs[0] > rough.pairs[0] == 15
    assert fine.stderr_s <= 0.01 * 0.25 * 1.05 < rough.stderr_s


def test_shared_measurements_have_to_be_more_precise(tmp_path):
    settings = {"most_repeats": 4000, "precision": 0.01}
    candidates = [candidate("a", 0, shared_by=8), candidate("b", 1)]
    machine = Machine({"a": 0.1, "b": 0.1}, noise=0.02)
    shared, own = timed(machine, candidates, tmp_path, **settings).configurations
    assert shared.pairs[0] > 4 * own.pairs[0]


def test_whole_plans_are_each_precise_on_their_own(tmp_path):
    machine = Machine({"a": 0.9, "b": 0.05}, noise=0.005)
    plans = [Candidate({"a": BF16}, 0, total=0), Candidate({"b": BF16}, 0, total=1)]
    large, small = timed(machine, plans, tmp_path, most_repeats=4000, precision=0.02).configurations
    assert large.pairs == (15,)
    assert small.stderr_s <= 0.02 * 0.05 * 1.1


def test_compiling_is_kept_apart(tmp_path):
    machine = Machine({"a": 0.25}, compiles=30.0)
    measured = timed(machine, [candidate("a")], tmp_path).configurations[0]
    assert measured.gain_s == pytest.approx(0.25)
    assert measured.compile_s == pytest.approx(30.0)


def test_a_request_is_the_sum_of_its_passes(tmp_path):
    machine = Machine({"a": 0.25})
    prepared = []
    passes = [
        Pass("ttft", 1, machine.run),
        Pass("tpot", 64, lambda: machine.run(0.1), lambda: prepared.append(machine.calls)),
    ]
    timing = timed(machine, [candidate("a")], tmp_path, passes=passes)
    assert timing.base_s == pytest.approx((1.0, 0.1))
    assert timing.price_s == pytest.approx(1.0 + 64 * 0.1)
    measured = timing.configurations[0]
    assert measured.gain_s == pytest.approx(0.25 + 64 * 0.025)
    assert measured.low_s == pytest.approx((0.75, 0.075))
    assert len(prepared) >= 2 * 15


def test_a_configuration_that_cannot_run_is_reported_and_the_rest_is_measured(tmp_path):
    machine = Machine({"a": 0.25, "b": 0.5})
    machine.fails = {"a"}
    failed, fine = timed(machine, [candidate("a"), candidate("b", 1)], tmp_path).configurations
    assert failed.failure == "RuntimeError: no such kernel at line 3"
    assert failed.pairs == ()
    assert fine.gain_s == pytest.approx(0.5)


def test_a_base_that_cannot_run_is_the_users_error(tmp_path):
    machine = Machine({})

    def run():
        message = "CUDA out of memory"
        raise RuntimeError(message)

    with pytest.raises(InputError, match="cannot run in its base format on .*: RuntimeError: CUDA out of"):
        timed(machine, [], tmp_path, passes=[Pass("ttft", 1, run)])


def test_a_time_that_is_no_number_stops_it(tmp_path):
    machine = Machine({}, base=float("nan"))
    with pytest.raises(NonFiniteError, match="a time that is not a number"):
        timed(machine, [], tmp_path)


def test_the_budget_thins_out_and_then_ends(tmp_path):
    candidates = [candidate(op, group) for group, op in enumerate("abcdef")]
    saves = dict.fromkeys("abcdef", 0.25)
    thin = timed(Machine(saves), candidates, tmp_path / "thin", budget_s=110.0)
    assert {c.failure for c in thin.configurations} == {""}
    assert all(3 <= c.pairs[0] < 15 for c in thin.configurations)
    cut = timed(Machine(saves), candidates, tmp_path / "cut", budget_s=20.0)
    assert [bool(c.pairs) for c in cut.configurations] == sorted(
        (bool(c.pairs) for c in cut.configurations), reverse=True
    )
    assert {c.failure for c in cut.configurations if not c.pairs} == {OVER_BUDGET}
    whole = timed(Machine(saves), candidates, tmp_path / "whole", budget_s=1e6)
    assert all(c.pairs == (15,) for c in whole.configurations)


def test_an_interrupted_run_repeats_no_finished_measurement(tmp_path):
    candidates = [candidate("a"), candidate("b", 1), candidate("c", 2)]
    saves = {"a": 0.25, "b": 0.5, "c": 0.75}
    undisturbed = timed(Machine(saves), candidates, tmp_path / "whole")
    machine = Machine(saves)
    machine.stop_at = 90
    with pytest.raises(KeyboardInterrupt):
        timed(machine, candidates, tmp_path)
    again = Machine(saves)
    assert timed(again, candidates, tmp_path) == undisturbed
    assert frozenset("a") not in again.log
    assert frozenset("c") in again.log


def test_nothing_to_measure_still_times_the_base(tmp_path):
    timing = timed(Machine({}), [], tmp_path)
    assert (timing.price_s, timing.configurations) == (1.0, ())


def test_gain_and_stderr_by_hand():
    gain, stderr = gain_and_stderr(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert gain == 3.0
    assert stderr == pytest.approx(1.2533 * 1.4826 * 1.0 * (4 / 15) ** 0.5)
