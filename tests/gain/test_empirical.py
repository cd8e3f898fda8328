"""What is measured, what is shared, and what becomes of it."""

from itertools import product

import pytest

from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.core.timings import OVER_BUDGET, TimedConfiguration, TimedPlan, Timing
from inc_mp_plugin.evaluate.additivity import timed_groups
from inc_mp_plugin.gain.configurations import configurations, free_formats
from inc_mp_plugin.gain.empirical import candidates, empirical_gains, measured_groups

BOTH = ("bf16", "fp8_e4m3")
OPS = ("q0", "k0", "d0", "q1", "k1", "d1", "head")
GRAPH = Graph(
    tuple(Op(name, "bgemm" if name.startswith("k") else "linear", 10, 1, 1) for name in OPS),
    (("q0", "k0"), ("d0",), ("q1", "k1"), ("d1",), ("head",)),
    (),
    {},
    ("att", "down", "att", "down", "head"),
)
EVERYTHING = dict.fromkeys(OPS, BOTH)
GAIN = {"q": 3.0, "k": 1.0, "d": 5.0, "h": 7.0}


def measured(formats):
    """Times of a device on which two ops of a group save a second less than they do alone."""
    saved = sum(GAIN[op[0]] for op in formats)
    overlap = 1.0 if len({op[0] for op in formats} & {"q", "k"}) == 2 else 0.0
    return TimedConfiguration(dict(formats), saved - overlap, 0.5, (15,), (30.0,), (30.0 - saved,))


def failed(formats, why):
    return TimedConfiguration(dict(formats), failure=why)


def timing(requested, change=measured):
    return Timing("cpu", "a CPU", {"ttft": 1}, (30.0,), tuple(change(c.formats) for c in requested))


@pytest.mark.parametrize("count", range(1, 7))
def test_small_groups_are_listed_in_full(count):
    ops = [f"op{i}" for i in range(count)]
    priced, note = configurations(ops, dict.fromkeys(ops, BOTH), {})
    assert (set(priced), len(priced), note) == (set(product(BOTH, repeat=count)), 2**count, "")
    assert priced[0] == ("bf16",) * count


def test_large_groups_have_the_documented_configurations():
    ops = [f"op{i}" for i in range(8)]
    sensitivity = {op: float(8 - i) for i, op in enumerate(ops)}  # the last one is the least sensitive
    priced, note = configurations(ops, dict.fromkeys(ops, BOTH), sensitivity)
    lowered = {frozenset(op for op, f in zip(ops, choice, strict=True) if f != "bf16") for choice in priced}
    alone = {frozenset({op}) for op in ops}
    prefixes = {frozenset(ops[-size:]) for size in range(2, 8)}
    assert lowered == {frozenset(), frozenset(ops)} | alone | prefixes
    assert len(priced) == len(lowered) == 16
    assert note.startswith("8 ops are free, so of 256 configurations 16 were priced")


def test_ops_that_are_not_free_do_not_count():
    ops = [f"op{i}" for i in range(9)]
    graph = Graph(
        tuple(Op(op, "linear" if i < 4 else "bgemm", 1, 1, 1) for i, op in enumerate(ops)), (), (), {}
    )
    priced, note = configurations(ops, free_formats(graph, ops[1:], BOTH, ("linear",)), {})
    assert (len(priced), note) == (8, "")


def test_groups_of_the_same_structure_are_measured_once():
    groups = measured_groups(GRAPH, EVERYTHING, {})
    assert [(group.ops, len(group.alike)) for group in groups] == [
        (("q0", "k0"), 2),
        (("d0",), 2),
        (("head",), 1),
    ]
    requested = candidates(groups, "bf16")
    assert [set(candidate.formats) for candidate in requested] == [
        {"k0"},
        {"q0"},
        {"q0", "k0"},
        {"d0"},
        {"head"},
    ]
    assert [candidate.shared_by for candidate in requested] == [2, 2, 2, 2, 1]
    gains = empirical_gains(groups, timing(requested), GRAPH, "bf16")
    assert [group.ops for group in gains.groups] == list(GRAPH.groups)
    assert [group.measured_on for group in gains.groups] == [(), (), ("q0", "k0"), ("d0",), ()]
    assert gains.groups[2].gain == gains.groups[0].gain == (0.0, 1.0, 3.0, 3.0)
    assert gains.source == "measured"


def test_every_group_measures_all():
    groups = measured_groups(GRAPH, EVERYTHING, {}, every_group=True)
    assert [group.ops for group in groups] == list(GRAPH.groups)
    gains = empirical_gains(groups, timing(candidates(groups, "bf16")), GRAPH, "bf16")
    assert all(not group.measured_on for group in gains.groups)


def test_groups_that_are_not_free_in_the_same_way_are_not_shared():
    groups = measured_groups(GRAPH, {**EVERYTHING, "q1": ("bf16",)}, {})
    assert [group.ops for group in groups][:3] == [("q0", "k0"), ("d0",), ("q1", "k1")]


def test_a_failed_configuration_leaves_its_groups_at_base():
    def change(formats):
        return (
            TimedConfiguration(dict(formats), failure="RuntimeError: no kernel")
            if "k0" in formats
            else measured(formats)
        )

    groups = measured_groups(GRAPH, EVERYTHING, {})
    gains = empirical_gains(groups, timing(candidates(groups, "bf16"), change), GRAPH, "bf16")
    for group in (gains.groups[0], gains.groups[2]):
        assert (group.configurations, group.gain) == ((("bf16", "bf16"),), (0.0,))
        assert group.note == "left in the base format: k0 failed: RuntimeError: no kernel"
    assert gains.groups[1].gain == (0.0, 5.0)


def test_configurations_over_budget_are_left_out():
    def change(formats):
        return (
            TimedConfiguration(dict(formats), failure=OVER_BUDGET) if len(formats) == 2 else measured(formats)
        )

    groups = measured_groups(GRAPH, EVERYTHING, {})
    group = empirical_gains(groups, timing(candidates(groups, "bf16"), change), GRAPH, "bf16").groups[0]
    assert group.gain == (0.0, 1.0, 3.0)
    assert group.note == f"1 configurations were not measured: {OVER_BUDGET}"
    lowered = dict.fromkeys(("q0", "k0"), "fp8_e4m3")
    gains = empirical_gains(groups, timing(candidates(groups, "bf16"), change), GRAPH, "bf16")
    assert gains.total(lowered) is None


def test_sums_and_their_errors_by_hand():
    groups = measured_groups(GRAPH, EVERYTHING, {})
    gains = empirical_gains(groups, timing(candidates(groups, "bf16")), GRAPH, "bf16")
    lowered = dict.fromkeys(("q0", "k0", "q1", "k1", "head"), "fp8_e4m3")
    # Two attention groups of one measurement: 0.5 + 0.5; the head's own: 0.5.
    assert gains.total(lowered) == (3.0 + 3.0 + 7.0, pytest.approx((1.0**2 + 0.5**2) ** 0.5))
    # The same op lowered in one layer and another one in the other: two measurements.
    mixed = {"q0": "fp8_e4m3", "k1": "fp8_e4m3"}
    assert gains.total(mixed) == (4.0, pytest.approx(0.5 * 2**0.5))


def test_groups_beside_the_sum_of_their_ops():
    groups = measured_groups(GRAPH, EVERYTHING, {})
    gains = empirical_gains(groups, timing(candidates(groups, "bf16")), GRAPH, "bf16")
    (group,) = timed_groups(gains, GRAPH)
    assert (group.quantized, group.measured_s, group.sum_of_ops_s, group.macs) == (("q0", "k0"), 3.0, 4.0, 20)


@pytest.mark.parametrize(
    ("measured_s", "stderr_s", "additive"),
    [(95.1, 0.0, True), (94.9, 0.0, False), (94.0, 3.1, True), (90.0, 4.9, False)],
    ids=["within 5 %", "beyond", "within two errors", "beyond both"],
)
def test_when_time_counts_as_additive(measured_s, stderr_s, additive):
    plan = TimedPlan("memory", 0.1, ("a",), 100.0, 0.0, measured_s, stderr_s)
    assert plan.additive == additive
