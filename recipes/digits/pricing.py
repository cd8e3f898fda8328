"""What lowering each op is predicted to cost, by several methods, and the seconds that each takes."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from digits import batches, load, loss_fn
from torch import Tensor, nn
from training import BASE, KEPT, LOWER, Mixes, calibration

from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.plan import ALPS, EAGL, OpValues, Plan
from inc_mp_plugin.gain.per_op import bit_operation_gains
from inc_mp_plugin.graph.capture import capture
from inc_mp_plugin.qat.layers import as_plain, in_formats, rounded_ops, weight_codes
from inc_mp_plugin.qat.lsq import code_range, initial_step
from inc_mp_plugin.runtime.store import Partial
from inc_mp_plugin.sensitivity.alps import measure_alps
from inc_mp_plugin.sensitivity.eagl import eagl_values
from inc_mp_plugin.sensitivity.one_batch import Pass
from inc_mp_plugin.sensitivity.rows import join
from inc_mp_plugin.sensitivity.taylor import sensitivity_rows
from inc_mp_plugin.solver.baselines import baseline_gaining
from inc_mp_plugin.solver.orders import PREFIX, RANDOM
from inc_mp_plugin.solver.planner import IP_MSE, solve

EQUAL = "equal"
METHODS = (IP_MSE, ALPS, EAGL, EQUAL, PREFIX, RANDOM)
DRAWN = frozenset({EQUAL, RANDOM})  # methods that chance has a part in
_IMAGES, _BATCH = 250, 50  # that sensitivities are measured on


@dataclass(frozen=True, slots=True)
class StepNoise:
    """Root mean square of the rounding noise of given steps D: D / sqrt(12), whatever the value.

    Stands where measured rounding errors stand (`Rounding`). The steps of inputs are given by op; those
    of weights are where the lowered op starts from, 2 mean|w| / sqrt(Qp).
    """

    steps: Mapping[str, Tensor]
    formats: tuple[str, ...] = (LOWER,)
    maxabs: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)

    def of_input(self, op: str, index: int, value: Tensor, format_name: str) -> Tensor:
        """Noise of the input of an op, in its shape."""
        del index, format_name
        return torch.full(value.shape, float(self.steps[op]) / 12**0.5)

    def of_weight(self, weight: Tensor, format_name: str, rows: slice = slice(None)) -> Tensor:
        """Noise of rows of a weight, in their shape."""
        step = initial_step(weight.abs().mean(), code_range(format_name, signed=True))
        return torch.full(weight[rows].shape, float(step) / 12**0.5)


@dataclass(frozen=True, slots=True)
class Prices:
    """What plans are made of: bit operations saved, loss MSE, and the values of other methods.

    `seconds` are those that pricing took, by method; a method without prices took none.
    """

    gains: Gains
    losses: LossModel
    values: Mapping[str, OpValues]
    seconds: Mapping[str, float]

    @property
    def ops(self) -> tuple[str, ...]:
        """The ops that choose."""
        return tuple(op for group in self.gains.groups for op in group.ops)

    @property
    def cost(self) -> float:
        """Bit operations of the ops that choose, all in the base format."""
        return float(self.gains.cost or 0.0)

    def plan(self, method: str, budget: float, draw: int = 0) -> Plan:
        """The plan of a method that costs at most this fraction of everything in the base format."""
        if method in (PREFIX, RANDOM):
            gain = self.cost - budget * self.cost
            return baseline_gaining(self.gains, self.losses, method, gain, seed=draw)
        values = equal_values(self.ops, draw) if method == EQUAL else self.values.get(method)
        return solve(self.gains, self.losses, budget=budget, values=values)


def equal_values(ops: Sequence[str], draw: int) -> OpValues:
    """Every op is worth the same, so that as few as possible are lowered; which of them, chance decides.

    All values are 1, but for parts in a thousand that are drawn: too little for one op more or less.
    """
    random_part = random.Random(draw)
    return OpValues(EQUAL, "op", {LOWER: {op: 1.0 + 0.001 * random_part.random() for op in ops}})


def prices(folder: Path, model: nn.Module, base: nn.Module, brief: Mixes) -> Prices:
    """Price every op by every method.

    Args:
        folder: where ALPS keeps its scores until it is done.
        model: in FP32, whose graph is captured.
        base: the same with its ops in the base format.
        brief: trials after a brief fine-tuning, which are ALPS's scores.
    """
    graph = capture(model, load()[0].images[:2])
    gains = bit_operation_gains(graph, (BASE, LOWER), KEPT)
    choosing = replace(graph, ops=tuple(op for op in graph.ops if op.name not in KEPT))
    names = tuple(op.name for op in choosing.ops)
    start = time.perf_counter()
    losses = losses_of(base, choosing)
    ip_mse_seconds = time.perf_counter() - start
    start = time.perf_counter()
    codes = weight_codes(base)
    eagl = eagl_values({name: codes[name] for name in names}, (LOWER,))
    eagl_seconds = time.perf_counter() - start
    alps = measure_alps(
        names,
        (LOWER,),
        lambda formats: brief.trial(formats).training_loss,
        Partial(folder / "alps.partial.npz", brief.partial.key),
    )
    alps_seconds = sum(brief.trial(lowered).seconds for lowered in ((), *((name,) for name in names)))
    return Prices(
        gains,
        losses,
        {ALPS: alps, EAGL: eagl},
        {IP_MSE: ip_mse_seconds, ALPS: alps_seconds, EAGL: eagl_seconds},
    )


def losses_of(base: nn.Module, graph: Graph) -> LossModel:
    """Loss MSE of the ops of a graph, each alone in the lower format: sum of D^2 / 12 (dg/dz)^2.

    Over the rounded values z of inputs and weight, g being the loss of an image as the base model has it.
    """
    names = [op.name for op in graph.ops]
    lowered = rounded_ops(in_formats(base, dict.fromkeys(names, LOWER), calibration()))
    noise = StepNoise({name: lowered[name].input_quantizer.step.detach() for name in names})
    training = load()[0]
    shown = batches(training.images[:_IMAGES], training.labels[:_IMAGES], _BATCH)
    rows = sensitivity_rows(Pass(as_plain(base), graph, loss_fn, noise), shown)
    return LossModel(join(graph, [part["loss"] for part in rows]), "measured")
