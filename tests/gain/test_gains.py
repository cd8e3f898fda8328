"""Gains against numbers worked out by hand."""

import pytest

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import FORMATS
from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.gain.accelerators import ACCELERATORS
from inc_mp_plugin.gain.per_op import mac_gains, memory_gains, seconds_per_mac

GRAPH = Graph(
    (
        Op("proj", "linear", 1000, 40, 1),
        Op("qk", "bgemm", 500, 0, 1),
        Op("head", "linear", 2000, 80, 1, tied=True),
    ),
    (("proj", "qk"), ("head",)),
    (),
    {},
)


def by_op(gains):
    return {group.ops[0]: dict(zip(group.configurations, group.gain, strict=True)) for group in gains.groups}


def test_memory_by_hand():
    gains = memory_gains(GRAPH, ("bf16", "fp8_e4m3"))
    assert (gains.unit, gains.source, gains.base) == ("byte", "exact", "bf16")
    assert by_op(gains) == {
        "proj": {("bf16",): 0.0, ("fp8_e4m3",): 40.0},
        "qk": {("bf16",): 0.0},  # nothing stored, nothing gained: it stays
        "head": {("bf16",): 0.0, ("fp8_e4m3",): -80.0},  # untied: its copy comes on top
    }
    assert gains.cost == 80.0


def test_memory_against_fp32_and_with_two_formats():
    gains = by_op(memory_gains(GRAPH, ("fp32", "bf16", "fp8_e4m3")))
    assert gains["proj"] == {("fp32",): 0.0, ("bf16",): 80.0, ("fp8_e4m3",): 120.0}
    assert gains["head"] == {("fp32",): 0.0, ("bf16",): -160.0, ("fp8_e4m3",): -80.0}


def test_time_by_hand():
    gains = mac_gains(GRAPH, ("bf16", "fp8_e4m3"), "gaudi2")
    saved = 2 / 432e12 - 2 / 865e12
    assert (gains.unit, gains.source) == ("s", "modelled")
    assert gains.cost == pytest.approx(3500 * 2 / 432e12, rel=1e-12)
    for op in GRAPH.ops:
        assert by_op(gains)[op.name][("fp8_e4m3",)] == pytest.approx(op.macs * saved, rel=1e-12)


def test_gaudi3_gains_no_time():
    assert {max(group.gain) for group in mac_gains(GRAPH, device="gaudi3").groups} == {0.0}


@pytest.mark.parametrize("device", ACCELERATORS)
def test_no_format_is_slower_than_a_finer_one(device):
    times = [seconds_per_mac(device, f) for f in FORMATS if f in ACCELERATORS[device].flops]
    assert len(times) > 1
    assert times == sorted(times, reverse=True)


def test_errors():
    with pytest.raises(InputError, match="unknown device 'gaudi'; did you mean"):
        mac_gains(GRAPH, device="gaudi")
    with pytest.raises(InputError, match="no peak is known for fp32 on gaudi2"):
        mac_gains(GRAPH, ("fp32", "fp8_e4m3"))
