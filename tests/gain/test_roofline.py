"""Modelled time against numbers worked out by hand, and schedules against bounds."""

import networkx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.graph import Gemm, Graph, Op
from inc_mp_plugin.gain.accelerators import ACCELERATORS
from inc_mp_plugin.gain.roofline import Phase, cast_s, gemm_s, roofline_gains
from inc_mp_plugin.gain.schedule import Task, makespan

G2, G3 = ACCELERATORS["gaudi2"], ACCELERATORS["gaudi3"]
LLAMA_LAYER = [(4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)]  # qkv, o, gate and up, down


@pytest.mark.parametrize(
    ("tokens", "gaudi2_us", "gaudi3_us"),
    [(16, (178, 89), (119, 59)), (512, (533, 270), (180, 173)), (2048, (2134, 1081), (719, 693))],
    ids=["memory", "between", "compute"],
)
def test_a_llama_layer_by_hand(tokens, gaudi2_us, gaudi3_us):
    """Microseconds worked out apart: max(2 M K N / P, (K N b + M K b + 2 M N) / B), added up."""
    for device, expected_us in ((G2, gaudi2_us), (G3, gaudi3_us)):
        for format_name, microseconds in zip(("bf16", "fp8_e4m3"), expected_us, strict=True):
            total = sum(gemm_s(Gemm(1, tokens, k, n), format_name, "bf16", device) for k, n in LLAMA_LAYER)
            assert total * 1e6 == pytest.approx(microseconds, rel=0.012)


def test_casts_by_hand():
    linear = Op("a", "linear", 0, 1, 1, gemms=(Gemm(1, 8, 100, 50),))
    product = Op("b", "bgemm", 0, 0, 1, gemms=(Gemm(2, 8, 100, 50),))
    assert cast_s(linear, "fp8_e4m3", "bf16", G2) == 800 * 3 / 2.46e12
    assert cast_s(product, "fp8_e4m3", "bf16", G2) == 2 * (800 + 5000) * 3 / 2.46e12


def graph(rows):
    """Two products that a third one waits for."""
    shape = (Gemm(1, rows, 4096, 4096),)
    ops = (
        Op("a", "linear", 1, 1, 1, gemms=shape),
        Op("b", "linear", 1, 1, 1, gemms=shape),
        Op("c", "linear", 1, 1, 1, gemms=shape, after=("a", "b")),
    )
    return Graph(ops, (("a", "b", "c"),), (), {}, ("x",))


def test_a_group_by_hand():
    """Base: three products one after the other. All low: b's cast hides behind a's product."""
    shape = Gemm(1, 512, 4096, 4096)
    base, lowered = (gemm_s(shape, f, "bf16", G2) for f in ("bf16", "fp8_e4m3"))
    cast = cast_s(graph(512).ops[0], "fp8_e4m3", "bf16", G2)
    assert cast < lowered
    gains = roofline_gains(graph(512))
    gain = dict(zip(gains.groups[0].configurations, gains.groups[0].gain, strict=True))
    f = "fp8_e4m3"
    assert (gains.objective, gains.source, gains.unit) == ("roofline", "modelled", "s")
    assert gain[(f, "bf16", "bf16")] == pytest.approx(base - lowered)  # cast while b runs
    assert gain[("bf16", "bf16", f)] == pytest.approx(base - lowered - cast)  # c waits for both, then casts
    assert gain[(f, f, f)] == pytest.approx(3 * (base - lowered) - 2 * cast)


def test_a_request_counts_its_passes():
    prompt, step = graph(512), graph(1)
    whole = roofline_gains([Phase(prompt), Phase(step, 64)])
    gains = [made.groups[0].gain for made in (whole, roofline_gains(prompt), roofline_gains(step))]
    for total, first, then in zip(*gains, strict=True):
        assert total == pytest.approx(first + 64 * then)


def test_gaudi3_gains_by_decoding_and_not_by_long_prompts():
    long, step = (max(roofline_gains(graph(rows), device="gaudi3").groups[0].gain) for rows in (4096, 1))
    base = {rows: 3 * gemm_s(Gemm(1, rows, 4096, 4096), "bf16", "bf16", G3) for rows in (4096, 1)}
    assert long / base[4096] < 0.05
    assert step / base[1] > 0.45


def test_errors():
    with pytest.raises(InputError, match="unknown device 'gaudi4'"):
        roofline_gains(graph(1), device="gaudi4")
    with pytest.raises(InputError, match="no peak is known for fp32 on gaudi2"):
        roofline_gains(graph(1), ("fp32", "bf16"))
    other = Graph(graph(1).ops[:2], (("a", "b"),), (), {})
    with pytest.raises(InputError, match="op 'c' does not run in every phase"):
        roofline_gains([Phase(graph(1)), Phase(other)])


@st.composite
def tasks(draw):
    count = draw(st.integers(1, 9))
    tasks = {}
    for index in range(count):
        after = draw(st.sets(st.integers(0, index - 1))) if index else set()
        engine = draw(st.sampled_from(["matrix", "vector"]))
        seconds = draw(st.floats(0.0, 10.0))
        tasks[str(index)] = Task(engine, seconds, tuple(str(i) for i in sorted(after)))
    return tasks


@given(tasks())
def test_schedules_keep_within_their_bounds(work):
    """At least every engine's load and the longest chain; at most one task after the other."""
    chains = networkx.DiGraph()
    chains.add_nodes_from(work)
    for name, task in work.items():
        chains.add_edge("start", name, weight=task.seconds)
        chains.add_edges_from((other, name, {"weight": task.seconds}) for other in task.after)
    longest = networkx.dag_longest_path_length(chains)
    loads = [sum(t.seconds for t in work.values() if t.engine == e) for e in ("matrix", "vector")]
    seconds = makespan(work)
    assert max(longest, *loads) <= seconds + 1e-9
    assert seconds <= sum(loads) + 1e-9
    one_engine = {name: Task("matrix", task.seconds, task.after) for name, task in work.items()}
    assert makespan(one_engine) == pytest.approx(sum(loads))
    own_engines = {name: Task(name, task.seconds, task.after) for name, task in work.items()}
    assert makespan(own_engines) == pytest.approx(longest)
