"""Time of a measurement, before it is made."""

import pytest
import torch

from inc_mp_plugin.core.graph import Gemm, Graph, Op
from inc_mp_plugin.sensitivity import effort


def graph_of(*ops):
    return Graph(tuple(ops), tuple((op.name,) for op in ops), (), {})


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"losses": 1, "measured": False, "drift": False, "replays": False}, 3),
        ({"losses": 2, "measured": True, "drift": True, "replays": False}, 1 + 4 + 1 + 1),
        ({"losses": 2, "measured": True, "drift": True, "replays": True}, 1 + 4 + 1 + 1 + 2),
    ],
)
def test_passes(settings, count):
    assert effort.passes(**settings) == count


def test_time_by_hand(monkeypatch):
    """An expert that runs in a quarter of the passes counts as a quarter."""
    always = Op("a", "linear", 0, 0, 1, gemms=(Gemm(1, 10, 20, 30), Gemm(2, 10, 5, 30)))
    expert = Op("b", "linear", 0, 0, 1, gemms=(Gemm(1, 10, 20, 40),), share=0.25)
    monkeypatch.setattr(effort, "_macs_per_s", lambda gemm, dtype, most: 1000.0)
    seconds = effort.estimated_s(graph_of(always, expert), torch.float32, batches=4, passes=3)
    assert seconds == pytest.approx(1.5 * 3 * 4 * (6000 + 3000 + 2000) / 1000)


def test_a_large_product_is_cut(monkeypatch):
    made = []
    monkeypatch.setattr(torch, "mm", lambda left, right: made.append((left.shape, right.shape)))
    assert effort._macs_per_s(Gemm(1, 2048, 4096, 128256), torch.bfloat16, 2**31) > 0
    assert set(made) == {((2048, 4096), (4096, 256))}


def test_a_graph_without_products_takes_no_time():
    assert effort.estimated_s(graph_of(), torch.float32, batches=4, passes=3) == 0.0


@pytest.mark.parametrize("faster", [True, False])
def test_products_in_fp32_are_decided_by_the_costliest_product(monkeypatch, caplog, faster):
    """Of 32768 rows; FP32 is told by what a product of BF16 tensors computes inside."""
    caplog.set_level("INFO")
    graph = graph_of(Op("a", "linear", 0, 0, 1, gemms=(Gemm(1, 2**15, 64, 64), Gemm(1, 2, 64, 64))))
    trials = []

    def speed(gemm, dtype, most):
        exact = torch.mm(torch.full((1, 3), 1 / 3, dtype=dtype), torch.ones(3, 2, dtype=dtype))
        trials.append((gemm.rows, dtype, exact.dtype))
        return 10.0 if len(trials) == 1 else (20.0 if faster else 11.0)

    monkeypatch.setattr(effort, "_macs_per_s", speed)
    assert effort.faster_in_fp32(torch.nn.Linear(64, 64, dtype=torch.bfloat16), graph) == faster
    assert trials == 2 * [(2**15, torch.bfloat16, torch.bfloat16)]
    assert ("bfloat16 are computed in float32 and rounded, 2.0 times as fast" in caplog.text) == faster


@pytest.mark.parametrize(
    ("dtype", "rows"), [(torch.float32, 2**15), (torch.float16, 2)], ids=["fp32", "too small to tell"]
)
def test_products_stay_as_they_are(dtype, rows):
    graph = graph_of(Op("a", "linear", 0, 0, 1, gemms=(Gemm(1, rows, 64, 64),)))
    assert not effort.faster_in_fp32(torch.nn.Linear(64, 64, dtype=dtype), graph)
    assert not effort.faster_in_fp32(torch.nn.Linear(64, 64, dtype=dtype), graph_of())
