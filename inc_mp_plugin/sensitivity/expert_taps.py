"""Sensitivities of layers of experts: all experts of a layer in one step, each row told to its sample."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from inc_mp_plugin.core.blocks import block_of
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.model.expert import Expert, Sent, add_up
from inc_mp_plugin.model.expert_stacks import sent_rows
from inc_mp_plugin.model.experts import experts_of, exposed_layers
from inc_mp_plugin.scales.nearest import largest_magnitude
from inc_mp_plugin.sensitivity.expert_products import products, slices
from inc_mp_plugin.sensitivity.expert_weights import Rows, weight_norms
from inc_mp_plugin.sensitivity.maxabs import raise_to
from inc_mp_plugin.sensitivity.pieces import row_norms
from inc_mp_plugin.sensitivity.reads import TINY
from inc_mp_plugin.sensitivity.tapping import Tapping
from inc_mp_plugin.sensitivity.totals import MixedSamplesError, Totals

if TYPE_CHECKING:
    from inc_mp_plugin.sensitivity.maxabs import MaxAbs

_PAIR = ("gate_proj", "up_proj")
_PROJECTIONS = (*_PAIR, "down_proj")


class _Read(NamedTuple):
    """A projection's reading of its rows: its ops, the column of each row, and the gradient of the rows."""

    ops: Sequence[str]
    columns: Tensor
    of_value: Tensor


@dataclass(frozen=True, slots=True)
class _Call:
    """One run of a layer: the rows that go to experts, and the gradients of projections' inputs so far."""

    sent: Sent
    reads: dict[str, _Read] = field(default_factory=dict)

    def samples(self, size: int) -> Tensor:
        """Tell the sample of each row, of so many samples: hidden states come sample by sample.

        Raises:
            MixedSamplesError: the tokens are no multiple of the samples.
        """
        if self.sent.tokens % size:
            raise MixedSamplesError
        samples: Tensor = self.sent.source % self.sent.tokens // (self.sent.tokens // size)
        return samples

    def per_row(self, of_experts: Iterable[int]) -> Tensor:
        """Repeat numbers, one for each expert, for the rows of the expert."""
        numbers, counts = (
            torch.tensor(list(values), device=self.sent.source.device)
            for values in (of_experts, self.sent.counts.values())
        )
        return numbers.repeat_interleave(counts)


@dataclass(slots=True)
class _Layer:
    """A layer: its experts, what ran of it, and the runs whose weight gradients are due."""

    name: str
    module: nn.Module
    experts: Mapping[int, Expert]
    forward: Any = None  # as it came
    calls: int = 0
    reached: set[int] = field(default_factory=set)
    due: dict[str, list[Rows]] = field(default_factory=lambda: defaultdict(list))

    def ops(self, projection: str, experts: Iterable[int]) -> list[str]:
        """Name the ops of a projection."""
        return [f"{self.name}.{number}.{projection}" for number in experts]


def whole_layers(model: nn.Module, graph: Graph) -> dict[str, nn.Module]:
    """Find the layers of exposed experts, by name, all of whose projections are ops of a graph."""
    ops = {op.name for op in graph.ops}
    return {
        name: module
        for name, module in exposed_layers(model).items()
        if all(f"{name}.{n}.{projection}" in ops for n in experts_of(module) for projection in _PROJECTIONS)
    }


class ExpertTaps:
    """The part of `Taps` for layers whose experts are exposed.

    Inside the `with` a layer runs each projection of all its experts as one step of the differentiation.
    Hidden states come sample by sample, so that the number of a row tells its sample: the rows of an expert
    are those of one sample after the other, and no sample needs a pass of its own.
    """

    def __init__(
        self, settings: Tapping, layers: Mapping[str, nn.Module], totals: Totals, maxabs: MaxAbs
    ) -> None:
        """Prepare for one batch.

        Args:
            settings: of the taps.
            layers: from `whole_layers`.
            totals: to add to.
            maxabs: of the inputs of ops, to be raised if it is to be noted.
        """
        self._settings, self._together, self._maxabs = settings, settings.together, maxabs
        self._layers = [
            _Layer(name, module, {int(number): expert for number, expert in experts_of(module).items()})
            for name, module in layers.items()
        ]
        self._columns = {op.name: column for column, op in enumerate(settings.graph.ops)}
        self._totals = totals
        self._size = len(totals.input)

    @property
    def called(self) -> Iterator[str]:
        """Names of the ops that ran."""
        for layer in self._layers:
            for projection in _PROJECTIONS:
                yield from layer.ops(projection, layer.reached)

    def __enter__(self) -> ExpertTaps:
        """Run the layers in our way."""
        for layer in self._layers:
            layer.forward = layer.module.forward
            layer.module.forward = partial(self._run, layer)
        return self

    def __exit__(self, *error: object) -> None:
        """Run them in their own way again, and drop the tensors that are still held."""
        for layer in self._layers:
            layer.module.forward = layer.forward
            layer.due.clear()

    def finish(self) -> None:
        """Add the weight gradients that are still due: of layers with an output that the loss ignores."""
        for layer in self._layers:
            for projection in _PROJECTIONS:
                self._add_weights(layer, projection)

    def forget(self, block: str) -> None:
        """Count the calls of a block's layers anew: it is about to run once more."""
        for layer in self._layers:
            if block_of(layer.name, [block]):
                layer.calls = 0

    def restart(self, totals: Totals, *, together: bool) -> None:
        """Add to other totals from now on, in another backward pass through the same forward pass."""
        self._totals, self._together = totals, together
        self._size = len(totals.input)

    def _run(self, layer: _Layer, hidden: Tensor, *routing: Tensor) -> Tensor:
        sent = sent_rows(layer.module, len(layer.experts), (hidden, *routing))
        if not sent.counts:
            return torch.zeros_like(hidden)
        call = _Call(sent)
        call.samples(self._size)  # refuses what cannot be told apart before anything is computed
        layer.calls += 1
        layer.reached.update(sent.counts)
        value = hidden[sent.source]
        if not value.requires_grad:
            value.requires_grad_()
        expert = next(iter(layer.experts.values()))
        gate, up = (self._product(layer, call, name, value) for name in _PAIR)
        return add_up(hidden, sent, self._product(layer, call, "down_proj", expert.join(gate, up)))

    def _product(self, layer: _Layer, call: _Call, projection: str, value: Tensor) -> Tensor:
        ops = layer.ops(projection, call.sent.counts)
        columns = call.per_row(self._columns[op] for op in ops)
        if self._settings.looks:
            of_rows = largest_magnitude(value.detach(), dim=1)
            of_ops = of_rows.new_zeros(len(ops)).scatter_reduce(
                0, call.per_row(range(len(ops))), of_rows, "amax"
            )
            raise_to(self._maxabs, {(op, 0): of_op for op, of_op in zip(ops, of_ops, strict=True)})

        def watch(value: Tensor, of_value: Tensor, of_output: Tensor) -> None:
            call.reads[projection] = _Read(ops, columns, of_value)
            if projection == "down_proj" or len(call.reads) == len(_PAIR):  # a pair reads the same rows
                self._add_inputs(call, value, self._columns[layer.ops("gate_proj", layer.experts)[0]])
            if not self._settings.inputs_only:
                keys = call.per_row(call.sent.counts) * self._size + call.samples(self._size)
                layer.due[projection].append(Rows(keys, value.detach(), of_output))
                if len(layer.due[projection]) == layer.calls:
                    self._add_weights(layer, projection)

        linears = {getattr(layer.experts[n], projection): count for n, count in call.sent.counts.items()}
        return products(value, linears, watch)

    def _add_inputs(self, call: _Call, value: Tensor, first: int) -> None:
        """Add what rows contribute, as in `add_inputs`: the errors of a token are the same in all experts.

        `first` is the column of the layer's first op, which numbers the ops that read its tokens.
        """
        reads = list(call.reads.values())
        call.reads.clear()
        samples, tokens = call.samples(self._size), call.sent.source % call.sent.tokens
        for key, total in self._totals.of_inputs.items():
            factors = [
                value if key == "input" else self._rounding(call, read.ops, value, key) for read in reads
            ]
            norms = [row_norms(f, read.of_value) for f, read in zip(factors, reads, strict=True)]
            for read, norm in zip(reads, norms, strict=True):
                total.index_put_((samples, read.columns), norm, accumulate=True)
            if self._together and key != "input" and len(reads) == len(_PAIR):
                (gate, of_gate), (up, of_up) = zip(factors, reads, strict=True)
                both = gate.float() * of_gate.of_value.float() + up.float() * of_up.of_value.float()
                more = _joint_share(both, norms[0] + norms[1], tokens, call.sent.tokens) - 1.0
                for read, norm in zip(reads, norms, strict=True):
                    where = (samples, read.columns)
                    self._totals.shared[key].index_put_(where, norm * more, accumulate=True)
                    self._totals.read_together(read.columns, first)

    def _rounding(self, call: _Call, ops: Iterable[str], value: Tensor, format_name: str) -> Tensor:
        errors: Any = self._settings.rounding  # there are no totals of formats without
        parts = zip(ops, slices(call.sent.counts.values()), strict=True)
        return torch.cat([errors.of_input(op, 0, value[rows], format_name) for op, rows in parts])

    def _add_weights(self, layer: _Layer, projection: str) -> None:
        runs = layer.due.pop(projection, None)
        if not runs:
            return
        totals = self._totals

        def factors(expert: int) -> list[Tensor]:
            weight = getattr(layer.experts[expert], projection).weight.detach()
            errors: Any = self._settings.rounding
            parts = [weight, *(errors.of_weight(weight, name) for name in totals.rounding)]
            return [part.float().contiguous() for part in parts]

        experts, norms = weight_norms(Rows.of(runs), self._size, factors)
        columns = [self._columns[op] for op in layer.ops(projection, experts.tolist())]
        for total, values in zip((totals.weight, *totals.rounding.values()), norms, strict=True):
            total[:, columns] += values.T


def _joint_share(products: Tensor, norms: Tensor, tokens: Tensor, count: int) -> Tensor:
    """Compute for each row by how much its token costs together, over the sum of what its rows cost alone.

    `products`, shape (rows, inner), and `norms`, shape (rows,), are sums over the projections.
    """
    total = products.new_zeros(count, products.shape[1]).index_add_(0, tokens, products)
    together = torch.linalg.vector_norm(total, dim=1).double().square()
    alone = torch.zeros_like(together).index_add_(0, tokens, norms)
    share: Tensor = together / alone.clamp(min=TINY)
    return share[tokens]
