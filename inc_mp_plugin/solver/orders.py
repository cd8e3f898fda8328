"""Orders in which baselines lower ops: of the graph, shuffled, by value, or from the middle layer."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from inc_mp_plugin.core.blocks import block_of, repeated_blocks
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.plan import OpValues
from inc_mp_plugin.solver.program import Program

RANDOM, PREFIX, UNIFORM = "random", "prefix", "uniform"
PRACTICE, ENDS = "practice", "ends"
BASELINES = (RANDOM, PREFIX, UNIFORM)
BY_LAYERS = (PRACTICE, ENDS)  # of a graph, which says what is a layer and what is the head

Step = tuple[str, ...]


def order(
    program: Program,
    strategy: str,
    seed: int = 0,
    *,
    values: OpValues | None = None,
    graph: Graph | None = None,
) -> list[Step]:
    """Order the ops that a strategy lowers: all that can leave the base format, but for `practice`.

    The first step holds the ops that must leave the base format, which may be none. After it, ops that
    share one format in every configuration are one step.

    Args:
        program: the priced configurations.
        strategy: one of BASELINES or BY_LAYERS, or the method of the values.
        seed: of the order of `random`.
        values: of EAGL or ALPS.
        graph: of the model, for BY_LAYERS.

    Raises:
        InputError: a strategy by layers without a graph, or of a model without layers.
    """
    format_name = lower_format(program.gains)
    first, steps = _steps(program, format_name)
    if strategy in BY_LAYERS:
        if graph is None:
            message = f"{strategy} goes by the layers of a model; give its graph, from `capture`"
            raise InputError(message)
        steps = _linear_steps(steps, graph) if strategy == PRACTICE else _from_the_middle(steps, graph)
    if strategy == RANDOM:
        random.Random(seed).shuffle(steps)
    if values is not None:
        steps = _by_value(steps, program.gains, format_name, values)
    return [first, *steps]


def head_of(graph: Graph) -> str | None:
    """Name the head of a model: its last op, if that is linear and in no repeated block.

    Example:
        >>> from inc_mp_plugin.core.graph import Op
        >>> head_of(Graph((Op("up", "linear", 1, 4, 1), Op("head", "linear", 1, 4, 1)), (), (), {}))
        'head'
    """
    if not graph.ops or graph.ops[-1].kind != "linear":
        return None
    last = graph.ops[-1].name
    return last if block_of(last, repeated_blocks(graph)) is None else None


def lower_format(gains: Gains) -> str:
    """Return the first format below the base that any configuration has.

    Raises:
        InputError: there is none.
    """
    formats = (
        name for group in gains.groups for c in group.configurations for name in c if name != gains.base
    )
    format_name = next(formats, None)
    if format_name is None:
        message = f"no op can leave {gains.base}, so there is nothing to choose"
        raise InputError(message)
    return format_name


def _steps(program: Program, format_name: str) -> tuple[Step, list[Step]]:
    """List the ops that must leave the base format, and the steps of the others in graph order."""
    first: list[str] = []
    steps: list[Step] = []
    for group, options in zip(program.gains.groups, program.groups, strict=True):
        alike: dict[Step, list[str]] = {}
        for place, op in enumerate(group.ops):
            alike.setdefault(tuple(option.configuration[place] for option in options), []).append(op)
        for formats, ops in alike.items():
            if program.gains.base not in formats:
                first += ops
            elif format_name in formats:
                steps.append(tuple(ops))
    return tuple(first), steps


def _linear_steps(steps: Sequence[Step], graph: Graph) -> list[Step]:
    """Keep the steps of linear ops alone, without the head."""
    linear = {op.name for op in graph.ops if op.kind == "linear"} - {head_of(graph)}
    return [step for step in steps if linear.issuperset(step)]


def _from_the_middle(steps: Sequence[Step], graph: Graph) -> list[Step]:
    """Sort steps so that those of the middle block come first, then its neighbours; others come last.

    Raises:
        InputError: the model has no repeated blocks.
    """
    blocks = repeated_blocks(graph)
    if not blocks:
        message = f"{ENDS} keeps the first and the last layers, and this model has no repeated layers"
        raise InputError(message)
    from_an_end = {block: min(place, len(blocks) - 1 - place) for place, block in enumerate(blocks)}

    def place_of(step: Step) -> int:
        return min(from_an_end.get(block_of(op, blocks) or "", -1) for op in step)

    return sorted(steps, key=place_of, reverse=True)


def _by_value(steps: Sequence[Step], gains: Gains, format_name: str, values: OpValues) -> list[Step]:
    """Sort steps by the value lost per gain; leave out those that have no value, or gain nothing."""
    value_of, rates = values.values.get(format_name, {}), {}
    for step in steps:
        total = gains.total(dict.fromkeys(step, format_name))
        if total is not None and total[0] > 0 and all(op in value_of for op in step):
            rates[step] = math.fsum(value_of[op] for op in step) / total[0]
    return sorted(rates, key=rates.__getitem__)
