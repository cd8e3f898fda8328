"""The partition against comparability by brute force."""

import random

import networkx
import pytest

from inc_mp_plugin.graph.partition import partition


def brute_force(predecessors, ops):
    """Group ops by the definition: cuts are the vertices comparable with every other."""
    graph = networkx.DiGraph([(p, v) for v, above in predecessors.items() for p in above])
    graph.add_nodes_from(predecessors)
    above = {v: networkx.ancestors(graph, v) for v in graph}
    below = {v: networkx.descendants(graph, v) for v in graph}
    inner = [v for v in predecessors if v in ops or (above[v] & ops and below[v] & ops)]
    cuts = {v for v in inner if all(w == v or w in above[v] or w in below[v] for w in inner)}
    groups = {}
    for v in inner:
        if v in ops:
            groups.setdefault(len(cuts & above[v]), []).append(v)
    return [groups[index] for index in sorted(groups)]


def random_dag(draw):
    count = draw.randint(1, 14)
    density = draw.choice([0.1, 0.2, 0.4])
    predecessors = {v: [p for p in range(v) if draw.random() < density] for v in range(count)}
    ops = {v for v in predecessors if draw.random() < 0.5}
    return predecessors, ops


@pytest.mark.parametrize("seed", range(500))
def test_equals_brute_force_on_random_dags(seed):
    predecessors, ops = random_dag(random.Random(seed))
    assert partition(predecessors, ops) == brute_force(predecessors, ops)


def test_a_residual_edge_adds_no_order():
    chain = {"norm": [], "up": ["norm"], "down": ["up"], "add": ["norm", "down"], "head": ["add"]}
    assert partition(chain, {"up", "down", "head"}) == [["up"], ["down"], ["head"]]


def test_parallel_blocks_are_one_group():
    blocks = {
        "norm": [],
        "qkv": ["norm"],
        "dense": ["qkv"],
        "up": ["norm"],
        "down": ["up"],
        "add": ["dense", "down"],
        "head": ["add"],
    }
    assert partition(blocks, {"qkv", "dense", "up", "down", "head"}) == [
        ["qkv", "dense", "up", "down"],
        ["head"],
    ]


def test_what_is_outside_of_all_ops_does_not_matter():
    graph = {"mask": [], "x": [], "q": ["x"], "s": ["q", "mask"], "o": ["s"], "cache": ["q"]}
    assert partition(graph, {"q", "o"}) == [["q"], ["o"]]


def test_no_ops_no_groups():
    assert partition({"a": [], "b": ["a"]}, set()) == []


def test_order_is_checked():
    with pytest.raises(ValueError, match="'b' comes before"):
        partition({"b": ["a"], "a": []}, {"a", "b"})
