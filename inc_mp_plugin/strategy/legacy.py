"""`ip_mse` in the tuning of INC up to 3.7.1, which falls ops back from INT8 to FP32.

That tuning has a registry of strategies, and no FP8. The strategy prices INT8 with the sensitivities of
FP8's, and proposes plans of the same integer program from the given threshold downwards.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from neural_compressor.config import TuningCriterion
from neural_compressor.strategy.strategy import STRATEGIES, TuneStrategy, strategy_registry
from neural_compressor.strategy.utils.tuning_structs import OpTuningConfig
from torch import nn

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.knobs import check_knobs
from inc_mp_plugin.graph.capture import capture
from inc_mp_plugin.inc.backend import set_strategy
from inc_mp_plugin.inc.keys import NAME
from inc_mp_plugin.model.batches import batch_size
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.sensitivity.integer import INT8, IntegerNoise
from inc_mp_plugin.sensitivity.maxabs import observe_maxabs
from inc_mp_plugin.sensitivity.one_batch import Pass
from inc_mp_plugin.sensitivity.rows import join
from inc_mp_plugin.sensitivity.taylor import sensitivity_rows
from inc_mp_plugin.solver.planner import solve

_KEYS = ("tau", "samples", "loss_fn")
_SAVED_BYTES = 3  # of a weight in INT8 instead of FP32


class IP_MSETuneStrategy(TuneStrategy):  # type: ignore[misc]  # INC makes "ip_mse" of the class's name
    """INC's tuning strategy `ip_mse`: which ops fall back from INT8 to FP32.

    `TuningCriterion(strategy="ip_mse", strategy_kwargs={...})` takes `tau` (0.01), `samples` (64) and
    `loss_fn(model, batch)`, one loss per sample of a batch of the calibration data; without it, the
    language-model loss of batches that have `input_ids`.
    """

    def next_tune_cfg(self) -> Iterator[dict[Any, Any]]:
        """Yield plans for tau, tau / 2, tau / 4 ..., as INC's configurations, each other plan once.

        The last one has no op in INT8.

        Raises:
            InputError: a key that is not ours, or no calibration data.
        """
        options = dict(self.config.tuning_criterion.strategy_kwargs or {})
        for key in options:
            if key not in _KEYS:
                raise InputError(unknown("ip_mse key", key, _KEYS))
        tau, loss_fn = options.get("tau", 0.01), options.get("loss_fn")
        check_knobs(tau, None)
        _, _, initial = self.initial_tuning_cfg()
        model: nn.Module = self.model.model
        batches = _first(self.calib_dataloader, options.get("samples", 64))
        graph = capture(model, batches[0][0] if isinstance(batches[0], (tuple, list)) else batches[0])
        names = {_op(name) for name, _ in initial} & graph.by_name.keys()
        losses = measure_int8(model, graph, batches, loss_fn).of(names)
        before: Collection[str] | None = None
        while before is None or before:
            plan = solve(memory_gains_int8(graph, names), losses, tau)
            if plan.quantized != before:
                say(f"tau {tau:.4g}: {len(plan.quantized)} of {len(names)} ops in INT8")
                yield self._configuration(initial, set(plan.quantized), names)
            before, tau = plan.quantized, tau / 2

    def _configuration(self, initial: dict[Any, Any], quantized: set[str], names: set[str]) -> dict[Any, Any]:
        """Return INC's configuration of a plan; what is not an op of ours stays as INC has it."""
        configuration: dict[Any, Any] = copy.deepcopy(initial)
        for name, kind in initial:
            if _op(name) in names - quantized:
                configuration[name, kind] = OpTuningConfig(name, kind, "fp32", self.tuning_space)
        size = self.tuning_space.root_item.get_option_by_name("calib_sampling_size")
        configuration["calib_sampling_size"] = size.options[0]
        return configuration


def _op(name: str) -> str:
    """Return the name of a module for INC's name of it: where INC wraps a module, it adds `.module`."""
    return name.removesuffix(".module")


def measure_int8(model: nn.Module, graph: Graph, batches: Sequence[Any], loss_fn: Any) -> Costs:
    """Price the noise of INT8, D^2 / 12 per element; see `IntegerNoise`.

    Args:
        model: the model in FP32.
        graph: its ops.
        batches: calibration batches.
        loss_fn: `loss_fn(model, batch)` returns one loss per sample; the language-model loss if None.
    """
    noise = IntegerNoise(observe_maxabs(model, graph, batches, loss_fn))
    settings = Pass(model, graph, loss_fn, noise)
    sensitivity = join(graph, [rows["loss"] for rows in sensitivity_rows(settings, batches)])
    return Costs(sensitivity, "measured")


def memory_gains_int8(graph: Graph, names: Collection[str]) -> Gains:
    """Return the bytes that INT8 saves against FP32, op by op."""
    groups = tuple(
        GroupGains(
            (op.name,), (("fp32",), (INT8,)), (0.0, float(_SAVED_BYTES * op.weight_elements)), (0.0, 0.0)
        )
        for op in graph.ops
        if op.name in names
    )
    return Gains("memory", "byte", "exact", "fp32", groups)


def _first(batches: Any, samples: int) -> list[Any]:
    first: list[Any] = []
    for batch in batches if batches is not None else ():
        first.append(batch)
        samples -= batch_size(batch)
        if samples <= 0:
            break
    if not first:
        message = "strategy ip_mse needs calibration data: give calib_dataloader to quantization.fit"
        raise InputError(message)
    return first


def register_legacy() -> None:
    """Enter the strategy into INC's registry, and let `TuningCriterion` take its name."""
    if NAME in STRATEGIES:
        return
    strategy_registry(IP_MSETuneStrategy)
    stock = TuningCriterion.strategy

    def accept(criterion: TuningCriterion, name: str) -> None:
        if name == NAME:
            set_strategy(criterion, name)
        else:
            stock.fset(criterion, name)

    # Its list of names is written into the setter.
    TuningCriterion.strategy = stock.setter(accept)
