"""Repeated blocks, and the memory that follows from them: of graphs made by hand."""

import pytest

from inc_mp_plugin.core.blocks import repeated_blocks
from inc_mp_plugin.core.footprint import footprint
from inc_mp_plugin.core.graph import Gemm, Graph, Op


def graph(*names, sizes=None, calls=None):
    return Graph(
        tuple(
            Op(n, "linear", 1, (sizes or {}).get(n, 6), (calls or {}).get(n, 1), gemms=(Gemm(1, 10, 2, 3),))
            for n in names
        ),
        (),
        (),
        {},
    )


def with_experts(layers, experts):
    """So many layers with more experts in each: their ops run in some of the passes."""
    names = [f"layers.{i}.experts.{j}.up" for i in range(layers) for j in range(experts)]
    ops = [Op(name, "linear", 1, 6, 1, share=0.9) for name in names]
    routers = [Op(f"layers.{i}.gate", "linear", 1, 6, 1) for i in range(layers)]
    whole = [op for i in range(layers) for op in (routers[i], *ops[i * experts : (i + 1) * experts])]
    return Graph(tuple(whole), (), (), {})


def layers(count, prefix="layers", ops=("q", "up")):
    return [f"{prefix}.{i}.{op}" for i in range(count) for op in ops]


CASES = {
    "layers and a head": (graph("embed.in", *layers(3), "head"), ("layers.0", "layers.1", "layers.2")),
    "two towers of three": (
        graph(*layers(3, "left.layers"), *layers(3, "right.layers")),
        tuple(f"{tower}.layers.{i}" for tower in ("left", "right") for i in range(3)),
    ),
    "two parts in each of two": (
        graph(*(f"layers.{i}.{part}.q" for i in range(2) for part in ("self", "cross"))),
        ("layers.0", "layers.1"),
    ),
    "the first is another one": (
        graph("layers.0.q", "layers.0.dense", "layers.0.up", *layers(4)[2:]),
        ("layers.0", "layers.1", "layers.2", "layers.3"),
    ),
    "ops beside each other are no blocks": (graph("0", "1", "2"), ()),
    "experts run beside each other": (with_experts(2, 5), ("layers.0", "layers.1")),
    "of other sizes": (graph(*layers(2), sizes={"layers.1.q": 8}), ()),
    "entered twice": (graph("layers.0.q", "layers.1.q", "layers.0.up", "layers.1.up"), ()),
    "shared by all layers": (graph(*layers(2), calls=dict.fromkeys(layers(2), 3)), ()),
    "a single op": (graph("head"), ()),
    "nothing": (graph(), ()),
}


@pytest.mark.parametrize(("given", "expected"), CASES.values(), ids=CASES)
def test_repeated_blocks(given, expected):
    assert repeated_blocks(given) == expected


def test_low_memory_grows_by_one_input_per_block_and_high_memory_by_all_that_ops_read_and_give():
    few, many = (footprint(graph(*layers(n)), 4, in_files=False) for n in (10, 20))
    assert many.low - few.low == 10 * 4 * 10 * 2
    assert footprint(graph(*layers(10)), 4).low == footprint(graph(*layers(20)), 4).low
    assert many.high - few.high == pytest.approx(10 * 4 * 1.6 * 2 * (10 * 2 + 10 * 3), abs=1)


def with_products(macs, *shape):
    """Two blocks of linear ops, and such products; what these add to the estimate, in BF16."""
    linears = graph(*layers(2))
    products = [Op(f"layers.{i}.matmul_qk", "bgemm", macs, 0, 1, gemms=(Gemm(*shape),)) for i in range(2)]
    ops = [op for i in range(2) for op in (*linears.ops[2 * i : 2 * i + 2], products[i])]
    both, without = footprint(Graph(tuple(ops), (), (), {}), 2), footprint(linears, 2)
    return both.low - without.low, both.high - without.high


def test_attention_products_keep_what_they_read_and_give():
    """By hand: 3 heads of 5 x 2 by 2 x 7. In low memory, scores four times in BF16 and four in FP32."""
    elements = 3 * (5 * 2 + 2 * 7 + 5 * 7)
    more_low, more_high = with_products(3 * 5 * 2 * 7, 3, 5, 2, 7)
    assert more_high == pytest.approx(2 * 2 * elements, abs=1)
    assert more_low == pytest.approx(2 * 4 * 105 + 16 * 105, abs=1)


def test_of_many_scores_those_of_one_key_head_count_in_low_memory():
    """By hand: 2 samples of 8 key heads, each with 4 x 2048 rows of queries and 2048 keys."""
    scores = 2 * 4 * 2048 * 2048
    more_low, _ = with_products(8 * 4 * 2048 * 64 * 2048, 16, 4 * 2048, 64, 2048)
    assert more_low == pytest.approx(2 * 4 * scores + 16 * 2**22, abs=1)


def test_without_repeated_blocks_both_are_the_same():
    estimate = footprint(graph("0", "1"), 4)
    assert estimate.low == estimate.high


def test_a_rounded_copy_of_large_weights_counts_in_high_memory_alone():
    large = graph(*layers(2), sizes=dict.fromkeys(layers(2), 10**9))
    plain, rounded = footprint(large, 2), footprint(large, 2, rounded=True)
    assert rounded.low == plain.low
    assert rounded.high - plain.high == pytest.approx(8e9, rel=1e-3)
